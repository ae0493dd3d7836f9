"""Crowds: requests for a target whose answer is on its way wait for that, and cost nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from imgkeep.web import images

from tests.support.concurrent_requests import (
    IMAGE,
    NUMBER,
    HeldResponse,
    request_concurrently,
    split_all,
    until_following,
)
from tests.support.image_requests import fast_path_of, services_of
from tests.support.raw_http import ask, port_of, request, target_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Imgkeep
    from tests.support.origins import Exchange, FakeOrigin

    Start = Callable[..., Awaitable[Imgkeep]]


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that a handler was at work for."""
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
    await asyncio.sleep(0.05)
    late = request_concurrently(imgkeep, target, 5)  # the head is known by now, the rest is not
    await asyncio.sleep(0.05)
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


async def test_a_failure_is_told_to_all(imgkeep: Imgkeep, origin: FakeOrigin, handled: list[str]) -> None:
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


async def test_all_are_counted_as_what_they_are(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    held = HeldResponse()
    asked = request_concurrently(imgkeep, target_of(origin.on("/a.png", held)), 3)
    await until_following(imgkeep, 2)
    held.begin.set()
    held.end.set()
    await asyncio.gather(*asked)
    await asyncio.sleep(0.05)
    page = services_of(imgkeep).metrics.page().decode()
    counts = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in page.splitlines() if "/img" in line}
    found = {outcome: count for name, count in counts.items() for outcome in ("stored", "collapsed") if outcome in name}
    assert {outcome: float(count) for outcome, count in found.items()} == {"stored": 1, "collapsed": 2}


async def test_nobody_follows_into_a_loop(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """A request that came from a node of ours and waited for the answer to another would wait for itself."""
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
    """Handlers begin when it is set."""
    go = asyncio.Event()
    handler = images.ImageHandlers.serve_source

    async def wait(self: Any, asked: Any) -> Any:
        await go.wait()
        return await handler(self, asked)

    monkeypatch.setattr(images.ImageHandlers, "serve_source", wait)
    return go


async def test_whoever_comes_from_a_node_of_ours_leads_nobody(
    imgkeep: Imgkeep, origin: FakeOrigin, slow_handler: asyncio.Event
) -> None:
    target = target_of(origin.gives("/a.png", IMAGE))
    looped = request_concurrently(imgkeep, target, 1, "Via: 1.1 imgkeep")
    await asyncio.sleep(0.05)
    plain = request_concurrently(imgkeep, target, 2)
    await until_following(imgkeep, 1)
    slow_handler.set()
    assert [each.status for each in split_all(await asyncio.gather(*looped, *plain))] == [508, 200, 200]


async def test_an_allowance_that_is_used_up_is_its_owners(
    start: Start, origin: FakeOrigin, slow_handler: asyncio.Event
) -> None:
    imgkeep = await start(server={"trusted_proxies": ["127.0.0.0/8"]}, limits={"fills_per_minute": 1})
    poor, rich = "X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 203.0.113.77"
    slow_handler.set()
    await asyncio.gather(*request_concurrently(imgkeep, target_of(origin.gives("/a.png", IMAGE)), 1, poor))
    slow_handler.clear()
    target = target_of(origin.gives("/b.png", IMAGE))
    leader = request_concurrently(imgkeep, target, 1, poor)
    async with asyncio.timeout(20):
        while not fast_path_of(imgkeep).shared_responses:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)
    followers = request_concurrently(imgkeep, target, 5, rich)
    await until_following(imgkeep, 5)
    slow_handler.set()
    statuses = [each.status for each in split_all(await asyncio.gather(*leader, *followers))]
    assert statuses == [429, 200, 200, 200, 200, 200]
    assert origin.asked("/b.png") == 1


async def test_a_leader_who_leaves_takes_nobody_along(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    held = HeldResponse()
    target = target_of(origin.on("/a.png", held))
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(imgkeep))
    writer.write(request(target, close=False))
    async with asyncio.timeout(20):
        while not origin.asked("/a.png"):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)
    asked = request_concurrently(imgkeep, target, 5)
    await until_following(imgkeep, 5)
    writer.transport.abort()
    del reader
    await asyncio.sleep(0.02)
    held.begin.set()
    held.end.set()
    assert {(each.status, each.body) for each in split_all(await asyncio.gather(*asked))} == {(200, IMAGE)}
    assert origin.asked("/a.png") == 1


async def test_a_body_that_breaks_off_breaks_off_for_all(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(IMAGE)}")
        await exchange.send(IMAGE[:150_000])
        await asyncio.sleep(0.1)
        exchange.reset()

    asked = request_concurrently(imgkeep, target_of(origin.on("/a.png", cut)), 5)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(each, (asyncio.IncompleteReadError, ConnectionError)) for each in answers)
    assert not fast_path_of(imgkeep).shared_responses


async def test_followers_are_answered_before_the_end(start: Start, origin: FakeOrigin) -> None:
    """A shutdown waits for those who follow as for anybody."""
    imgkeep = await start()
    held = HeldResponse()
    asked = request_concurrently(imgkeep, target_of(origin.on("/a.png", held)), 3)
    await until_following(imgkeep, 2)
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert server is not None
    server.pre_shutdown()
    shutdown = asyncio.create_task(server.shutdown(5))
    await asyncio.sleep(0.02)
    held.begin.set()
    held.end.set()
    assert {(each.status, each.body) for each in split_all(await asyncio.gather(*asked))} == {(200, IMAGE)}
    await shutdown
