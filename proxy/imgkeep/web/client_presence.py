"""
Whether the client of a connection is still there, for handlers that wait long on its behalf.

A handler is not cancelled wherever it happens to be: what it opens would be lost. It says where it may be interrupted,
by waiting there with `ClientPresence.wait`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class ClientPresence:
    """The client of one connection."""

    __slots__ = ("_gone", "_waiting")

    def __init__(self) -> None:
        self._gone = False
        self._waiting: asyncio.Task[object] | None = None

    async def wait(self, awaited: Awaitable[T]) -> T:
        """
        Wait for something as long as the client is there.

        Raises:
            ConnectionResetError: It has left.
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
        """The connection is closed."""
        self._gone = True
        if self._waiting is not None:
            self._waiting.cancel()
