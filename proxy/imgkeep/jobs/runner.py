"""
The job runner: saves the links of jobs in the background, durably.

Rules:
- A link is in the database until it is saved or has failed permanently. So a restarted process continues where a killed
  one was; it finds the images that were stored, and does not fetch them again.
- The link that expires first comes first. Each host has few at a time, so a slow host delays no other. In a cluster
  both hold for all members together (`link_queue.py`).
- After a failure that may pass the runner retries, at growing intervals, until the link expires.
- A cancelled job ends at once: the runner starts no waiting link and gives up those that run. A fetch that other
  clients wait for goes on, and so does one that can be stored all the same.
- The link itself, a credential, leaves the database as soon as nothing is left to do with it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from math import inf
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    InvalidRequest,
    InvalidSource,
    LoopDetected,
    StorageError,
)
from imgkeep.core.jobs import NewItem
from imgkeep.core.records import Failure
from imgkeep.core.source_url import own_path, read_source
from imgkeep.database.job_notices import CANCELLED, CREATED, read_notice
from imgkeep.jobs.link_queue import POLL_INTERVAL_S
from imgkeep.jobs.retry_delay import retry_delay_s

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from imgkeep.clock import Clock, Sleep
    from imgkeep.core.jobs import Job, JobItem, JobResult, JobState
    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.database import DurableJobs
    from imgkeep.images.upload import Saved, Saver
    from imgkeep.jobs.link_queue import LinkQueue
    from imgkeep.jobs.webhooks import WebhookSender

ITEMS_MAX: Final = 10_000
"""Maximum number of links in one job."""
WAITING_MAX: Final = 1_000_000
"""Maximum number of waiting links in all jobs: some gigabyte of the database."""
CONCURRENT_MAX: Final = 16
"""Maximum number of links that are being saved at a time."""
RESULTS_RETENTION_S: Final = 7 * 86_400
"""How long after its end a job, and its results, can be read."""
CLEANUP_INTERVAL_S: Final = 3600
"""Interval of deleting old jobs, and of counting anew how many links wait."""
RELEASE_TIMEOUT_S: Final = 2
"""Timeout for giving back at the end what was taken; others take it over all the same, some seconds later."""

log = logging.getLogger(__name__)


class JobRunner:
    """
    Takes jobs and saves their links. One per process; `run` is running in the leader, or in each member of a cluster.

    Args:
        jobs: The jobs in the database.
        links: The links that wait.
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
        links: LinkQueue,
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
        self._links = links
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
        self._fetching: set[tuple[str, int]] = set()
        """Those whose fetch has not ended."""
        self._delivery: asyncio.Task[None] | None = None
        self._next_delivery = 0.0
        self._next_cleanup = 0.0
        self._wake = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @property
    def waiting(self) -> int:
        """How many links wait in all jobs, as of the last count."""
        return max(self._links.waiting, 0)

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
        if await self._links.count() + len(urls) > WAITING_MAX:
            raise Busy(f"{WAITING_MAX} links wait already", retry_after_s=60)
        new = await asyncio.to_thread(lambda: [self._read(url) for url in urls])
        job = await self._jobs.create(self._draw_id(), new, webhook)
        if job.failed:
            log.warning("job has links that cannot be used", extra={"job": job.id, "links": job.failed})
        self._links.waiting += job.total - job.failed
        self._links.search_soon()
        self._next_delivery = 0
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
        End a job at once: give up its fetches, and start no other. `None`: there is none. A job that has ended stays as
        it is.

        Raises:
            StorageError: It goes on.
        """
        job = await self._jobs.cancel(job_id)
        if job is None:
            return None
        self._give_up_job(job_id)
        self._next_delivery = 0
        self._next_cleanup = 0  # it counts what waits
        self._wake.set()
        self._notify(job_id)
        return job

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever a link of the job is settled, by whichever member of a cluster."""
        event = asyncio.Event()
        watchers = self._watchers.setdefault(job_id, set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop(job_id, None)

    def hear(self, notice: str) -> None:
        """Follow a notice of a member of the cluster, also of this one (`database/job_notices.py`)."""
        kind, job_id = read_notice(notice)
        if kind == CREATED:
            self._links.search_soon()
            self._wake.set()
            return
        if kind == CANCELLED:
            self._give_up_job(job_id)
            self._next_delivery = 0
            self._wake.set()
        self._notify(job_id)

    def poll_now(self) -> None:
        """Search at once: another process may have taken a job."""
        self._links.search_soon()
        self._next_delivery = self._next_cleanup = 0
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
            await self._end()

    async def _end(self) -> None:
        tasks = list(self._tasks.values())
        if self._delivery is not None:
            tasks.append(self._delivery)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with suppress(StorageError, TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._jobs.flush()
                await self._links.release()

    async def _do_due(self) -> float:
        """Clean up, start links and deliver webhooks where it is time to; return how long to wait then."""
        self._give_up(await self._links.check(self._running))
        if self._timer() >= self._next_cleanup:
            await self._jobs.delete_old(RESULTS_RETENTION_S)
            await self._links.recount()
            self._next_cleanup = self._timer() + CLEANUP_INTERVAL_S
        await self._start_due()
        has_ended = self._next_delivery == 0
        if self._timer() >= self._next_delivery and (has_ended or self._links.has_webhooks) and self._links.is_live:
            self._start_delivery()
        await self._jobs.send_late_notices()
        if self.waiting <= 0:
            await self._links.recount()  # once, before a long pause
        if self.waiting:
            return POLL_INTERVAL_S
        return min(max(self._next_delivery - self._timer(), POLL_INTERVAL_S), self._links.pause_max_s)

    def _start_delivery(self) -> None:
        """Deliver the webhooks that are due; links do not wait for their receivers."""
        if self._delivery is None:
            self._next_delivery = inf
            self._delivery = asyncio.create_task(self._deliver())

    async def _deliver(self) -> None:
        pause_s: float = POLL_INTERVAL_S
        try:
            pause_s = await self._webhooks.deliver_due()
        except StorageError:
            pass  # the database reports its own failures
        except Exception:
            log.exception("job webhooks failed unexpectedly")
        finally:
            self._delivery = None
            # A job that has ended meanwhile has set it to 0.
            self._next_delivery = min(self._next_delivery, self._timer() + min(pause_s, self._links.pause_max_s))
            self._wake.set()

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
        while (free := CONCURRENT_MAX - len(self._running)) > 0:
            items = await self._links.take(self._running, free)
            if not items:
                return
            for item in items:
                self._start(item)

    def _give_up_job(self, job_id: str) -> None:
        """Start no link of a job, and give up those that run."""
        self._links.forget(job_id)
        for (owner, _), task in list(self._tasks.items()):
            if owner == job_id:
                task.cancel()

    def _give_up(self, lost: Collection[tuple[str, int]]) -> None:
        """Give up the fetches of links that other processes have taken over, or cancelled."""
        for name in self._fetching.intersection(lost):
            log.info("job link given up", extra={"job": name[0], "number": name[1]})
            self._tasks[name].cancel()

    def _start(self, item: JobItem) -> None:
        self._running[item.job, item.number] = item
        task = asyncio.create_task(self._save(item))
        self._tasks[item.job, item.number] = task
        # By a callback: a task that is cancelled before its first step runs no line of its own.
        task.add_done_callback(lambda _: self._finish(item))

    def _finish(self, item: JobItem) -> None:
        del self._running[item.job, item.number]
        del self._tasks[item.job, item.number]
        self._links.note_finished()
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
            self._links.waiting -= 1
            if job.finished_at is not None:
                self._next_delivery = 0
            self._notify(item.job)

    def _notify(self, job_id: str) -> None:
        for event in self._watchers.get(job_id, ()):
            event.set()

    async def _attempt(self, item: JobItem) -> Job | None:
        if not await self._links.may_start(item):
            return None
        try:
            saved = await self._fetch(item)
        except ImgkeepError as error:
            delay_s = retry_delay_s(item, error, self._clock(), self._draw())
            if delay_s is None:
                self._count(error.code)
                self._log_failure(item, error)
                return await self._jobs.mark_failed(item, Failure(error.code, str(error)))
            self._count("retried")
            await self._jobs.postpone(item, delay_s)
            return None
        self._count("saved")
        return await self._jobs.mark_saved(item, saved.record.key, created=saved.created)

    async def _fetch(self, item: JobItem) -> Saved:
        self._fetching.add((item.job, item.number))
        try:
            return await self._saver.save_link(read_source(item.link))
        finally:
            self._fetching.discard((item.job, item.number))

    def _log_failure(self, item: JobItem, error: ImgkeepError) -> None:
        """Log which link of which job has failed, by its key: the link grants access."""
        facts: dict[str, object] = {"job": item.job, "number": item.number, "host": item.host}
        with suppress(ImgkeepError):
            info = self._identify(read_source(item.link))
            facts |= {"key": info.key, "provider": info.provider}
        detail = error.in_full if isinstance(error, StorageError) else str(error)
        log.warning("job link failed", extra={**facts, "code": error.code, "detail": detail})

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
