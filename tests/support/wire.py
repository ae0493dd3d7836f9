"""A connection to imgkeep without a network: a test decides how many bytes its client takes, and when."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from imgkeep.web.fastpath.protocol import FastConnection
from imgkeep.web.fastpath.states import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.server import Imgkeep


class Wire(asyncio.Transport):
    """A transport whose client takes `room` bytes; what comes after them is held until `read_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 2**40
        self.taken = 0
        self.sent = b""
        self.held = 0
        self.high = 65_536
        self.written = asyncio.Event()
        self.aborted = asyncio.Event()
        self.closed = asyncio.Event()
        self.reads = True
        self.protocol: FastConnection | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del low
        self.high = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.held

    def write(self, data: object) -> None:
        assert isinstance(data, bytes | bytearray | memoryview)
        self.sent += data
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
        """Let the client take everything that is held."""
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

    def close(self) -> None:
        self.closed.set()

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted.set()


def is_idle(connection: FastConnection) -> bool:
    """Tell whether neither the fast path nor aiohttp has a request to answer."""
    return connection._state in {State.READY, State.HANDED_OVER} and connection._is_aiohttp_idle()


@asynccontextmanager
async def wired(
    imgkeep: Imgkeep, *, stall_timeout_s: float = 60, idle: bool = True
) -> AsyncIterator[tuple[FastConnection, Wire]]:
    """Connect to a running imgkeep over a wire, on the fast path; with `idle`, wait until it expects a request."""
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert server is not None
    connection, wire = server(), Wire()
    assert isinstance(connection, FastConnection)
    connection._context = replace(connection._context, stall_timeout_s=stall_timeout_s)
    wire.protocol = connection
    connection.connection_made(wire)
    while idle and not is_idle(connection):  # noqa: ASYNC110 - aiohttp sets no event
        await asyncio.sleep(0)
    yield connection, wire
    connection.connection_lost(None)
    await asyncio.sleep(0)
