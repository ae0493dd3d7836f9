"""
Client presence: tells a handler that waits for long whether its client is still connected.

The server does not cancel a handler at an arbitrary await: what the handler has opened would leak. A handler states
where it may be interrupted, by waiting there with `ClientPresence.wait`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class ClientPresence:
    """The presence of the client of one connection."""

    __slots__ = ("_gone", "_waiting")

    def __init__(self) -> None:
        self._gone = False
        self._waiting: asyncio.Task[object] | None = None

    async def wait(self, awaited: Awaitable[T]) -> T:
        """
        Wait for a result as long as the client is there.

        Raises:
            ConnectionResetError: The client has left.
        """
        task = asyncio.current_task()
        assert task is not None
        self._waiting = task
        try:
            if self._gone:
                task.cancel()
            return await awaited
        except asyncio.CancelledError:
            if not self._gone or task.uncancel():
                raise
            raise ConnectionResetError("the client has left") from None
        finally:
            self._waiting = None

    def leave(self) -> None:
        """Note that the connection is closed, and interrupt the handler that waits."""
        self._gone = True
        if self._waiting is not None:
            self._waiting.cancel()
