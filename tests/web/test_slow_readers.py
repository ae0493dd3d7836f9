"""Readers who stop: whatever they were being sent, and however little of it is left, they are let go."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from imgkeep.web.fastpath.protocol import FastConnection
from imgkeep.web.fastpath.states import State

from tests.support.image_requests import cached_target, services_of, store_image
from tests.support.impatient_server import deaf_socket, serve_impatiently
from tests.support.origins import gated_body
from tests.support.pictures import picture_of
from tests.support.raw_http import request, target_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Imgkeep
    from tests.support.origins import FakeOrigin

    Start = Callable[..., Awaitable[Imgkeep]]

IMAGE = picture_of(20_000)
STALL_S = 0.05


class Wire(asyncio.Transport):
    """A transport that takes `room` bytes and holds what comes after them until somebody reads on."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 2**40
        self.taken = 0
        self.held = 0
        self.high = 65_536
        self.written = asyncio.Event()
        self.aborted = asyncio.Event()
        self.reads = True
        self.protocol: FastConnection | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del low
        self.high = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.held

    def write(self, data: object) -> None:
        assert isinstance(data, bytes | bytearray | memoryview)
        taken = min(self.room, len(data))
        self.room -= taken
        self.taken += taken
        was_paused = self.held > self.high
        self.held += len(data) - taken
        if self.held > self.high and not was_paused:
            assert self.protocol is not None
            self.protocol.pause_writing()
        self.written.set()

    def writelines(self, list_of_data: object) -> None:
        assert isinstance(list_of_data, tuple | list)
        self.write(b"".join(list_of_data))

    def read_on(self) -> None:
        """The other side takes all that is held."""
        self.taken += self.held
        self.held = 0
        assert self.protocol is not None
        self.protocol.resume_writing()

    def get_extra_info(self, name: str, default: object = None) -> object:
        del name
        return default

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def close(self) -> None: ...
    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted.set()


def is_idle(connection: FastConnection) -> bool:
    """Tell whether neither the fast path nor aiohttp has a request to answer."""
    return connection._state in {State.READY, State.HANDED_OVER} and connection._is_aiohttp_idle()


@asynccontextmanager
async def wired(imgkeep: Imgkeep) -> AsyncIterator[tuple[FastConnection, Wire]]:
    """Connect to a running imgkeep over a wire."""
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert server is not None
    connection, wire = server(), Wire()
    assert isinstance(connection, FastConnection)
    connection._context = replace(connection._context, stall_timeout_s=STALL_S)
    wire.protocol = connection
    connection.connection_made(wire)
    while not is_idle(connection):  # noqa: ASYNC110 - aiohttp tells nobody
        await asyncio.sleep(0)
    yield connection, wire
    connection.connection_lost(None)
    await asyncio.sleep(0)


async def ask_all(connection: FastConnection, wire: Wire, data: bytes) -> int:
    """Send a request and wait until it is answered; return the size of the answer."""
    before = wire.taken + wire.held
    while not is_idle(connection):  # noqa: ASYNC110 - aiohttp tells nobody
        await asyncio.sleep(0)
    connection.data_received(data)
    await wire.written.wait()
    wire.written.clear()
    while not is_idle(connection) and not wire.held:  # noqa: ASYNC110 - aiohttp tells nobody
        await asyncio.sleep(0.001)
    return wire.taken + wire.held - before


LONG_WAY = ("Connection: keep-alive, x",)


@pytest.mark.parametrize("fields", [(), LONG_WAY], ids=["quick", "long"])
@pytest.mark.parametrize("left", [1, 5000])
async def test_however_little_is_left_a_reader_who_stops_is_let_go(
    imgkeep: Imgkeep, origin: FakeOrigin, fields: tuple[str, ...], left: int
) -> None:
    """Whoever is only told to close waits for ever for the last bytes to be taken."""
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    other = origin.gives("/b.png", picture_of(5000, seed=1))
    await store_image(imgkeep, other)
    async with wired(imgkeep) as (connection, wire):
        await ask_all(connection, wire, request(target_of(other), close=False))  # the long way
        data = request(target, *fields, close=False)
        size = await ask_all(connection, wire, data)
        wire.room = size - left
        await ask_all(connection, wire, data)
        assert wire.held == left
        async with asyncio.timeout(20):
            await wire.aborted.wait()


async def test_a_reader_who_stops_in_an_answer_that_is_no_image_is_let_go(tmp_path: Path) -> None:
    async with serve_impatiently(tmp_path) as (port, _):
        sock = await asyncio.to_thread(deaf_socket, port)
        sock.settimeout(5)
        data = request("/openapi.json", close=False)
        try:
            # Until nothing fits any more, which ends in a reset: it is the server that gives up first.
            with suppress(ConnectionError):
                while True:
                    await asyncio.to_thread(sock.sendall, data * 100)
        finally:
            sock.close()


async def test_who_was_slow_to_take_an_answer_may_be_idle_as_long_as_any_other(
    imgkeep: Imgkeep, origin: FakeOrigin
) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    async with wired(imgkeep) as (connection, wire):
        wire.room = 100
        await ask_all(connection, wire, request(target, close=False))
        connection._next_keepalive_close_time = 0.0  # as if that had taken long
        wire.read_on()
        assert connection._next_keepalive_close_time > asyncio.get_running_loop().time()


async def test_who_waits_for_a_disk_is_not_idle(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(store={"hot_bytes_max": 25_000})
    store = services_of(imgkeep).image_service._dependencies.store
    store._cached_files.works = False  # type: ignore[attr-defined]
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    await cached_target(imgkeep, origin.gives("/b.png", picture_of(20_000, seed=1)))  # which takes its place in memory
    async with wired(imgkeep) as (connection, wire):
        connection._next_keepalive_close_time = 0.0
        connection.data_received(request(target, close=False))
        assert not wire.written.is_set(), "its bytes are being brought"
        connection._process_keepalive()
        assert connection._next_keepalive_close_time > asyncio.get_running_loop().time()
        await wire.written.wait()


async def test_who_asks_for_more_than_is_answered_is_not_heard_for_a_while(
    imgkeep: Imgkeep, origin: FakeOrigin
) -> None:
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
        while wire.taken < len(IMAGE) + sent * 100 or not wire.reads:  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(0.001)
