"""
The sending side of a connection: what the client has not taken yet, how quickly it takes it, and who waits for the end.

A client that takes nothing for too long is broken off: it would hold a body, and a place, for ever.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imgkeep.web.responses import FAST_BYTES_PER_S, UNSENT_BYTES_FAST, UNSENT_BYTES_MAX, limit_kernel_buffer

if TYPE_CHECKING:
    from collections.abc import Callable


class FlowControl:
    """
    Is told when writing to `transport` pauses and resumes.

    Attributes:
        busy: Whether something is left to send.

    Args:
        stall_timeout_s: So long a client may take nothing.
        taken: Called when a client that is slow has taken some.
    """

    __slots__ = ("_backlog", "_fast", "_loop", "_sent", "_stall", "_stall_timeout_s", "_taken", "_transport", "busy")

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        stall_timeout_s: float,
        taken: Callable[[], None],
    ) -> None:
        self.busy = False
        self._transport = transport
        self._loop = loop
        self._stall_timeout_s = stall_timeout_s
        self._taken = taken
        self._sent: asyncio.Future[None] | None = None
        """Somebody waits for the end of what is being sent."""
        self._stall: asyncio.TimerHandle | None = None
        self._backlog = (0, 0.0)
        """How much was left to send when writing was paused, and when that was."""
        self._fast = False
        """Whether the client took what it was sent so quickly that the kernel may hold more of it."""
        transport.set_write_buffer_limits(high=0)  # so that we are told of anything that is not sent at once
        limit_kernel_buffer(transport)

    def pause(self) -> None:
        """Not all could be sent at once."""
        self.busy = True
        self._backlog = (self._transport.get_write_buffer_size(), self._loop.time())
        self._watch()

    def resume(self) -> None:
        """Everything was taken: have the kernel hold more, or again less, by how long that took."""
        left, since = self._backlog
        is_fast = left >= FAST_BYTES_PER_S * (self._loop.time() - since)
        if left > UNSENT_BYTES_MAX and is_fast != self._fast:
            self._fast = is_fast
            limit_kernel_buffer(self._transport, UNSENT_BYTES_FAST if is_fast else UNSENT_BYTES_MAX)
        self.end()

    def end(self) -> None:
        """Nothing is left to send, or nobody to send it to."""
        self.busy = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    async def drain(self) -> None:
        """Wait for the end of what is being sent."""
        while self.busy:
            if self._sent is None or self._sent.done():
                self._sent = self._loop.create_future()
            await asyncio.shield(self._sent)

    def _watch(self) -> None:
        size = self._transport.get_write_buffer_size()
        self._stall = self._loop.call_later(self._stall_timeout_s, self._check, size)

    def _check(self, size: int) -> None:
        if self._transport.get_write_buffer_size() >= size:
            self._transport.abort()
            return
        self._taken()
        self._watch()
