"""
One flight per key, many passengers (asyncio, no I/O).

`SingleFlight` sees to it that one fill per key is in the air; `Watermark` lets any number of readers follow what the fill has
brought so far, each at its own speed. Neither knows what a fill does.

The interleaving that matters, step by step:

1. A asks, finds nothing, and departs: the flight is under its key before anybody else can run.
2. B asks, finds nothing yet, and joins A's flight.
3. The flight lands: the key is dropped *first*, then everybody who waits is told. Whoever asks from now on starts
   with a look-up of its own, so nobody can join a flight that is over, and a follower that wants a try of its own
   finds the key free.
4. C looked up before A's flight landed and wants to depart after it: between a look-up and `join` there must be no
   `await`, or the look-up has to be made again. The caller sees to that (`images/service.py`).
"""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from imgkeep.core.errors import ImgkeepError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Call(Protocol):
    """Something that runs once and tells those who wait how it ended."""

    async def run(self) -> None:
        """Do the work. An exception is given to `fail`."""

    def fail(self, error: BaseException) -> None:
        """Tell those who wait that nothing more will come. Called after the key was dropped."""

    async def aclose(self) -> None:
        """Release what the flight itself holds."""


F = TypeVar("F", bound=Call)


class SingleFlight(Generic[F]):
    """The flights in the air by key. A flight owns its task: passengers who leave do not disturb it."""

    def __init__(self) -> None:
        self._in_flight: dict[Hashable, F] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._in_flight)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._in_flight

    def find(self, key: Hashable) -> F | None:
        """Return the flight of this key, if there is one."""
        return self._in_flight.get(key)

    def join(self, key: Hashable, depart: Callable[[], F]) -> tuple[F, bool]:
        """Return the flight of this key, and whether it departs only now."""
        flight = self._in_flight.get(key)
        if flight is not None:
            return flight, False
        flight = self._in_flight[key] = depart()
        task = asyncio.create_task(self._run(key, flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight, True

    async def drain(self) -> None:
        """Wait until everything that is in the air has landed. The caller sets the time limit."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Break off what is still in the air."""
        # A task that is cancelled before its first step never takes it: its passengers would wait for ever.
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await self.drain()

    async def _run(self, key: Hashable, flight: F) -> None:
        try:
            await flight.run()
        except BaseException as error:
            del self._in_flight[key]
            flight.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            del self._in_flight[key]
        finally:
            await flight.aclose()


class Watermark:
    """How far a growing body has come, and those who wait for more of it."""

    def __init__(self) -> None:
        self.height = 0
        """How many bytes readers may have."""
        self.ended = False
        self.error: BaseException | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def advance(self, height: int) -> None:
        """Let readers have the bytes up to `height`."""
        self.height = height
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more will come, for good or because of `error`."""
        if not self.ended:
            self.ended = True
            self.error = error
            self._wake()

    async def beyond(self, offset: int) -> int:
        """
        Wait until there is more than `offset` bytes or the end is reached; return the height.

        Raises:
            BaseException: What the watermark ended with; bytes below the height can be read nevertheless.
        """
        while self.height <= offset and not self.ended:
            # One for each who waits: whoever is cancelled takes nobody along.
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        if self.height <= offset and self.error is not None:
            # A copy: what is raised knows by its traceback who waits here, and through them all that the flight held.
            raise copy.copy(self.error) if isinstance(self.error, ImgkeepError) else self.error
        return self.height

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
