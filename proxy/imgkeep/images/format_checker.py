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
- Clients take turns in each lane, and none has more than an eighth of its queue: an image waits for its own client's
  and for one of each other client's, however many one of them sends.
- An image that takes too much is `NotAnImage`. One that finds no place is `Busy`, which says nothing about it. Neither
  says anything about a store.
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
"""Some 30 ms: 4 MB of a JPEG that is searched for its end, and ten times what the structure of most images takes."""
QUICK_THREADS: Final = 2
SLOW_THREADS: Final = 1
"""The interpreter runs one thread at a time: more would not judge faster, and only wait with more images in memory."""
TURN_STEPS_MAX: Final = 4_096
"""Of all heads in one turn of the event loop: two milliseconds, and seventy heads of good images."""
WAITING_MAX: Final = 256
"""Images in one lane: four times as many as are fetched at once by default, for those that are handed in."""
CLIENT_PART: Final = 8
"""A client has an eighth of a queue, as of the places for fetches."""
TIMEOUT_S: Final = 30
"""For waiting and judging: an image takes two seconds at most, so what takes longer waits behind others."""
PAUSE_S: Final = 0.000_1
"""As long as the steps between two pauses take: half of the time the interpreter is free."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """What a file is that is framed whole. `is_incomplete`: by its format something is missing."""

    format: Format
    pixel_size: PixelSize | None
    is_incomplete: bool


class FormatChecker:
    """
    FormatChecker images for all fills and uploads of a process.

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

    async def read_head(self, chunks: AsyncIterator[bytes], client: Client = OWN) -> tuple[bytes, Seen]:
        """
        Read until it is clear what this is and, where the header says so soon, how large; return what was read too.

        `client` here and below is whose image it is.

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
            seen = await self._run(lambda budget: HeadReader(budget).look(head, ended=ended), len(head), client)
        if seen is None or seen is UNDECIDED:
            raise NotAnImage("the answer is not an image of a supported format")
        return bytes(head), seen

    async def is_whole(self, draft: Draft, fmt: Format, client: Client = OWN) -> bool:
        """
        Tell whether the format's own end proves what is in `draft` complete.

        Raises:
            NotAnImage: It takes too many steps to tell.
            Busy: Too many images are being judged.
            StorageError: The draft cannot be read.
        """
        return await self._run(
            lambda budget: draft.check_blocking(lambda body: is_whole(fmt, body, budget)), draft.size, client
        )

    async def is_incomplete(self, draft: Draft, fmt: Format, client: Client = OWN) -> bool:
        """
        Tell whether an image that is framed whole is incomplete by its format. One that cannot be judged now, or that
        takes too much to judge, counts as incomplete: it is judged again when it is fetched again.
        """
        try:
            return await self._run(
                lambda budget: draft.check_blocking(lambda body: is_incomplete(fmt, body, budget)), draft.size, client
            )
        except (NotAnImage, Busy, StorageError):
            return True

    async def foresees_end(self, ending: Ending, size: int) -> bool:
        """
        Tell on the event loop by the first bytes of an image, and by the size that its framing tells, whether it is
        complete. False says nothing.
        """
        await self._begin_look()
        budget = Budget(LOOP_STEPS_MAX)
        try:
            return foresees_end(ending, size, budget)
        except Spent:
            return False
        finally:
            self._turn_steps += budget.taken

    async def measure(self, draft: Draft, fmt: Format, client: Client = OWN) -> PixelSize | None:
        """Return the size in pixels that the whole file states. Raises as `is_whole`."""
        return await self._run(
            lambda budget: draft.check_blocking(lambda body: measure(fmt, body, budget)), draft.size, client
        )

    async def judge(self, draft: Draft) -> CheckedImage | None:
        """Return what a file is; `None`: it is no image. Raises as `is_whole`."""
        if draft.size == 0:
            return None
        return await self._run(lambda budget: draft.check_blocking(lambda body: _judge(body, budget)), draft.size, OWN)

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

    async def _run(self, verdict: Callable[[Budget], T], size: int, client: Client) -> T:
        steps = steps_max(size)
        try:
            return await self._quick.run(verdict, min(steps, QUICK_STEPS_MAX), client)
        except Spent:
            pass
        try:
            return await self._slow.run(verdict, steps, client)
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
    """Threads, and a queue before them, in which clients take turns."""

    def __init__(self, name: str, threads: int, waiting_max: int, timeout_s: float, pause: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threads
        self._places = threads + waiting_max
        self._share = max(1, waiting_max // CLIENT_PART)
        self._timeout_s = timeout_s
        self._pause = pause
        self._closed = False
        self._lines: OrderedDict[str, OrderedDict[asyncio.Future[Any], _Judgement[Any]]] = OrderedDict()
        """What waits, by client, in the order of their turns."""
        self.under_way = 0

    async def run(self, verdict: Callable[[Budget], T], steps: int, client: Client) -> T:
        """
        Run `verdict` with a budget of so many steps.

        Raises:
            Spent: They were not enough.
            NotAnImage: It took too long.
            Busy: There is no place, or it did not begin in time.
        """
        name = _name_of(client)
        self._check_places(name, client)
        judgement = _Judgement(verdict, steps, self._pause)
        over: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(name, OrderedDict())[over] = judgement
        self.under_way += 1
        self._call_in()
        try:
            # Not cancelled with its waiter: the place is taken until the thread is free again.
            done, _ = await asyncio.wait({over}, timeout=self._timeout_s)
            if done:
                return over.result()
            judgement.abandoned = True
            if judgement.begun:
                raise NotAnImage("the image takes too long to judge")
            raise Busy("too many images are being judged")
        except asyncio.CancelledError:
            judgement.abandoned = True
            raise
        finally:
            self._leave_line(name, over)
            # An error knows this frame by its traceback, and would be known by it: nothing would be freed.
            done = set()
            del over

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check_places(self, name: str, client: Client) -> None:
        if self._closed:
            raise Busy("the server is being shut down")
        if self.under_way >= self._places:
            raise Busy("too many images are being judged")
        if not (client.own or client.loopback) and len(self._lines.get(name, ())) >= self._share:
            raise Busy("too many images are being judged for this address")

    def _call_in(self) -> None:
        """Judge what is next, while a thread is free."""
        while self._lines and self._free and not self._closed:
            name, line = self._lines.popitem(last=False)
            over, judgement = line.popitem(last=False)
            if line:
                self._lines[name] = line
            self._free -= 1
            judgement.begun = True
            future = asyncio.get_running_loop().run_in_executor(self._pool, judgement.work)
            future.add_done_callback(partial(self._end, over))

    def _leave_line(self, name: str, over: asyncio.Future[Any]) -> None:
        """What waits in vain keeps no place; what has begun keeps it to its end."""
        line = self._lines.get(name)
        if line is not None and line.pop(over, None) is not None:
            self.under_way -= 1
            if not line:
                del self._lines[name]

    def _end(self, over: asyncio.Future[Any], future: asyncio.Future[Any]) -> None:
        self.under_way -= 1
        self._free += 1
        error = Busy("the server is being shut down") if future.cancelled() else future.exception()
        if not over.done():
            if error is None:
                over.set_result(future.result())
            else:
                over.set_exception(error)
                over.exception()  # marks it as retrieved: its waiter may have left
        self._call_in()


def _name_of(client: Client) -> str:
    """Return what counts as one client here: the widest of its networks, the API with the jobs, or this machine."""
    return "own" if client.own else "local" if client.loopback or not client.networks else client.networks[-1]


async def _read_to(head: bytearray, size: int, chunks: AsyncIterator[bytes]) -> bool:
    """Let `head` grow to `size` bytes; return whether it is all there is."""
    while len(head) < size:
        chunk = await anext(chunks, None)
        if chunk is None:
            return True
        head += chunk
    return False


def _judge(body: Buffer, budget: Budget) -> CheckedImage | None:
    head = bytes(body[:HEAD_BYTES_MAX])
    fmt = sniff(head, ended=len(head) == len(body), budget=budget)
    if fmt is None or fmt is UNDECIDED:
        return None
    return CheckedImage(fmt, measure(fmt, body, budget), is_incomplete=is_incomplete(fmt, body, budget))
