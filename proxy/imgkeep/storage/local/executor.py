"""
The threads of one disk, and the timeout for its work.

Rules:
- No file work runs on the event loop. A caller may be cancelled or time out; the work in the thread goes on to its end,
  and what it opened is closed then.
- An operating system error becomes a `StorageError` that names the cause and no path.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S: Final = 30
"""Timeout for one piece of work: a disk that takes longer is lost. A spinning disk that wakes up takes ten seconds."""
LATE_S: Final = 0.005
"""Maximum age of a batch that is not late: short work takes a fiftieth of it, so an older batch waits for slow work."""

T = TypeVar("T")


@dataclass(slots=True)
class _ShortWork:
    """Short work, its result, and the future of its caller."""

    work: Callable[..., Any]
    args: tuple[object, ...]
    answer: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class DiskExecutor:
    """
    The threads for the work of one disk. A disk serves a few requests at a time: more threads would only wait.

    Args:
        number: Maximum number of threads.
        place: Name of the disk in faults.
    """

    def __init__(self, number: int = 8, *, timeout_s: float = TIMEOUT_S, place: str = "") -> None:
        self._number = number
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="disk")
        self._timeout_s = timeout_s
        self._place = place
        self._waiting: deque[_ShortWork] = deque()
        self._finished: deque[_ShortWork] = deque()
        """Work that threads have finished and whose callers do not know it yet."""
        self._batches = 0
        """Threads that do short work."""
        self._start_scheduled = False
        """Whether the event loop starts a batch in its next iteration."""
        self._check_scheduled = False
        """Whether a check for late batches is scheduled."""

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """
        Run `work` in a thread.

        Raises:
            StorageError: It failed or took too long.
        """
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work, *args)
        answer: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(partial(_copy_outcome, answer))
        try:
            return await self._wait(loop, answer)
        finally:
            if not future.done():
                future.add_done_callback(_close_result)

    async def run_batched(self, work: Callable[..., T], *args: object) -> T:
        """
        Run `work`, which opens nothing and takes no time on a healthy disk, in a thread.

        One thread does all work of one iteration of the event loop: waking a thread, and being woken by it, costs ten
        times as much as looking up a file. Raises as `run`.
        """
        loop = asyncio.get_running_loop()
        short = _ShortWork(work, args, loop.create_future())
        self._waiting.append(short)
        if not self._start_scheduled:
            self._start_scheduled = True
            loop.call_soon(self._start_batch, loop)
        return await self._wait(loop, short.answer)

    def close(self) -> None:
        """Take no more work; running work ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _wait(self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T]) -> T:
        # What `asyncio.timeout` around `asyncio.shield` would do, at a third of its cost: every image passes here.
        timer = loop.call_later(self._timeout_s, _time_out, answer)
        try:
            return await answer
        except OSError as error:
            raise fault(error, self._place) from None
        except StorageError as error:
            error.place = error.place or self._place
            raise
        finally:
            timer.cancel()

    def _start_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the waiting short work to a thread."""
        self._start_scheduled = False
        if not self._waiting or self._batches >= self._number:
            return
        try:
            self._pool.submit(self._run_batch, loop)
        except RuntimeError:  # closed
            while self._waiting:
                self._waiting.popleft().answer.cancel()
            return
        self._batches += 1
        if not self._check_scheduled:
            self._check_scheduled = True
            loop.call_later(LATE_S, self._check_late, loop)

    def _check_late(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver what a slow batch has finished, and give the work behind it to another thread."""
        self._deliver()
        self._check_scheduled = self._batches > 0
        if self._check_scheduled:
            loop.call_later(LATE_S, self._check_late, loop)
            self._start_batch(loop)

    def _run_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do short work until none is left. In a thread."""
        while True:
            try:
                short = self._waiting.popleft()
            except IndexError:
                break
            try:
                short.result = short.work(*short.args)
            except BaseException as error:  # noqa: BLE001 - its caller gets it, whatever it is
                short.error = error
            self._finished.append(short)
        loop.call_soon_threadsafe(self._end_batch, loop)

    def _end_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._batches -= 1
        self._deliver()
        self._start_batch(loop)  # work that came while all threads were busy

    def _deliver(self) -> None:
        while self._finished:
            short = self._finished.popleft()
            if short.answer.done():
                continue
            if short.error is None:
                short.answer.set_result(short.result)
            else:
                short.answer.set_exception(short.error)


def _copy_outcome(answer: asyncio.Future[T], future: asyncio.Future[T]) -> None:
    if answer.done():
        return
    if future.cancelled():
        answer.cancel()
    elif (error := future.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(future.result())


def _time_out(answer: asyncio.Future[T]) -> None:
    if not answer.done():
        answer.set_exception(StorageError("the disk of the store does not answer"))


def _close_result(future: asyncio.Future[T]) -> None:
    """Close what work has opened for a caller that does not wait any more."""
    result = None if future.cancelled() or future.exception() else future.result()
    close = getattr(result, "close", None)
    if close is not None:
        close()


def fault(error: OSError, place: str = "") -> StorageError:
    """Return an operating system error as a `StorageError`, without the path, which clients must not read."""
    return StorageError(f"the disk of the store failed: {os.strerror(error.errno or errno.EIO)}", place=place)
