"""
Flow control of a connection: how much of a response waits for its client, how quickly the client reads, and who waits
for the end.

A client that reads nothing for too long is disconnected: it would hold a body and a descriptor for ever.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

UNSENT_BYTES_MAX: Final = 131_072
"""
Maximum number of bytes that the kernel holds for one connection beyond what is on its way: enough to keep a line busy
between two pieces.
"""
FAST_UNSENT_BYTES_MAX: Final = 1_048_576
"""The same for a client that reads fast: to fill up every 128 KiB costs half of the processor's time."""
FAST_BYTES_PER_S: Final = 10_485_760
"""Minimum rate of a fast client: it leaves no more than a tenth of a second's worth unread."""


class FlowControl:
    """
    Flow control of one connection. It learns from asyncio when writing to `transport` pauses and resumes.

    Attributes:
        busy: Whether bytes wait to be sent.

    Args:
        stall_timeout_s: Timeout for a client that reads nothing.
        on_progress: Is called when a slow client has read some bytes.
    """

    __slots__ = (
        "_backlog",
        "_is_fast",
        "_loop",
        "_on_progress",
        "_sent",
        "_stall",
        "_stall_timeout_s",
        "_transport",
        "busy",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        stall_timeout_s: float,
        on_progress: Callable[[], None],
    ) -> None:
        self.busy = False
        self._transport = transport
        self._loop = loop
        self._stall_timeout_s = stall_timeout_s
        self._on_progress = on_progress
        self._sent: asyncio.Future[None] | None = None
        """Done when all bytes are sent; `None` while no task waits for that."""
        self._stall: asyncio.TimerHandle | None = None
        self._backlog = (0, 0.0)
        """Number of bytes that waited when writing was paused, and when that was."""
        self._is_fast = False
        transport.set_write_buffer_limits(high=0)  # so that asyncio pauses for anything that is not sent at once
        limit_kernel_buffer(transport)

    def pause(self) -> None:
        """Note that asyncio could not send everything at once."""
        self.busy = True
        self._backlog = (self._transport.get_write_buffer_size(), self._loop.time())
        self._watch()

    def resume(self) -> None:
        """Note that everything was sent, and let the kernel hold more or less by how long that took."""
        unsent, since = self._backlog
        is_fast = unsent >= FAST_BYTES_PER_S * (self._loop.time() - since)
        if unsent > UNSENT_BYTES_MAX and is_fast != self._is_fast:
            self._is_fast = is_fast
            limit_kernel_buffer(self._transport, FAST_UNSENT_BYTES_MAX if is_fast else UNSENT_BYTES_MAX)
        self.end()

    def end(self) -> None:
        """Note that nothing is left to send, or no client to send it to."""
        self.busy = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    async def drain(self) -> None:
        """Wait until everything is sent."""
        while self.busy:
            if self._sent is None or self._sent.done():
                self._sent = self._loop.create_future()
            await asyncio.shield(self._sent)

    def _watch(self) -> None:
        size = self._transport.get_write_buffer_size()
        self._stall = self._loop.call_later(self._stall_timeout_s, self._check_progress, size)

    def _check_progress(self, size: int) -> None:
        if self._transport.get_write_buffer_size() >= size:
            self._transport.abort()
            return
        self._on_progress()
        self._watch()


def limit_kernel_buffer(transport: asyncio.WriteTransport, unsent_bytes_max: int = UNSENT_BYTES_MAX) -> None:
    """Let the kernel hold few bytes that are not on their way yet: it would hold megabytes."""
    sock = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_NOTSENT_LOWAT") and sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes_max)
