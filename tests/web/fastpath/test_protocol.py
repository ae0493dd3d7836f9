"""The fast path in front of aiohttp: the same responses, in order, and no bytes taken for a request that are none."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.signing import signed_path
from imgkeep.core.source_url import read_source
from imgkeep.web.fastpath.protocol import FastConnection
from imgkeep.web.fastpath.states import State
from imgkeep.web.http_server import HttpServer
from imgkeep.web.images import ImageHandlers
from imgkeep.web.parse_budget import PARSE_STEP_BYTES
from tests.support.image_requests import HandlerCalls, cached_target, fast_path_of, services_of, store_image
from tests.support.images import png_of
from tests.support.impatient_server import serve_impatiently
from tests.support.origins import gated_body
from tests.support.raw_http import ask, connect, port_of, request, split, talk, target_of
from tests.support.waiting import until
from tests.support.wire import wired

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.records import Record
    from imgkeep.web.request_response import HttpResponse, ImageRequest
    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

IMAGE = png_of(20_000)
LARGE = png_of(3_000_000)
KEY = "a-key-for-tests-of-32-characters"


CONDITIONS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "GET": ("GET", (), 200),
    "HEAD": ("HEAD", (), 200),
    "HEAD knows no range": ("HEAD", ("Range: bytes=0-9",), 200),
    "any tag": ("GET", ("If-None-Match: *",), 304),
    "a list with a weak tag": ("GET", ('If-None-Match: "x", W/{etag}',), 304),
    "HEAD with its tag": ("HEAD", ("If-None-Match: {etag}",), 304),
    "another tag": ("GET", ('If-None-Match: "x"',), 200),
    "a range": ("GET", ("Range: bytes=5-9",), 206),
    "the end": ("GET", ("Range: bytes=-7",), 206),
    "two ranges": ("GET", ("Range: bytes=0-1,5-6",), 200),
    "a range if it is the same": ("GET", ("Range: bytes=0-9", "If-Range: {etag}"), 206),
    "a range of another": ("GET", ("Range: bytes=0-9", 'If-Range: "x"'), 200),
    "a range behind the end": ("GET", ("Range: bytes=99999999-",), 416),
}


@pytest.mark.parametrize("body", [IMAGE, LARGE], ids=["small", "large"])
async def test_fast_path_and_aiohttp_answer_alike(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests, body: bytes
) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", body))
    etag = (await ask(imgkeep, target)).headers["etag"]
    calls = HandlerCalls(imgkeep)
    for name, (method, fields, status) in CONDITIONS.items():
        with subtests.test(name):
            conditions = [field.replace("{etag}", etag) for field in fields]
            over_aiohttp = await ask(imgkeep, target, *conditions, method=method)
            calls.number = 0
            async with connect(port_of(imgkeep)) as line:
                fast = await line.ask(target, *conditions, method=method)
                again = await line.ask(target)
            assert calls.number == (1 if status == 416 else 0)
            assert (fast.status, over_aiohttp.status) == (status, status)
            for answer in (fast, over_aiohttp):
                answer.headers.pop("connection", None)
                del answer.headers["date"]
            assert (fast.headers, fast.body) == (over_aiohttp.headers, over_aiohttp.body)
            assert again.body == body


async def test_permanent_url_is_cached_too(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    place = (await ask(imgkeep, target)).headers["content-location"]
    over_aiohttp = await ask(imgkeep, place)
    services_of(imgkeep).image_service.deliver_object = None  # type: ignore[assignment, method-assign]
    async with connect(port_of(imgkeep)) as line:
        assert (await line.ask(place)).headers["etag"] == over_aiohttp.headers["etag"]


async def test_head_that_arrives_byte_by_byte_is_answered(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    calls = HandlerCalls(imgkeep)
    async with connect(port_of(imgkeep)) as line:
        for byte in request(target, close=False):
            line.writer.write(bytes([byte]))
            await line.writer.drain()
            await asyncio.sleep(0)
        assert (await line.answer()).body == IMAGE
    assert calls.number == 0


async def test_cache_aiohttp_and_handlers_alternate_on_a_connection(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    calls = HandlerCalls(imgkeep)
    async with connect(port_of(imgkeep)) as line:
        for number in range(3):
            assert (await line.ask(target)).body == IMAGE
            assert (await line.ask("/healthz")).status == 200
            new = png_of(5000, seed=number)
            assert (await line.ask(target_of(origin.gives(f"/{number}.png", new)))).body == new
    assert calls.number == 3


async def test_responses_keep_the_order_of_requests(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    gate = asyncio.Event()
    slow = png_of(40_000, seed=7)
    slow_target = target_of(origin.on("/slow.png", gated_body(slow, gate, ahead=1000, declared=True)))
    async with connect(port_of(imgkeep)) as line:
        line.writer.write(request(slow_target, close=False))
        head = await line.reader.readuntil(b"\r\n\r\n")
        line.writer.write(request(target, close=False))  # while a handler answers the first one
        await line.writer.drain()
        gate.set()
        assert await line.reader.readexactly(len(slow)) == slow
        assert split(head).headers["cache-status"] == "imgkeep; fwd=uri-miss; stored"
        assert (await line.answer()).body == IMAGE
        # In one segment.
        line.writer.write(
            request(target, close=False) + request("/healthz", close=False) + request(target, close=False)
        )
        assert [(await line.answer()).status for _ in range(3)] == [200, 200, 200]


NOT_REQUESTS = [
    pytest.param(b"POST /api/save-image HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n", id="a body"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n", id="a body of a GET"),
    pytest.param(b"GET /healthz HTTP/1.0\r\nContent-Length: {size}\r\nA: b HTTP/1.1\r\n\r\n", id="an old request"),
    pytest.param(b"PUT /healthz HTTP/1.1\r\nHost: a\r\nX: ", id="a field"),
]


@pytest.mark.parametrize("before", NOT_REQUESTS)
async def test_body_is_not_taken_for_a_request(
    imgkeep: Imgkeep, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    hidden = request(target, close=False)
    arrived = asyncio.Event()
    data_received = FastConnection.data_received

    def note(connection: FastConnection, data: bytes) -> None:
        data_received(connection, data)
        arrived.set()

    monkeypatch.setattr(FastConnection, "data_received", note)
    _, writer = line = await asyncio.open_connection("127.0.0.1", port_of(imgkeep))
    writer.write(before.replace(b"{size}", b"%d" % len(hidden)))
    await asyncio.wait_for(arrived.wait(), 20)  # so that the two arrive apart
    writer.write(hidden)
    writer.write_eof()
    async with asyncio.timeout(20):
        received = await line[0].read()
    writer.close()
    assert b"\x89PNG" not in received


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_connection_closes_on_request(imgkeep: Imgkeep, origin: FakeOrigin, version: str) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    answer = split(await talk(port_of(imgkeep), request(target, version=version)))
    assert (answer.status, answer.body) == (200, IMAGE)


async def test_bytes_that_left_memory_are_loaded_without_a_handler(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(store={"hot_bytes_max": 25_000})
    services = services_of(imgkeep)
    # As on a system that cannot read without waiting, or when the kernel has dropped the pages.
    services.image_service._dependencies.store.disk._page_cache.is_available = False  # type: ignore[attr-defined]
    images = [png_of(20_000, seed=number) for number in range(3)]
    targets = [await cached_target(imgkeep, origin.gives(f"/{n}.png", image)) for n, image in enumerate(images)]
    calls = HandlerCalls(imgkeep)
    async with connect(port_of(imgkeep)) as line:
        for _ in range(2):
            for target, image in zip(targets, images, strict=True):
                assert (await line.ask(target)).body == image
        assert (await line.ask(targets[0], "If-None-Match: *")).status == 304
        for path in imgkeep.files("objects"):
            path.unlink()
        assert calls.number == 0
        assert (await line.ask(targets[1])).headers["cache-status"] == "imgkeep; fwd=uri-miss; stored"


# --- what removes a cached response


async def test_removed_image_is_gone_for_the_next_request(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    targets = [
        await cached_target(imgkeep, origin.gives(name, body)) for name, body in (("/a.png", IMAGE), ("/b.png", LARGE))
    ]
    async with connect(port_of(imgkeep)) as line:
        for target in targets:
            place = (await line.ask(target)).headers["content-location"]
            assert (await line.ask(place)).status == 200
            assert (await line.ask(place)).status == 200
            key = fast_path_of(imgkeep).response_cache.find(target.encode(), 0)
            assert key is not None
            response = await imgkeep.client.delete(f"/api/images/{key.key}")
            assert response.status == 200
            assert (await line.ask(target)).status == 410
            assert (await line.ask(place)).status == 410


async def test_changed_record_changes_the_next_response(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    image_service = services_of(imgkeep).image_service
    answer = fast_path_of(imgkeep).response_cache.find(target.encode(), 0)
    assert answer is not None
    record = await image_service.look_up(answer.key)  # type: ignore[arg-type]
    assert record is not None
    await image_service.changes.note_stored(replace(record, etag='"another"'))
    async with connect(port_of(imgkeep)) as line:
        assert (await line.ask(target)).headers["etag"] == '"another"'


async def meanwhile(imgkeep: Imgkeep, url: str, change: Callable[[Record], Awaitable[Any]]) -> str:
    """Ask for a stored image, and let `change` happen to it while its bytes are fetched; return the target."""
    await store_image(imgkeep, url)
    image_service = services_of(imgkeep).image_service
    record = await image_service.look_up(image_service.identify(read_source(url)).key)
    assert record is not None
    store: Any = image_service._dependencies.store
    fetch = store.fetch

    async def fetch_and_change(*arguments: Any) -> Any:
        body = await fetch(*arguments)
        store.fetch = fetch
        await change(record)
        return body

    store.fetch = fetch_and_change
    await ask(imgkeep, target_of(url))
    return target_of(url)


async def test_image_that_is_replaced_while_it_is_read_is_not_cached(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    async def replace_it(record: Record) -> None:
        await services_of(imgkeep).image_service.changes.note_stored(replace(record, etag='"another"'))

    target = await meanwhile(imgkeep, origin.gives("/a.png", IMAGE), replace_it)
    async with connect(port_of(imgkeep)) as line:
        assert (await line.ask(target)).headers["etag"] == '"another"'


async def test_image_that_is_removed_while_it_is_read_is_not_cached(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    async def remove_it(record: Record) -> None:
        await services_of(imgkeep).remover.remove_key(record.key)

    target = await meanwhile(imgkeep, origin.gives("/a.png", IMAGE), remove_it)
    async with connect(port_of(imgkeep)) as line:
        assert (await line.ask(target)).status == 410
        assert (await line.ask(target)).status == 410


async def test_signature_ends_for_cached_responses_too(start: Start, origin: FakeOrigin) -> None:
    now = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
    platform = Platform(clock=lambda: now)
    imgkeep = await start(platform=platform, security={"signature": "always", "signing_keys": [KEY]})
    end = int(now.timestamp()) + 100
    target = signed_path(KEY, origin.gives("/a.png", IMAGE), expires=end)
    async with connect(port_of(imgkeep)) as line:
        for _ in range(3):
            assert (await line.ask(target)).headers["cache-control"] == "public, max-age=100"
        calls = HandlerCalls(imgkeep)
        now += timedelta(seconds=40)
        assert (await line.ask(target)).headers["cache-control"] == "public, max-age=60"
        assert calls.number == 0
        now += timedelta(seconds=60)
        assert (await line.ask(target)).status == 403


async def test_handler_is_called_again_after_a_while(start: Start, origin: FakeOrigin) -> None:
    seconds = 1000.0
    imgkeep = await start(platform=Platform(timer=lambda: seconds))
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    calls = HandlerCalls(imgkeep)
    async with connect(port_of(imgkeep)) as line:
        for expected in (0, 0, 1, 1):
            if expected and not calls.number:
                seconds += 600
            assert (await line.ask(target)).body == IMAGE
            assert calls.number == expected


async def test_altered_small_file_is_not_shown(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(store={"hot_bytes_max": 0})
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    (path,) = imgkeep.files("objects")
    path.write_bytes(IMAGE[:-1] + b"x")
    async with connect(port_of(imgkeep)) as line:
        answer = await line.ask(target)
        assert (answer.body, answer.headers["cache-status"]) == (IMAGE, "imgkeep; fwd=uri-miss; stored")


# --- counted and recorded alike


async def test_cached_response_is_counted_and_logged_like_any_other(
    imgkeep: Imgkeep, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    with caplog.at_level(logging.INFO, "imgkeep.access"):
        caplog.clear()
        await ask(imgkeep, target)
        async with connect(port_of(imgkeep)) as line:
            await line.ask(target)
    facts = [
        {name: getattr(record, name) for name in ("client", "method", "route", "key", "outcome", "status", "bytes")}
        for record in caplog.records
    ]
    assert len(facts) == 2
    assert facts[0] == facts[1]
    page = services_of(imgkeep).metrics.page().decode()
    assert 'imgkeep_requests_total{outcome="hit",route="/img",status="200"} 3.0' in page
    assert 'imgkeep_request_seconds_count{route="/img"} 4.0' in page


# --- slow and idle clients


async def test_cached_response_keeps_a_connection_open(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """This is what the fast path writes `_next_keepalive_close_time` of aiohttp for."""
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    async with wired(imgkeep) as (connection, wire):
        connection._next_keepalive_close_time = 0.0
        connection.data_received(request(target, close=False))
        assert wire.taken > len(IMAGE)
        assert connection._next_keepalive_close_time > asyncio.get_running_loop().time()


async def test_idle_connection_is_closed_after_a_cached_response(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    async with serve_impatiently(imgkeep.folder) as (port, _), connect(port) as line:
        for _ in range(2):
            assert (await line.ask(target)).body == IMAGE
        assert await line.is_closed()


async def test_request_waits_for_one_that_aiohttp_gets_in_steps(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    async with wired(imgkeep) as (connection, wire):
        connection.data_received(request("/healthz", f"Cookie: {'a' * 3 * PARSE_STEP_BYTES}", close=False))
        connection.data_received(request(target, close=False))
        assert wire.taken == 0
        await until(lambda: wire.taken > len(IMAGE))
        assert wire.sent.partition(b"\r\n\r\n")[2].startswith(b"ok\n")
        assert wire.sent.endswith(IMAGE)


async def test_handler_without_a_response_ends_the_connection(
    imgkeep: Imgkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave(_handlers: ImageHandlers, _request: ImageRequest) -> HttpResponse:
        raise ConnectionResetError

    monkeypatch.setattr(ImageHandlers, "serve_source", leave)
    async with connect(port_of(imgkeep)) as line:
        line.writer.write(request("/img?src=x", close=False))
        assert await line.is_closed()


async def test_busy_connection_hands_over_when_its_response_is_sent(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    gate = asyncio.Event()
    slow = target_of(origin.on("/slow.png", gated_body(IMAGE, gate, ahead=1000)))
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert isinstance(server, HttpServer)
    async with wired(imgkeep) as (connection, wire):
        connection.data_received(request(slow, close=False))
        await until(lambda: connection._state is State.SENDING)
        fast_path_of(imgkeep).enabled = False
        connection.disable_fast_path()
        gate.set()
        await until(lambda: connection._state is State.HANDED_OVER)
        connection.data_received(request("/healthz", close=False))
        await until(lambda: wire.sent.endswith(b"ok\n"))


async def test_handed_over_connection_stays_so(imgkeep: Imgkeep) -> None:
    async with wired(imgkeep) as (connection, wire):
        connection.data_received(request("/healthz", "Connection: keep-alive, x", close=False))
        assert connection._state is State.HANDED_OVER
        connection.disable_fast_path()
        await until(lambda: wire.sent.endswith(b"ok\n"))


async def test_loaded_request_goes_to_aiohttp_once_the_fast_path_is_off(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(store={"hot_bytes_max": 25_000})
    services_of(imgkeep).image_service._dependencies.store.disk._page_cache.is_available = False  # type: ignore[attr-defined]
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    await cached_target(imgkeep, origin.gives("/b.png", png_of(20_000, seed=1)))  # which evicts it from memory
    async with wired(imgkeep) as (connection, wire):
        connection.data_received(request(target, close=False))
        assert connection._state is State.LOADING
        connection.data_received(request("/healthz", close=False))
        fast_path_of(imgkeep).enabled = False
        connection.disable_fast_path()
        await until(lambda: wire.sent.endswith(b"ok\n"))
        await until(lambda: connection._state is State.HANDED_OVER)
        assert IMAGE in wire.sent


async def test_half_a_head_counts_as_idle(imgkeep: Imgkeep) -> None:
    async with serve_impatiently(imgkeep.folder) as (port, _), connect(port) as line:
        line.writer.write(b"GET /img?src=")
        assert await line.is_closed()


async def test_response_is_sent_before_the_server_stops(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", LARGE))
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert isinstance(server, web.Server)
    async with connect(port_of(imgkeep)) as line:
        line.writer.write(request(target, close=False))
        await line.reader.readuntil(b"\r\n\r\n")
        server.pre_shutdown()
        leaving = asyncio.create_task(server.shutdown(5))
        assert await line.reader.readexactly(len(LARGE)) == LARGE
        await leaving


async def test_first_request_begins_before_its_connection_closes(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    async with wired(imgkeep, idle=False) as (connection, wire):
        connection.data_received(request(target, close=False))
        assert connection._state is State.WAITING
        connection.close()
        await asyncio.wait_for(wire.closed.wait(), 20)
        assert wire.sent.endswith(IMAGE)


def test_private_names_of_aiohttp_exist() -> None:
    """Otherwise an upgrade that renames them shows as a connection that hangs."""
    slots = {name for kind in web.RequestHandler.__mro__ for name in getattr(kind, "__slots__", ())}
    assert {"_waiter", "_next_keepalive_close_time", "_current_request", "_reading_paused", "_buffer_paused"} <= slots
    assert callable(web.RequestHandler._pause_transport_reading)
    assert callable(web.RequestHandler._resume_transport_reading)
