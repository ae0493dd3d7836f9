"""Coalescing: a request that follows the response to another one costs an entry in a list."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.web import images
from imgkeep.web.fastpath.response_coalescing import SharedResponses
from imgkeep.web.fastpath.states import State
from imgkeep.web.request_response import HttpResponse
from imgkeep.web.request_state import RequestLog
from tests.support.concurrent_requests import (
    IMAGE,
    NUMBER,
    HeldResponse,
    connections_in,
    connections_of,
    request_concurrently,
    split_all,
    until_following,
)
from tests.support.image_requests import fast_path_of, services_of
from tests.support.raw_http import ask, port_of, request, target_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets of the requests that reached a handler."""
    seen: list[str] = []
    handler = images.ImageHandlers.serve_source

    async def counted(self: Any, asked: Any) -> Any:
        seen.append(asked.target)
        return await handler(self, asked)

    monkeypatch.setattr(images.ImageHandlers, "serve_source", counted)
    return seen


async def test_one_handler_answers_all(imgkeep: Imgkeep, origin: FakeOrigin, handled: list[str]) -> None:
    held = HeldResponse()
    target = target_of(origin.on("/a.png", held))
    early = request_concurrently(imgkeep, target)
    await until_following(imgkeep, NUMBER - 1)
    held.begin.set()
    await until(lambda: connections_in(imgkeep, State.SENDING) == NUMBER)
    late = request_concurrently(imgkeep, target, 5)  # the head is known by now, the rest is not
    await until(lambda: connections_in(imgkeep, State.SENDING) == NUMBER + 5)
    assert len(handled) == 1
    held.end.set()
    answers = split_all(await asyncio.gather(*early, *late))
    assert all((each.status, each.body) == (200, IMAGE) for each in answers)
    outcomes = sorted(each.headers["cache-status"] for each in answers)
    assert outcomes == ["imgkeep; fwd=uri-miss; collapsed"] * (NUMBER + 4) + ["imgkeep; fwd=uri-miss; stored"]
    assert len({each.headers["etag"] for each in answers}) == 1
    assert origin.asked("/a.png") == 1
    assert not fast_path_of(imgkeep).shared_responses
    assert (await ask(imgkeep, target)).headers["cache-status"] == "imgkeep; hit"


async def test_followers_get_the_failure(imgkeep: Imgkeep, origin: FakeOrigin, handled: list[str]) -> None:
    held = HeldResponse(b"", "404 Not Found")
    target = target_of(origin.on("/a.png", held))
    asked = request_concurrently(imgkeep, target)
    await until_following(imgkeep, NUMBER - 1)
    held.begin.set()
    held.end.set()
    answers = split_all(await asyncio.gather(*asked))
    assert {(each.status, each.body) for each in answers} == {(404, answers[0].body)}
    assert b"source_not_found" in answers[0].body
    assert len(handled) == 1
    assert not fast_path_of(imgkeep).shared_responses


OUTCOMES = {"stored": 1.0, "collapsed": 2.0}


async def test_leader_and_followers_are_counted_by_their_outcomes(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    held = HeldResponse()
    asked = request_concurrently(imgkeep, target_of(origin.on("/a.png", held)), 3)
    await until_following(imgkeep, 2)
    held.begin.set()
    held.end.set()
    await asyncio.gather(*asked)
    metrics = services_of(imgkeep).metrics
    counts = [f'imgkeep_requests_total{{outcome="{o}",route="/img",status="200"}} {n}' for o, n in OUTCOMES.items()]
    await until(lambda: all(count in metrics.page().decode() for count in counts))


async def test_request_of_an_own_node_follows_no_other(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """If a request from an own node waited for the response to another request, it could wait for itself."""
    held = HeldResponse()
    target = target_of(origin.on("/a.png", held))
    asked = request_concurrently(imgkeep, target, 2)
    await until_following(imgkeep, 1)
    for field in ("Via: 1.1 imgkeep", "cdn-loop: imgkeep"):
        looped = request_concurrently(imgkeep, target, 1, field)
        assert [each.status for each in split_all(await asyncio.gather(*looped))] == [508]
    held.begin.set()
    held.end.set()
    assert {each.status for each in split_all(await asyncio.gather(*asked))} == {200}


@pytest.fixture
def slow_handler(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Handlers begin when the event is set."""
    go = asyncio.Event()
    handler = images.ImageHandlers.serve_source

    async def wait(self: Any, asked: Any) -> Any:
        await go.wait()
        return await handler(self, asked)

    monkeypatch.setattr(images.ImageHandlers, "serve_source", wait)
    return go


async def test_request_of_an_own_node_has_no_followers(
    imgkeep: Imgkeep, origin: FakeOrigin, slow_handler: asyncio.Event
) -> None:
    target = target_of(origin.gives("/a.png", IMAGE))
    looped = request_concurrently(imgkeep, target, 1, "Via: 1.1 imgkeep")
    await until(lambda: connections_in(imgkeep, State.HANDLING) == 1)
    plain = request_concurrently(imgkeep, target, 2)
    await until_following(imgkeep, 1)
    slow_handler.set()
    assert [each.status for each in split_all(await asyncio.gather(*looped, *plain))] == [508, 200, 200]


async def test_followers_of_a_rate_limited_leader_ask_for_themselves(
    start: Start, origin: FakeOrigin, slow_handler: asyncio.Event
) -> None:
    imgkeep = await start(server={"trusted_proxies": ["127.0.0.0/8"]}, limits={"fills_per_minute": 1})
    poor, rich = "X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 203.0.113.77"
    slow_handler.set()
    await asyncio.gather(*request_concurrently(imgkeep, target_of(origin.gives("/a.png", IMAGE)), 1, poor))
    slow_handler.clear()
    target = target_of(origin.gives("/b.png", IMAGE))
    leader = request_concurrently(imgkeep, target, 1, poor)
    await until(lambda: len(fast_path_of(imgkeep).shared_responses) == 1)
    followers = request_concurrently(imgkeep, target, 5, rich)
    await until_following(imgkeep, 5)
    slow_handler.set()
    statuses = [each.status for each in split_all(await asyncio.gather(*leader, *followers))]
    assert statuses == [429, 200, 200, 200, 200, 200]
    assert origin.asked("/b.png") == 1


async def test_followers_outlive_their_leader(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    held = HeldResponse()
    target = target_of(origin.on("/a.png", held))
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(imgkeep))
    writer.write(request(target, close=False))
    await until(lambda: origin.asked("/a.png") == 1)
    asked = request_concurrently(imgkeep, target, 5)
    await until_following(imgkeep, 5)
    writer.transport.abort()
    del reader
    await until(lambda: len(connections_of(imgkeep)) == 5)
    held.begin.set()
    held.end.set()
    assert {(each.status, each.body) for each in split_all(await asyncio.gather(*asked))} == {(200, IMAGE)}
    assert origin.asked("/a.png") == 1


async def test_body_that_breaks_off_breaks_off_for_followers_too(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go_on = asyncio.Event()

    async def cut(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(IMAGE)}")
        await exchange.send(IMAGE[:150_000])
        await go_on.wait()
        exchange.reset()

    asked = request_concurrently(imgkeep, target_of(origin.on("/a.png", cut)), 5)
    await until(lambda: connections_in(imgkeep, State.SENDING) == 5)
    go_on.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(each, (asyncio.IncompleteReadError, ConnectionError)) for each in answers)
    assert not fast_path_of(imgkeep).shared_responses


async def test_shutdown_waits_for_followers(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    held = HeldResponse()
    asked = request_concurrently(imgkeep, target_of(origin.on("/a.png", held)), 3)
    await until_following(imgkeep, 2)
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert server is not None
    server.pre_shutdown()
    shutdown = asyncio.create_task(server.shutdown(5))
    await asyncio.sleep(0)  # so that it has begun
    held.begin.set()
    held.end.set()
    assert {(each.status, each.body) for each in split_all(await asyncio.gather(*asked))} == {(200, IMAGE)}
    await shutdown


async def test_followers_of_a_response_that_varies_ask_for_themselves_unless_their_class_is_known() -> None:
    shared_responses = SharedResponses()
    avif = HttpResponse(302, {"Location": "/full.avif"})
    got: list[HttpResponse | None] = []
    for name in (b"/img?src=x%3Fformat%3Dauto", b"/img?src=x&format=auto avif"):
        shared = shared_responses.begin(name, RequestLog())
        shared.follow(lambda response, _log: got.append(response))
        shared_responses.publish(shared, avif, varies=True)
        assert shared_responses.find(name) is None
    assert got == [None, avif]


async def test_followers_of_a_refusal_that_depends_on_the_client_ask_for_themselves() -> None:
    shared_responses, got = SharedResponses(), []
    request_log = RequestLog()
    shared = shared_responses.begin(b"/img?src=x&w=40", request_log)
    shared.follow(lambda response, _log: got.append(response))
    request_log.is_for_client = True  # its part of the queue for pictures is full
    shared_responses.publish(shared, HttpResponse(503, {}))
    assert got == [None]
