"""
The threads of one disk, and the patience with it.

Rules:
- No file work on the event loop. Whoever waits may be cancelled or lose patience; the work in the thread ends all the
  same, and what it opened is closed then.
- An operating system error becomes a `StorageError` that names the trouble and no path.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, runtime_checkable

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S: Final = 30
"""A disk that takes longer is as good as gone. A spinning one that wakes up takes ten."""
LATE_S: Final = 0.005
"""Short work takes a fiftieth of it. Whatever has waited for longer is behind some that does not."""

T = TypeVar("T")


@runtime_checkable
class Closable(Protocol):
    """What work in a thread may have opened for somebody who does not wait any more."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Short:
    """Short work, and who waits for it."""

    work: Callable[..., Any]
    args: tuple[object, ...]
    answer: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class DiskExecutor:
    """Runs the work of one disk. A disk answers a few at a time: more threads would only wait."""

    def __init__(self, number: int = 8, *, timeout_s: float = TIMEOUT_S, place: str = "") -> None:
        self._number = number
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="disk")
        self._timeout_s = timeout_s
        self._place = place
        """What faults say of where they were met."""
        self._short: deque[_Short] = deque()
        self._done: deque[_Short] = deque()
        """What threads have done and nobody was told of."""
        self._at_work = 0
        """DiskExecutor that do short work."""
        self._set_off = False
        """Whether the short work that waits is looked at in a turn to come."""
        self._watched = False
        """Whether a look is due at those threads."""

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """
        Run `work` in a thread.

        Raises:
            StorageError: It failed or took too long.
        """
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work, *args)
        answer: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(partial(_pass_on, answer))
        try:
            return await self._wait(loop, answer)
        finally:
            if not future.done():
                future.add_done_callback(_release)

    async def run_batched(self, work: Callable[..., T], *args: object) -> T:
        """
        Run `work`, which opens nothing and takes no time on a disk that is well, in a thread.

        All that is asked for in one turn of the loop is done by one thread: to wake another, and to be woken by it,
        costs ten times as much as to look for a file. Raises as `run`.
        """
        loop = asyncio.get_running_loop()
        short = _Short(work, args, loop.create_future())
        self._short.append(short)
        if not self._set_off:
            self._set_off = True
            loop.call_soon(self._set_to_work, loop)
        return await self._wait(loop, short.answer)

    def close(self) -> None:
        """Take no more work; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _wait(self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T]) -> T:
        # What `asyncio.timeout` around `asyncio.shield` would do, at a third of its cost: every image comes by here.
        patience = loop.call_later(self._timeout_s, _lose_patience, answer)
        try:
            return await answer
        except OSError as error:
            raise fault(error, self._place) from None
        except StorageError as error:
            error.place = error.place or self._place
            raise
        finally:
            patience.cancel()

    def _set_to_work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake a thread for the short work that waits."""
        self._set_off = False
        if not self._short or self._at_work >= self._number:
            return
        try:
            self._pool.submit(self._work, loop)
        except RuntimeError:  # closed
            while self._short:
                self._short.popleft().answer.cancel()
            return
        self._at_work += 1
        if not self._watched:
            self._watched = True
            loop.call_later(LATE_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread may be held up: what it has done before is told, and what is behind it gets another."""
        self._tell()
        self._watched = self._at_work > 0
        if self._watched:
            loop.call_later(LATE_S, self._look, loop)
            self._set_to_work(loop)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do short work until none is left. In a thread."""
        while True:
            try:
                short = self._short.popleft()
            except IndexError:
                break
            try:
                short.result = short.work(*short.args)
            except BaseException as error:  # noqa: BLE001 - who waits is told, whatever it is
                short.error = error
            self._done.append(short)
        loop.call_soon_threadsafe(self._end_work, loop)

    def _end_work(self, loop: asyncio.AbstractEventLoop) -> None:
        self._at_work -= 1
        self._tell()
        self._set_to_work(loop)  # what came while all were at work

    def _tell(self) -> None:
        while self._done:
            short = self._done.popleft()
            if short.answer.done():
                continue
            if short.error is None:
                short.answer.set_result(short.result)
            else:
                short.answer.set_exception(short.error)


def _pass_on(answer: asyncio.Future[T], future: asyncio.Future[T]) -> None:
    if answer.done():
        return
    if future.cancelled():
        answer.cancel()
    elif (error := future.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(future.result())


def _lose_patience(answer: asyncio.Future[T]) -> None:
    if not answer.done():
        answer.set_exception(StorageError("the disk of the store does not answer"))


def _release(future: asyncio.Future[T]) -> None:
    result = None if future.cancelled() or future.exception() else future.result()
    if isinstance(result, Closable):
        result.close()


def fault(error: OSError, place: str = "") -> StorageError:
    """Name the trouble without the path, which clients must not read."""
    return StorageError(f"the disk of the store failed: {os.strerror(error.errno or errno.EIO)}", place=place)
