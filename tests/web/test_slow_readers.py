"""Clients that stop reading: they are disconnected, however little of whichever response is left."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.image_requests import cached_target, services_of, store_image
from tests.support.images import png_of
from tests.support.impatient_server import deaf_socket, serve_impatiently
from tests.support.origins import gated_body
from tests.support.raw_http import request, target_of
from tests.support.wire import Wire, is_idle, wired

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from imgkeep.web.fastpath.protocol import FastConnection
    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

IMAGE = png_of(20_000)
STALL_S = 0.05


async def ask_all(connection: FastConnection, wire: Wire, data: bytes) -> int:
    """Send a request and wait until it is answered; return the size of the response."""
    before = wire.taken + wire.held
    while not is_idle(connection):  # noqa: ASYNC110 - aiohttp sets no event
        await asyncio.sleep(0)
    connection.data_received(data)
    await wire.written.wait()
    wire.written.clear()
    while not is_idle(connection) and not wire.held:  # noqa: ASYNC110 - aiohttp sets no event
        await asyncio.sleep(0.001)
    return wire.taken + wire.held - before


OVER_AIOHTTP = ("Connection: keep-alive, x",)


@pytest.mark.parametrize("fields", [(), OVER_AIOHTTP], ids=["fast path", "aiohttp"])
@pytest.mark.parametrize("left", [1, 5000])
async def test_stalled_client_is_disconnected_however_little_is_left(
    imgkeep: Imgkeep, origin: FakeOrigin, fields: tuple[str, ...], left: int
) -> None:
    """To close would not do: a transport that closes waits for ever until its client takes the last bytes."""
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    other = origin.gives("/b.png", png_of(5000, seed=1))
    await store_image(imgkeep, other)
    async with wired(imgkeep, stall_timeout_s=STALL_S) as (connection, wire):
        await ask_all(connection, wire, request(target_of(other), close=False))  # a handler
        data = request(target, *fields, close=False)
        size = await ask_all(connection, wire, data)
        wire.room = size - left
        await ask_all(connection, wire, data)
        assert wire.held == left
        async with asyncio.timeout(20):
            await wire.aborted.wait()


async def test_stalled_client_of_another_response_is_disconnected(tmp_path: Path) -> None:
    async with serve_impatiently(tmp_path) as (port, _):
        sock = await asyncio.to_thread(deaf_socket, port)
        sock.settimeout(5)
        data = request("/openapi.json", close=False)
        try:
            # Until nothing fits any more, and the server gives up and resets the connection.
            with suppress(ConnectionError):
                while True:
                    await asyncio.to_thread(sock.sendall, data * 100)
        finally:
            sock.close()


async def test_idle_time_of_a_slow_client_begins_when_it_has_the_response(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    async with wired(imgkeep) as (connection, wire):
        wire.room = 100
        await ask_all(connection, wire, request(target, close=False))
        connection._next_keepalive_close_time = 0.0  # as if reading had taken long
        wire.read_on()
        assert connection._next_keepalive_close_time > asyncio.get_running_loop().time()


async def test_client_that_waits_for_a_disk_is_not_idle(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(store={"hot_bytes_max": 25_000})
    store = services_of(imgkeep).image_service._dependencies.store
    store.disk._page_cache.is_available = False  # type: ignore[attr-defined]
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    await cached_target(imgkeep, origin.gives("/b.png", png_of(20_000, seed=1)))  # which evicts it from memory
    async with wired(imgkeep) as (connection, wire):
        connection._next_keepalive_close_time = 0.0
        connection.data_received(request(target, close=False))
        assert not wire.written.is_set(), "its bytes are being loaded"
        connection._process_keepalive()
        assert connection._next_keepalive_close_time > asyncio.get_running_loop().time()
        await wire.written.wait()


async def test_pipelining_client_is_not_read_while_enough_waits(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    gate = asyncio.Event()
    slow = target_of(origin.on("/slow.png", gated_body(IMAGE, gate, ahead=1000)))
    async with wired(imgkeep) as (connection, wire), asyncio.timeout(20):
        connection.data_received(request(slow, close=False))
        sent = 0
        while wire.reads and sent < 10_000:
            connection.data_received(request("/healthz", close=False))
            sent += 1
        assert not wire.reads
        assert len(connection._buffer) < 20_000
        gate.set()
        while wire.taken < len(IMAGE) + sent * 100 or not wire.reads:  # noqa: ASYNC110 - aiohttp sets no event
            await asyncio.sleep(0.001)
