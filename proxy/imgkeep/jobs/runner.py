"""
The job runner: saves the links of jobs in the background, durably.

Rules:
- A link is in the database until it is saved or has failed permanently. So a restarted process continues where a killed
  one was; it finds the images that were stored, and does not fetch them again.
- The link that expires first comes first. Each host has few at a time, so a slow host delays no other.
- After a failure that may pass the runner retries, at growing intervals, until the link expires.
- A cancelled job ends at once: the runner starts no waiting link and gives up those that run. A fetch that other
  clients wait for goes on, and so does one that can be stored all the same.
- The link itself, a credential, leaves the database as soon as nothing is left to do with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.backoff import backoff_s
from imgkeep.core.errors import (
    Busy,
    Conflict,
    ImgkeepError,
    InvalidRequest,
    InvalidSource,
    LoopDetected,
    OriginError,
    OriginTimeout,
    RateLimited,
    StorageError,
)
from imgkeep.core.jobs import NewItem
from imgkeep.core.records import Failure
from imgkeep.core.source_url import own_path, read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imgkeep.clock import Clock, Sleep
    from imgkeep.core.jobs import Job, JobItem, JobResult, JobState
    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.database import DurableJobs
    from imgkeep.images.upload import Saver
    from imgkeep.jobs.webhooks import WebhookSender

ITEMS_MAX: Final = 10_000
"""Maximum number of links in one job."""
WAITING_MAX: Final = 1_000_000
"""Maximum number of waiting links in all jobs: some gigabyte of the database."""
CONCURRENT_MAX: Final = 16
"""Maximum number of links that are being saved at a time."""
PER_HOST_MAX: Final = 4
"""Maximum number of them at one host, a quarter of the default of `fetch.per_host_max`: visitors come first."""
QUEUED_MAX: Final = 256
"""Maximum number of due links that one search brings into memory."""
DELAY_MIN_S: Final = 6
"""Delay after the first failed attempt; longer than the negative cache holds a failure that may pass
(`images/negative_cache.py`), so that each attempt is one."""
DELAY_MAX_S: Final = 600
"""Maximum delay between two attempts."""
ATTEMPTS_MAX: Final = 12
"""Maximum number of attempts for a link without an expiry: about an hour and a half."""
POLL_INTERVAL_S: Final = 1
"""Interval of searching for due links."""
RESULTS_RETENTION_S: Final = 7 * 86_400
"""How long after its end a job, and its results, can be read."""
CLEANUP_INTERVAL_S: Final = 3600
"""Interval of deleting old jobs, and of counting anew how many links wait."""

log = logging.getLogger(__name__)


class JobRunner:
    """
    Takes jobs and saves their links. One per process; only the leader's `run` is running.

    Args:
        jobs: The jobs in the database.
        saver: Saves a link.
        webhooks: Delivers the message that a job has ended.
        identify: Returns the identity of a link.
        public: The server's own public URL; its links are loops.
        clock: Returns the time, for expiries.
        draw: Returns a random number from 0 to 1, for delays.
        draw_id: Returns a new job's id.
        timer: Returns monotonic seconds.
        sleep: Waits for a number of seconds.
        count: Counts an attempt by its outcome.
    """

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        jobs: DurableJobs,
        saver: Saver,
        webhooks: WebhookSender,
        identify: Callable[[Source], SourceInfo],
        public: Source | None,
        clock: Clock,
        draw: Callable[[], float],
        draw_id: Callable[[], str],
        timer: Callable[[], float],
        sleep: Sleep,
        count: Callable[[str], None],
    ) -> None:
        self._jobs = jobs
        self._saver = saver
        self._webhooks = webhooks
        self._identify = identify
        self._public = public
        self._clock = clock
        self._draw = draw
        self._draw_id = draw_id
        self._timer = timer
        self._sleep = sleep
        self._count = count
        self._running: dict[tuple[str, int], JobItem] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._queued: dict[str, deque[JobItem]] = {}
        """The due links in memory, by host, earliest expiry first."""
        self._next_search = 0.0
        self._searched_without: set[str] = set()
        """The busy hosts that the last search left out: until the next one only their links can be due."""
        self._next_delivery = 0.0
        self._next_cleanup = 0.0
        self._wake = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.waiting = 0
        """How many links wait in all jobs, as of the last count."""

    async def submit(self, urls: Sequence[object], *, webhook: str | None = None) -> Job:
        """
        Take links to save them in the background; a text that is no link fails at once, and alone.

        Raises:
            InvalidRequest: There are none or too many, or the webhook cannot be honoured.
            Busy: Too many wait already.
            StorageError: The job is not taken.
        """
        if not 1 <= len(urls) <= ITEMS_MAX:
            raise InvalidRequest(f"urls has to hold 1 to {ITEMS_MAX} links")
        if webhook is not None:
            self._webhooks.check(webhook)
        if self.waiting + len(urls) > WAITING_MAX:
            raise Busy(f"{WAITING_MAX} links wait already", retry_after_s=60)
        new = await asyncio.to_thread(lambda: [self._read(url) for url in urls])
        job = await self._jobs.create(self._draw_id(), new, webhook)
        if job.failed:
            log.warning("job has links that cannot be used", extra={"job": job.id, "links": job.failed})
        self.waiting += job.total - job.failed
        self._next_search = self._next_delivery = 0
        self._wake.set()
        return job

    async def find(self, job_id: str) -> Job | None:
        return await self._jobs.find(job_id)

    async def page(
        self, *, limit: int, after: tuple[int, str] | None = None, state: JobState | None = None
    ) -> Sequence[Job]:
        return await self._jobs.page(limit=limit, after=after, state=state)

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[JobResult]:
        return await self._jobs.results(job_id, after=after, limit=limit)

    async def cancel(self, job_id: str) -> Job | None:
        """
        End a job at once: give up its fetches in this process, and start no other. `None`: there is none. A job that
        has ended stays as it is.

        Raises:
            StorageError: It goes on.
        """
        job = await self._jobs.cancel(job_id)
        if job is None:
            return None
        for host in list(self._queued):
            left = deque(item for item in self._queued.pop(host) if item.job != job_id)
            if left:
                self._queued[host] = left
        for (owner, _), task in list(self._tasks.items()):
            if owner == job_id:
                task.cancel()
        self._next_delivery = 0
        self._next_cleanup = 0  # it counts what waits
        self._wake.set()
        self._notify(job_id)
        return job

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever a link of the job is settled."""
        event = asyncio.Event()
        watchers = self._watchers.setdefault(job_id, set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop(job_id, None)

    def poll_now(self) -> None:
        """Search at once: another process may have taken a job."""
        self._next_search = self._next_delivery = self._next_cleanup = 0
        self._wake.set()

    async def run(self) -> None:
        """Save links, for ever."""
        self._next_cleanup = self._timer()
        try:
            while True:
                self._wake.clear()
                pause_s: float = POLL_INTERVAL_S
                try:
                    pause_s = await self._do_due()
                except StorageError:
                    pass  # the database reports its own failures
                except Exception:  # no error may end this loop
                    log.exception("job runner failed unexpectedly")
                await self._wait(pause_s)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _do_due(self) -> float:
        """Clean up, start links and deliver webhooks where it is time to; return how long to wait then."""
        if self._timer() >= self._next_cleanup:
            await self._jobs.delete_old(RESULTS_RETENTION_S)
            self.waiting = await self._jobs.count_waiting()
            self._next_cleanup = self._timer() + CLEANUP_INTERVAL_S
        await self._start_due()
        if self._timer() >= self._next_delivery:
            self._next_delivery = self._timer() + await self._webhooks.deliver_due()
        if self.waiting <= 0:
            self.waiting = await self._jobs.count_waiting()  # once, before a long pause
        if self.waiting:
            return POLL_INTERVAL_S
        return min(max(self._next_delivery - self._timer(), POLL_INTERVAL_S), CLEANUP_INTERVAL_S)

    async def _wait(self, seconds: float) -> None:
        """Wait until there is work, for so long at most."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        waking = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait([sleeping, waking], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, waking):
                task.cancel()
            await asyncio.gather(sleeping, waking, return_exceptions=True)

    async def _start_due(self) -> None:
        """Start as many links as the limits allow."""
        while len(self._running) < CONCURRENT_MAX:
            item = self._pop()
            if item is not None:
                self._start(item)
            elif not await self._search():
                return

    def _pop(self) -> JobItem | None:
        """Return the queued link that expires first, of those whose host is not busy."""
        busy = self._busy_hosts()
        free = [items[0] for host, items in self._queued.items() if host not in busy]
        if not free:
            return None
        first = min(free, key=lambda item: (item.expires_at is None, item.expires_at, item.job, item.number))
        items = self._queued[first.host]
        items.popleft()
        if not items:
            del self._queued[first.host]
        return first

    async def _search(self) -> bool:
        """Queue due links of the database; return `False`: there are none, or the last search was a moment ago."""
        now, busy = self._timer(), self._busy_hosts()
        if now < self._next_search and busy >= self._searched_without:
            return False
        known = {(item.job, item.number) for items in self._queued.values() for item in items} | self._running.keys()
        due = await self._jobs.due(QUEUED_MAX, without=known, busy=busy)
        if len(due) < QUEUED_MAX:
            self._next_search, self._searched_without = now + POLL_INTERVAL_S, busy
        for item in due:
            self._queued.setdefault(item.host, deque()).append(item)
        return bool(due)

    def _busy_hosts(self) -> set[str]:
        running = Counter(item.host for item in self._running.values())
        return {host for host, number in running.items() if number >= PER_HOST_MAX}

    def _start(self, item: JobItem) -> None:
        self._running[item.job, item.number] = item
        task = asyncio.create_task(self._save(item))
        self._tasks[item.job, item.number] = task
        # By a callback: a task that is cancelled before its first step runs no line of its own.
        task.add_done_callback(lambda _: self._finish(item))

    def _finish(self, item: JobItem) -> None:
        del self._running[item.job, item.number]
        del self._tasks[item.job, item.number]
        self._wake.set()

    async def _save(self, item: JobItem) -> None:
        try:
            job = await self._attempt(item)
        except StorageError:
            return  # the database failed: the link stays where it was, and its image is found to be stored next time
        except Exception:
            log.exception("job link failed unexpectedly")
            job = await self._jobs.mark_failed(item, Failure("internal_error", "the server met an error of its own"))
        if job is not None:
            self.waiting -= 1
            if job.finished_at is not None:
                self._next_delivery = 0
            self._notify(item.job)

    def _notify(self, job_id: str) -> None:
        for event in self._watchers.get(job_id, ()):
            event.set()

    async def _attempt(self, item: JobItem) -> Job | None:
        if not await self._jobs.is_waiting(item):
            return None  # another process has cancelled the job since the search
        try:
            saved = await self._saver.save_link(read_source(item.link))
        except ImgkeepError as error:
            delay_s = self._retry_delay_s(item, error)
            if delay_s is None:
                self._count(error.code)
                self._log_failure(item, error)
                return await self._jobs.mark_failed(item, Failure(error.code, str(error)))
            self._count("retried")
            await self._jobs.postpone(item, delay_s)
            return None
        self._count("saved")
        return await self._jobs.mark_saved(item, saved.record.key, created=saved.created)

    def _log_failure(self, item: JobItem, error: ImgkeepError) -> None:
        """Log which link of which job has failed, by its key: the link grants access."""
        facts: dict[str, object] = {"job": item.job, "number": item.number, "host": item.host}
        with suppress(ImgkeepError):
            info = self._identify(read_source(item.link))
            facts |= {"key": info.key, "provider": info.provider}
        detail = error.in_full if isinstance(error, StorageError) else str(error)
        log.warning("job link failed", extra={**facts, "code": error.code, "detail": detail})

    def _retry_delay_s(self, item: JobItem, error: ImgkeepError) -> float | None:
        """Return the seconds to wait before another attempt; `None`: no attempt would help."""
        if not _may_pass(error):
            return None
        delay_s = backoff_s(item.attempts, first_s=DELAY_MIN_S, longest_s=DELAY_MAX_S, draw=self._draw())
        delay_s = max(delay_s, getattr(error, "retry_after_s", None) or 0)
        if item.expires_at is None:
            return delay_s if item.attempts + 1 < ATTEMPTS_MAX else None
        left_s = (item.expires_at - self._clock()).total_seconds()
        if left_s <= 0:
            return None
        return min(delay_s, max(1.0, left_s - 1))  # a last one before the end

    def _read(self, url: object) -> NewItem:
        try:
            if not isinstance(url, str):
                raise InvalidSource("the link is not a text")
            source = read_source(url)
        except ImgkeepError as error:
            return NewItem("", "", None, Failure(error.code, str(error)))
        info = self._identify(source)
        if self._public is not None and own_path(source, self._public) is not None:
            failure = Failure(LoopDetected.code, "the source is this server")
            return NewItem("", source.host, None, failure, info.key)
        return NewItem(source.url, source.host, info.expires_at, key=info.key)


def _may_pass(error: ImgkeepError) -> bool:
    """Return whether the same link may succeed later."""
    if isinstance(error, (Busy, RateLimited, OriginTimeout)):
        return True
    if isinstance(error, StorageError):
        return not isinstance(error, Conflict)
    status = getattr(error, "origin_status", None)
    return type(error) is OriginError and (status is None or status == 429 or status >= 500)
