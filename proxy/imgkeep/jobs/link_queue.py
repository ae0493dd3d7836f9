"""Which links of jobs the runner saves next: of all that wait, or of those that this member of a cluster reserves."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from imgkeep.core.jobs import JobItem
    from imgkeep.database import DurableJobs
    from imgkeep.database.job_reservations import JobReservations

    Name = tuple[str, int]
    """Job and number of a link."""
    Running = Mapping[Name, JobItem]

PER_HOST_MAX: Final = 4
"""Maximum number of links that are being saved at one host, a quarter of the default of `fetch.per_host_max`: visitors
come first."""
QUEUED_MAX: Final = 256
"""Maximum number of due links that one search brings into memory."""
POLL_INTERVAL_S: Final = 1
"""Interval of searching for due links."""
RARE_INTERVAL_S: Final = 3600
"""Interval of looks for what only this process changes, and tells itself."""
CHECK_INTERVAL_S: Final = 2
"""Interval of looks at the reservations: so soon after a member counts as dead its links are free."""


class OwnQueue:
    """
    The queue of the only process that saves links: it reads many at once, and nothing else changes them.

    Attributes:
        waiting: How many links wait in all jobs, as of the last count.
        is_live: Whether this process may take work.
        has_webhooks: Whether a webhook may wait for its delivery.
        pause_max_s: How long the runner may pause if nothing waits.
    """

    def __init__(self, jobs: DurableJobs, timer: Callable[[], float]) -> None:
        self.waiting = 0
        self.is_live: Final = True
        self.has_webhooks: Final = True
        self.pause_max_s: Final[float] = RARE_INTERVAL_S
        self._jobs = jobs
        self._timer = timer
        self._queued: dict[str, deque[JobItem]] = {}
        """The due links in memory, by host, earliest expiry first."""
        self._next_search = 0.0
        self._searched_without: set[str] = set()
        """The busy hosts that the last search left out: until the next one only their links can be due."""

    async def count(self) -> int:
        """Return how many links wait in all jobs."""
        return self.waiting

    async def recount(self) -> None:
        """Count anew what waits."""
        self.waiting = await self._jobs.count_waiting()

    async def take(self, running: Running, limit: int) -> Sequence[JobItem]:
        """Return up to `limit` links to start now; empty: there is none, or the last search was a moment ago."""
        while True:
            taken = self._pop_free(running, limit)
            if taken or not await self._search(running):
                return taken

    async def may_start(self, item: JobItem) -> bool:
        """Return whether a link that was taken still waits for this process."""
        return await self._jobs.is_waiting(item)  # another process may have cancelled the job since the search

    async def check(self, running: Running) -> Collection[Name]:  # noqa: ARG002 - nothing is taken from the only one
        """Return which of the running links this process has to give up."""
        return ()

    def note_finished(self) -> None:
        """Note that a link is no longer running."""

    def forget(self, job_id: str) -> None:
        """Forget the links of a cancelled job."""
        for host in list(self._queued):
            left = deque(item for item in self._queued.pop(host) if item.job != job_id)
            if left:
                self._queued[host] = left

    def search_soon(self) -> None:
        """Have the next `take` search."""
        self._next_search = 0

    async def release(self) -> None:
        """Let other processes have what this one has taken."""

    def _pop_free(self, running: Running, limit: int) -> list[JobItem]:
        """Take queued links, those first that expire first, as far as their hosts are not busy."""
        at_host = _count_hosts(running)
        taken: list[JobItem] = []
        while len(taken) < limit:
            free = [items[0] for host, items in self._queued.items() if at_host[host] < PER_HOST_MAX]
            if not free:
                break
            first = min(free, key=lambda item: (item.expires_at is None, item.expires_at, item.job, item.number))
            items = self._queued[first.host]
            taken.append(items.popleft())
            at_host[first.host] += 1
            if not items:
                del self._queued[first.host]
        return taken

    async def _search(self, running: Running) -> bool:
        """Queue due links of the database; return `False`: there are none, or the last search was a moment ago."""
        now = self._timer()
        busy = {host for host, number in _count_hosts(running).items() if number >= PER_HOST_MAX}
        if now < self._next_search and busy >= self._searched_without:
            return False
        known = {(item.job, item.number) for items in self._queued.values() for item in items} | running.keys()
        due = await self._jobs.due(QUEUED_MAX, without=known, busy=busy)
        if len(due) < QUEUED_MAX:
            self._next_search, self._searched_without = now + POLL_INTERVAL_S, busy
        for item in due:
            self._queued.setdefault(item.host, deque()).append(item)
        return bool(due)


class SharedQueue:
    """
    The queue of a member of a cluster: it reserves what it can start at once, and all members count together.

    Attributes and methods are as those of `OwnQueue`.

    Args:
        reservations: The reservations of this member.
        is_joined: Returns whether this member has joined the cluster.
        silence_s: Returns for how many seconds the database has not confirmed that it is live.
        dead_after_s: How long it may be silent before others take its links over.
        timer: Returns monotonic seconds.
    """

    def __init__(
        self,
        reservations: JobReservations,
        *,
        is_joined: Callable[[], bool],
        silence_s: Callable[[], float],
        dead_after_s: float,
        timer: Callable[[], float],
    ) -> None:
        self.waiting = 0
        self.has_webhooks = True
        self.pause_max_s: Final[float] = CHECK_INTERVAL_S
        self._reservations = reservations
        self._is_joined = is_joined
        self._silence_s = silence_s
        self._dead_after_s = dead_after_s
        self._timer = timer
        self._next_check = 0.0
        self._next_search = 0.0
        self._finished = 0
        """How many links have ended since the last search."""

    @property
    def is_live(self) -> bool:
        return self._is_joined() and self._owns

    @property
    def _owns(self) -> bool:
        """Whether what this member has reserved is still its own."""
        return self._silence_s() < self._dead_after_s

    async def count(self) -> int:
        self.waiting = await self._reservations.count_waiting()
        return self.waiting

    async def recount(self) -> None:
        """Do nothing: each check counts."""

    async def take(self, running: Running, limit: int) -> Sequence[JobItem]:  # noqa: ARG002 - the database counts all
        if self.waiting <= 0 or not self.is_live:
            return ()
        now = self._timer()
        # What a search that found too little left out is at busy hosts, or not due. Another one for each link that ends
        # would read thousands of rows of a busy host again, so until the next one only the places of these are filled.
        wanted = limit if now >= self._next_search else min(limit, self._finished)
        if wanted == 0:
            return ()
        self._finished = 0
        items = await self._reservations.reserve(wanted, per_host_max=PER_HOST_MAX)
        if wanted == limit:
            self._next_search = now + POLL_INTERVAL_S if len(items) < wanted else 0
        return items

    async def may_start(self, item: JobItem) -> bool:  # noqa: ARG002 - it was reserved a moment ago
        return self._owns

    async def check(self, running: Running) -> Collection[Name]:
        before = set(running)
        if not self._owns:
            return before
        if self._timer() < self._next_check:
            return ()
        checked = await self._reservations.check(before)
        self._next_check = self._timer() + CHECK_INTERVAL_S
        self.waiting, self.has_webhooks = checked.waiting, checked.has_webhooks
        return before - set(checked.held)

    def note_finished(self) -> None:
        self._finished += 1

    def forget(self, job_id: str) -> None:
        """Do nothing: what is reserved runs."""

    def search_soon(self) -> None:
        self._next_search = self._next_check = 0

    async def release(self) -> None:
        await self._reservations.release()


LinkQueue: TypeAlias = OwnQueue | SharedQueue
"""What the runner takes links from."""


def _count_hosts(running: Running) -> Counter[str]:
    return Counter(item.host for item in running.values())
