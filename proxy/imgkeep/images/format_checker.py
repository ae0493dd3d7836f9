"""
Format checks of images: their type, their size in pixels, and whether they are complete.

The bytes come from untrusted servers and decide how long a check takes, so:
- The event loop checks the first bytes: within `LOOP_STEPS_MAX` steps for all passes over one image, and within
  `ITERATION_STEPS_MAX` for all images in one iteration of the loop. An image that takes more is checked again in a
  thread, once its whole head is there. Threads also check whole files.
- These threads do nothing else: neither a disk nor a name server waits for an image.
- A thread cannot be killed. Each check ends by its budget of steps, and yields the interpreter after every
  `STEPS_BETWEEN_PAUSES` of them.
- There are two queues. The quick one is enough for almost every image; an image that takes more goes to the slow one,
  so that it delays only others like it.
- Each queue serves the clients round-robin, and a client has at most an eighth of it: an image waits for those of its
  own client and for one of each other client, however many one of them sends.
- An image whose check takes too many steps is `NotAnImage`. One that finds the queue full is `Busy`, which says nothing
  about the image. Neither says anything about a store.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from imgkeep.core.errors import Busy, NotAnImage, StorageError
from imgkeep.core.formats import (
    HEAD_BYTES_MAX,
    LOOP_STEPS_MAX,
    UNDECIDED,
    Budget,
    HeadReader,
    Spent,
    foresees_end,
    is_incomplete,
    is_whole,
    measure,
    sniff,
    steps_max,
)
from imgkeep.core.records import OWN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from imgkeep.core.formats import Buffer, Ending, Seen, Undecided
    from imgkeep.core.records import Client, Format, PixelSize
    from imgkeep.storage.interfaces import Draft

QUICK_STEPS_MAX: Final = 65_536
"""Maximum number of steps in the quick queue, some 30 ms: 4 MB of JPEG searched for its end, ten times most images."""
QUICK_THREADS: Final = 2
SLOW_THREADS: Final = 1
"""The interpreter runs one thread at a time: more threads are not faster, and hold more images in memory."""
ITERATION_STEPS_MAX: Final = 4_096
"""Maximum number of steps in one iteration of the event loop: two milliseconds, and seventy heads of good images."""
QUEUED_MAX: Final = 256
"""Maximum number of images in one queue: four times as many as are fetched at once by default, for uploads."""
CLIENT_SHARE: Final = 8
"""The share of a queue that one client has is an eighth, as it is of the slots for fetches."""
TIMEOUT_S: Final = 30
"""Timeout for waiting and checking: a check takes two seconds at most, so an image that takes longer was queued."""
PAUSE_S: Final = 0.000_1
"""Length of a pause, as long as the steps between two pauses take: half of the time the interpreter is free."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """The result of a check of a file that is framed whole. `is_incomplete`: by its format, bytes are missing."""

    format: Format
    pixel_size: PixelSize | None
    is_incomplete: bool


class FormatChecker:
    """
    Format checks for all fills and uploads of a process.

    Args:
        queued_max: Maximum number of images that wait in each queue, besides those that are being checked.
        timeout_s: Timeout for waiting and checking.
        pause: Is called in a checking thread between its steps. Tests hold a thread with it.
    """

    def __init__(
        self,
        *,
        queued_max: int = QUEUED_MAX,
        timeout_s: float = TIMEOUT_S,
        pause: Callable[[], None] = lambda: time.sleep(PAUSE_S),
    ) -> None:
        self._quick = _CheckQueue("format-check", QUICK_THREADS, queued_max, timeout_s, pause)
        self._slow = _CheckQueue("format-check-slow", SLOW_THREADS, queued_max, timeout_s, pause)
        self._iteration_steps = 0
        """Steps of this iteration of the event loop."""

    @property
    def under_way(self) -> int:
        """Number of images that are checked in a thread or wait for one."""
        return self._quick.under_way + self._slow.under_way

    async def read_head(self, chunks: AsyncIterator[bytes], client: Client = OWN) -> tuple[bytes, Seen]:
        """
        Read until the type of an image is known and, where the header tells it early, its size; return the bytes too.

        `client`, here and below, is the client that the image is fetched for.

        Raises:
            NotAnImage: It is none, or takes too many steps to check.
            Busy: Too many images are being checked.
        """
        head = bytearray()
        ended = False
        budget = Budget(LOOP_STEPS_MAX)
        reader = HeadReader(budget)
        seen: Seen | Undecided | None = UNDECIDED
        try:
            while seen is UNDECIDED:
                ended = await _read_to(head, reader.look_at, chunks)
                await self._wait_for_steps()
                before = budget.taken
                try:
                    seen = reader.look(head, ended=ended)
                finally:
                    self._iteration_steps += budget.taken - before
        except Spent:
            ended = ended or await _read_to(head, HEAD_BYTES_MAX, chunks)
            seen = await self._run(lambda budget: HeadReader(budget).look(head, ended=ended), len(head), client)
        if seen is None or seen is UNDECIDED:
            raise NotAnImage("the answer is not an image of a supported format")
        return bytes(head), seen

    async def is_whole(self, draft: Draft, fmt: Format, client: Client = OWN) -> bool:
        """
        Tell whether the end of the format proves that the image in `draft` is complete.

        Raises:
            NotAnImage: It takes too many steps to tell.
            Busy: Too many images are being checked.
            StorageError: The draft cannot be read.
        """
        return await self._run(
            lambda budget: draft.check_blocking(lambda body: is_whole(fmt, body, budget)), draft.size, client
        )

    async def is_incomplete(self, draft: Draft, fmt: Format, client: Client = OWN) -> bool:
        """
        Tell whether an image that is framed whole is incomplete by its format. An image that cannot be checked now, or
        takes too many steps, counts as incomplete: the refetch checks it again.
        """
        try:
            return await self._run(
                lambda budget: draft.check_blocking(lambda body: is_incomplete(fmt, body, budget)), draft.size, client
            )
        except (NotAnImage, Busy, StorageError):
            return True

    async def foresees_end(self, ending: Ending, size: int) -> bool:
        """
        Tell on the event loop by the first bytes of an image, and by the size that its framing declares, whether it is
        complete. False says nothing.
        """
        await self._wait_for_steps()
        budget = Budget(LOOP_STEPS_MAX)
        try:
            return foresees_end(ending, size, budget)
        except Spent:
            return False
        finally:
            self._iteration_steps += budget.taken

    async def measure(self, draft: Draft, fmt: Format, client: Client = OWN) -> PixelSize | None:
        """Return the size in pixels that the whole file states. Raises as `is_whole`."""
        return await self._run(
            lambda budget: draft.check_blocking(lambda body: measure(fmt, body, budget)), draft.size, client
        )

    async def check(self, draft: Draft) -> CheckedImage | None:
        """Check a whole file; `None`: it is no image. Raises as `is_whole`."""
        if draft.size == 0:
            return None
        return await self._run(lambda budget: draft.check_blocking(lambda body: _check(body, budget)), draft.size, OWN)

    def close(self) -> None:
        """Accept no more images; running checks end soon by themselves."""
        self._quick.close()
        self._slow.close()

    async def _wait_for_steps(self) -> None:
        """Wait for an iteration of the event loop that has steps left."""
        while self._iteration_steps >= ITERATION_STEPS_MAX:  # noqa: ASYNC110 - the next iteration is what it waits for
            await asyncio.sleep(0)
        if self._iteration_steps == 0:
            asyncio.get_running_loop().call_soon(self._end_iteration)

    def _end_iteration(self) -> None:
        self._iteration_steps = 0

    async def _run(self, check: Callable[[Budget], T], size: int, client: Client) -> T:
        steps = steps_max(size)
        try:
            return await self._quick.run(check, min(steps, QUICK_STEPS_MAX), client)
        except Spent:
            pass
        try:
            return await self._slow.run(check, steps, client)
        except Spent:
            raise NotAnImage("the structure of the image takes too many steps to check") from None


class _QueuedCheck(Generic[T]):
    """One image in a queue. `abandoned`: nothing waits for the result any more."""

    def __init__(self, check: Callable[[Budget], T], steps: int, pause: Callable[[], None]) -> None:
        self.begun = False
        self.abandoned = False
        self._check = check
        self._steps = steps
        self._pause = pause

    def run(self) -> T:
        """Check the image. In a thread."""
        self._stop_if_abandoned()
        return self._check(Budget(self._steps, self._yield))

    def _yield(self) -> None:
        self._stop_if_abandoned()
        self._pause()
        self._stop_if_abandoned()

    def _stop_if_abandoned(self) -> None:
        if self.abandoned:
            raise Spent


class _CheckQueue:
    """Threads, and a queue before them that serves clients round-robin."""

    def __init__(self, name: str, threads: int, queued_max: int, timeout_s: float, pause: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threads
        self._slots = threads + queued_max
        self._share = max(1, queued_max // CLIENT_SHARE)
        self._timeout_s = timeout_s
        self._pause = pause
        self._closed = False
        self._queues: OrderedDict[str, OrderedDict[asyncio.Future[Any], _QueuedCheck[Any]]] = OrderedDict()
        """The queued checks by client; the client that is served next comes first."""
        self.under_way = 0

    async def run(self, check: Callable[[Budget], T], steps: int, client: Client) -> T:
        """
        Run `check` with a budget of `steps`.

        Raises:
            Spent: The budget was not enough.
            NotAnImage: The check took too long.
            Busy: The queue is full, or the check did not begin in time.
        """
        name = _name_of(client)
        self._check_slots(name, client)
        queued = _QueuedCheck(check, steps, self._pause)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(name, OrderedDict())[done] = queued
        self.under_way += 1
        self._start_next()
        try:
            # Not cancelled with its waiter: the slot is taken until the thread is free again.
            finished, _ = await asyncio.wait({done}, timeout=self._timeout_s)
            if finished:
                return done.result()
            queued.abandoned = True
            if queued.begun:
                raise NotAnImage("the image takes too long to check")
            raise Busy("too many images are being checked")
        except asyncio.CancelledError:
            queued.abandoned = True
            raise
        finally:
            self._remove(name, done)
            # An error holds this frame by its traceback, and the frame would hold the error: nothing would be freed.
            finished = set()
            del done

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check_slots(self, name: str, client: Client) -> None:
        if self._closed:
            raise Busy("the server is being shut down")
        if self.under_way >= self._slots:
            raise Busy("too many images are being checked")
        if not (client.own or client.loopback) and len(self._queues.get(name, ())) >= self._share:
            raise Busy("too many images are being checked for this address")

    def _start_next(self) -> None:
        """Start the next checks while threads are free."""
        while self._queues and self._free and not self._closed:
            name, queue = self._queues.popitem(last=False)
            done, queued = queue.popitem(last=False)
            if queue:
                self._queues[name] = queue
            self._free -= 1
            queued.begun = True
            future = asyncio.get_running_loop().run_in_executor(self._pool, queued.run)
            future.add_done_callback(partial(self._end, done))

    def _remove(self, name: str, done: asyncio.Future[Any]) -> None:
        """Free the slot of a check that has not begun; a check that has begun keeps its slot to its end."""
        queue = self._queues.get(name)
        if queue is not None and queue.pop(done, None) is not None:
            self.under_way -= 1
            if not queue:
                del self._queues[name]

    def _end(self, done: asyncio.Future[Any], future: asyncio.Future[Any]) -> None:
        self.under_way -= 1
        self._free += 1
        error = Busy("the server is being shut down") if future.cancelled() else future.exception()
        if not done.done():
            if error is None:
                done.set_result(future.result())
            else:
                done.set_exception(error)
                done.exception()  # marks it as retrieved: its waiter may have left
        self._start_next()


def _name_of(client: Client) -> str:
    """Return the name of a client here: the widest of its networks, `own` for the API and the jobs, `local`."""
    return "own" if client.own else "local" if client.loopback or not client.networks else client.networks[-1]


async def _read_to(head: bytearray, size: int, chunks: AsyncIterator[bytes]) -> bool:
    """Read into `head` up to `size` bytes; return whether the image ends there."""
    while len(head) < size:
        chunk = await anext(chunks, None)
        if chunk is None:
            return True
        head += chunk
    return False


def _check(body: Buffer, budget: Budget) -> CheckedImage | None:
    head = bytes(body[:HEAD_BYTES_MAX])
    fmt = sniff(head, ended=len(head) == len(body), budget=budget)
    if fmt is None or fmt is UNDECIDED:
        return None
    return CheckedImage(fmt, measure(fmt, body, budget), is_incomplete=is_incomplete(fmt, body, budget))
