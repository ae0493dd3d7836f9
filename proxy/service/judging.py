"""
Judging images: what they are, how large, and whether they are whole.

A stranger's bytes decide how long that takes, so:
- The first bytes are judged on the event loop: within `LOOP_STEPS_MAX` steps of all looks at one image, and within
  `TURN_STEPS_MAX` of all images in one turn of the loop. What takes more is looked at once more, in a thread, when the
  whole head is there. So are whole files.
- The threads are for nothing else: neither a disk nor a name server waits behind an image.
- A thread cannot be killed. Every judgement ends by its budget of steps, and lets others have the interpreter after
  every `STEPS_BETWEEN_PAUSES` of them.
- There are two lanes. Almost every image is judged in the quick one; one that is not goes to the slow one and waits
  there for its like, so that it holds up no other.
- An image that takes too much is `NotAnImage`. One that finds no place is `Busy`, which says nothing about it. Neither
  says anything about a store.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from proxy.core.errors import Busy, NotAnImage
from proxy.core.model import Format
from proxy.core.sniff import (
    HEAD_BYTES_MAX,
    LOOP_STEPS_MAX,
    UNDECIDED,
    Budget,
    HeadReader,
    Spent,
    is_whole,
    measure,
    sniff,
    steps_max,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.core.model import PixelSize
    from proxy.core.sniff import Buffer, Seen, Undecided
    from proxy.ports import Draft

QUICK_STEPS_MAX: Final = 65_536
"""Some 30 ms: 4 MB of a JPEG that is searched for its end, and ten times what the structure of most images takes."""
QUICK_THREADS: Final = 2
SLOW_THREADS: Final = 1
"""The interpreter runs one thread at a time: more would not judge faster, and only wait with more images in memory."""
TURN_STEPS_MAX: Final = 4_096
"""Of all heads in one turn of the event loop: two milliseconds, and seventy heads of good images."""
WAITING_MAX: Final = 256
"""Images in one lane: four times as many as are fetched at once by default, for those that are handed in."""
TIMEOUT_S: Final = 30
"""For waiting and judging: an image takes two seconds at most, so what takes longer waits behind others."""
PAUSE_S: Final = 0.000_1
"""As long as the steps between two pauses take: half of the time the interpreter is free."""

T = TypeVar("T")


class Judges:
    """
    Judges images for all fills and uploads of a process.

    Args:
        waiting_max: So many images may wait in each lane, besides those that are being judged.
        pause: Called in a judging thread between its steps. Tests hold a thread with it.
    """

    def __init__(
        self,
        *,
        waiting_max: int = WAITING_MAX,
        timeout_s: float = TIMEOUT_S,
        pause: Callable[[], None] = lambda: time.sleep(PAUSE_S),
    ) -> None:
        self._quick = _Lane("judge", QUICK_THREADS, waiting_max, timeout_s, pause)
        self._slow = _Lane("judge-slow", SLOW_THREADS, waiting_max, timeout_s, pause)
        self._turn_steps = 0
        """Taken on the event loop in this turn."""

    @property
    def under_way(self) -> int:
        """Images that are judged in a thread or wait for one."""
        return self._quick.under_way + self._slow.under_way

    async def read_head(self, chunks: AsyncIterator[bytes]) -> tuple[bytes, Seen]:
        """
        Read until it is clear what this is and, where the header says so soon, how large; return what was read too.

        Raises:
            NotAnImage: It is none, or takes too many steps to judge.
            Busy: Too many images are being judged.
        """
        head = bytearray()
        ended = False
        budget = Budget(LOOP_STEPS_MAX)
        reader = HeadReader(budget)
        seen: Seen | Undecided | None = UNDECIDED
        try:
            while seen is UNDECIDED:
                ended = await _read_to(head, reader.look_at, chunks)
                await self._begin_look()
                before = budget.taken
                try:
                    seen = reader.look(head, ended=ended)
                finally:
                    self._turn_steps += budget.taken - before
        except Spent:
            ended = ended or await _read_to(head, HEAD_BYTES_MAX, chunks)
            seen = await self._run(lambda budget: HeadReader(budget).look(head, ended=ended), len(head))
        if seen is None or seen is UNDECIDED:
            raise NotAnImage("the answer is not an image of a supported format")
        return bytes(head), seen

    async def is_whole(self, draft: Draft, fmt: Format) -> bool:
        """
        Tell whether the format's own end proves what is in `draft` complete.

        Raises:
            NotAnImage: It takes too many steps to tell.
            Busy: Too many images are being judged.
            StorageError: The draft cannot be read.
        """
        return await self._run(lambda budget: draft.view(lambda body: is_whole(fmt, body, budget)), draft.size)

    async def measure(self, draft: Draft, fmt: Format) -> PixelSize | None:
        """Return the size in pixels that the whole file states. Raises as `is_whole`."""
        return await self._run(lambda budget: draft.view(lambda body: measure(fmt, body, budget)), draft.size)

    async def judge(self, draft: Draft) -> tuple[Format, PixelSize | None] | None:
        """Return format and size of a whole image; `None`: it is no image, or not whole. Raises as `is_whole`."""
        if draft.size == 0:
            return None
        return await self._run(lambda budget: draft.view(lambda body: _judge(body, budget)), draft.size)

    def close(self) -> None:
        """Take no more images; what is judged ends by itself, soon."""
        self._quick.close()
        self._slow.close()

    async def _begin_look(self) -> None:
        """Wait for a turn of the loop that has steps left."""
        while self._turn_steps >= TURN_STEPS_MAX:  # noqa: ASYNC110 - the next turn is what is waited for
            await asyncio.sleep(0)
        if self._turn_steps == 0:
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn_steps = 0

    async def _run(self, verdict: Callable[[Budget], T], size: int) -> T:
        steps = steps_max(size)
        try:
            return await self._quick.run(verdict, min(steps, QUICK_STEPS_MAX))
        except Spent:
            pass
        try:
            return await self._slow.run(verdict, steps)
        except Spent:
            raise NotAnImage("the structure of the image takes too many steps to judge") from None


class _Judgement(Generic[T]):
    """One image in a lane. `abandoned`: nothing waits for it any more."""

    def __init__(self, verdict: Callable[[Budget], T], steps: int, pause: Callable[[], None]) -> None:
        self.begun = False
        self.abandoned = False
        self._verdict = verdict
        self._steps = steps
        self._pause = pause

    def work(self) -> T:
        """Judge. In a thread."""
        self.begun = True
        self._check()
        return self._verdict(Budget(self._steps, self._rest))

    def _rest(self) -> None:
        self._check()
        self._pause()
        self._check()

    def _check(self) -> None:
        if self.abandoned:
            raise Spent


class _Lane:
    """Threads, and a queue before them."""

    def __init__(self, name: str, threads: int, waiting_max: int, timeout_s: float, pause: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._places = threads + waiting_max
        self._timeout_s = timeout_s
        self._pause = pause
        self.under_way = 0

    async def run(self, verdict: Callable[[Budget], T], steps: int) -> T:
        """
        Run `verdict` with a budget of so many steps.

        Raises:
            Spent: They were not enough.
            NotAnImage: It took too long.
            Busy: There is no place, or it did not begin in time.
        """
        if self.under_way >= self._places:
            raise Busy("too many images are being judged")
        judgement = _Judgement(verdict, steps, self._pause)
        self.under_way += 1
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, judgement.work)
        except RuntimeError:
            self.under_way -= 1
            raise Busy("the server is being shut down") from None
        future.add_done_callback(self._leave)
        try:
            # Not cancelled with its waiter: the place is taken until the thread is free again.
            done, _ = await asyncio.wait({future}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            judgement.abandoned = True
            raise
        if done:
            try:
                return future.result()
            finally:
                # An error knows this frame by its traceback, and would be known by it: nothing would be freed.
                del done, future
        judgement.abandoned = True
        if judgement.begun:
            raise NotAnImage("the image takes too long to judge")
        raise Busy("too many images are being judged")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, future: asyncio.Future[T]) -> None:
        self.under_way -= 1
        if not future.cancelled():
            future.exception()  # marks it as retrieved: its waiter may have left


async def _read_to(head: bytearray, size: int, chunks: AsyncIterator[bytes]) -> bool:
    """Let `head` grow to `size` bytes; return whether it is all there is."""
    while len(head) < size:
        chunk = await anext(chunks, None)
        if chunk is None:
            return True
        head += chunk
    return False


def _judge(body: Buffer, budget: Budget) -> tuple[Format, PixelSize | None] | None:
    head = bytes(body[:HEAD_BYTES_MAX])
    fmt = sniff(head, ended=len(head) == len(body), budget=budget)
    if fmt is None or fmt is UNDECIDED:
        return None
    # Of a naked JPEG XL codestream only a decoder finds the end; there HTTP's own framing has to do.
    if fmt is not Format.JXL and not is_whole(fmt, body, budget):
        return None
    return fmt, measure(fmt, body, budget)
