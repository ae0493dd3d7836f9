"""Flow control: stalled clients, slow clients, and what the kernel holds for a fast one."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgkeep.web.connection import Connection
from imgkeep.web.flow_control import FAST_UNSENT_BYTES_MAX, UNSENT_BYTES_MAX, FlowControl
from tests.support.images import png_of
from tests.support.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep


@dataclass
class Timer:
    """The call that a loop has been asked to make later."""

    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Timers:
    """As much of an event loop as flow control needs. A test decides when a time is over."""

    timers: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return 0.0

    def call_later(self, _seconds: float, call: Callable[..., None], *arguments: Any) -> Timer:
        self.timers.append(Timer(lambda: call(*arguments)))
        return self.timers[-1]

    def pass_time(self) -> None:
        self.timers[-1].call()


def flow_of(wire: Wire, loop: Any, progress: list[int]) -> FlowControl:
    return FlowControl(wire, loop, stall_timeout_s=60, on_progress=lambda: progress.append(wire.held))


async def test_client_that_reads_nothing_for_too_long_is_disconnected() -> None:
    wire, timers, progress = Wire(), Timers(), list[int]()
    flow = flow_of(wire, timers, progress)
    wire.held = 3000
    flow.pause()
    assert flow.busy
    timers.pass_time()
    assert wire.aborted.is_set()
    assert progress == []


async def test_slow_client_is_not_disconnected() -> None:
    wire, timers, progress = Wire(), Timers(), list[int]()
    flow = flow_of(wire, timers, progress)
    wire.held = 3000
    flow.pause()
    for held in (2999, 2000, 1):
        wire.held = held
        timers.pass_time()
    assert progress == [2999, 2000, 1]
    assert not wire.aborted.is_set()
    timers.pass_time()
    assert wire.aborted.is_set(), "but once it stalls"


async def test_client_that_has_everything_is_not_watched() -> None:
    wire, timers = Wire(), Timers()
    flow = flow_of(wire, timers, [])
    wire.held = 3000
    flow.pause()
    wire.held = 0
    flow.resume()
    assert not flow.busy
    assert timers.timers[-1].cancelled


async def test_drain_ends_when_everything_is_sent() -> None:
    wire = Wire()
    flow = flow_of(wire, asyncio.get_running_loop(), [])
    await flow.drain()  # nothing waits
    wire.held = 3000
    flow.pause()
    drains = [asyncio.create_task(flow.drain()) for _ in range(2)]
    _, waiting = await asyncio.wait(drains, timeout=0.01)
    assert len(waiting) == 2
    drains[0].cancel()  # one that no longer waits takes nothing from the other
    flow.resume()
    await asyncio.wait_for(drains[1], 20)


async def test_kernel_holds_little_unless_the_client_is_fast(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(8_000_000))
    for _ in range(3):
        response = await imgkeep.img(url)
        await response.read()
    runner = imgkeep.client.server.runner
    assert runner is not None
    assert runner.server is not None
    (connection,) = runner.server.connections
    assert isinstance(connection, Connection)
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")
    flow = connection._flow
    left, _ = flow._backlog
    assert left > UNSENT_BYTES_MAX, "most of the last response waited"
    now = asyncio.get_running_loop().time
    for size, seconds, limit in (
        (left, 60, UNSENT_BYTES_MAX),
        (left, 0, FAST_UNSENT_BYTES_MAX),
        (1000, 60, FAST_UNSENT_BYTES_MAX),  # so few bytes tell nothing
        (left, 60, UNSENT_BYTES_MAX),
    ):
        connection.pause_writing()
        flow._backlog = (size, now() - seconds)
        connection.resume_writing()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == limit
