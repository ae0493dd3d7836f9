"""
Saving many links in the background, durably.

Rules:
- A link is in the database until it is saved or has failed for good, so a process that is killed goes on where it was;
  what it had finished is found to be kept, and not fetched again.
- What expires first comes first. Each host has few at a time, so that one that is slow holds up no other.
- What may be better later is tried again, at growing intervals, until the link expires.
- A job that is cancelled ends at once: what waits is not begun, and what is under way is given up. A fetch that others
  wait for goes on, and so does one that can be stored all the same.
- The link itself, a credential, is gone from the database as soon as nothing is left to do with it.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections import Counter, deque
from contextlib import contextmanager, suppress
from hashlib import sha256
from hmac import digest
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

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
    SourceRejected,
    StorageError,
)
from imgkeep.core.jobs import NewItem
from imgkeep.core.records import Failure
from imgkeep.core.source_url import own_path, read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from imgkeep.clock import Clock, Sleep
    from imgkeep.core.jobs import Job, JobItem, JobResult, JobState, Webhook
    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.database.interfaces import Jobs
    from imgkeep.images.upload import Saver

ITEMS_MAX: Final = 10_000
WAITING_MAX: Final = 1_000_000
"""In all jobs: some gigabyte of the database."""
CONCURRENT_MAX: Final = 16
PER_HOST_MAX: Final = 4
"""A quarter of what `fetch.*` lets through by default: visitors come first."""
QUEUED_MAX: Final = 256
"""Links that are looked for at a time."""
DELAY_MIN_S: Final = 6
"""Longer than a failure of a moment is remembered (`images/negative_cache.py`), so that each attempt is one."""
DELAY_MAX_S: Final = 600
ATTEMPTS_MAX: Final = 12
"""For a link that tells no end: about an hour and a half."""
POLL_INTERVAL_S: Final = 1
RESULTS_RETENTION_S: Final = 7 * 86_400
"""So long the results of a job can be asked for."""
CLEANUP_INTERVAL_S: Final = 3600
"""Old jobs are forgotten, and what waits is counted anew."""

WEBHOOK_DELAY_MIN_S: Final = 10
WEBHOOK_ATTEMPTS_MAX: Final = 10
"""The last one some three hours after the first."""
WEBHOOKS_CONCURRENT_MAX: Final = 8

log = logging.getLogger(__name__)


class Messenger(Protocol):
    """Who tells others over HTTP."""

    async def post(self, source: Source, body: bytes, headers: Mapping[str, str]) -> int:
        """
        Send JSON, follow nothing, and return the status.

        Raises:
            SourceForbidden: Policy refuses the address.
            OriginError: It was not answered.
        """


class JobRunner:
    """Takes jobs and works them off. One per process. `webhook_key` signs what is told to others."""

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        jobs: Jobs,
        saver: Saver,
        messenger: Messenger,
        identify: Callable[[Source], SourceInfo],
        public: Source | None,
        webhook_key: str | None,
        clock: Clock,
        draw: Callable[[], float],
        draw_id: Callable[[], str],
        timer: Callable[[], float],
        sleep: Sleep,
        counted: Callable[[str], None],
    ) -> None:
        self._jobs = jobs
        self._saver = saver
        self._messenger = messenger
        self._identify = identify
        self._public = public
        self._webhook_key = webhook_key
        self._clock = clock
        self._draw = draw
        self._draw_id = draw_id
        self._timer = timer
        self._sleep = sleep
        self._counted = counted
        self._running: dict[tuple[str, int], JobItem] = {}
        self._at_hand: dict[str, deque[JobItem]] = {}
        """What was found to be due, by host, those first that expire first."""
        self._look_at = 0.0
        self._in_vain: set[str] = set()
        """Until then there is nothing to be found beyond these busy hosts."""
        self._tell_at = 0.0
        self._tidy_at = 0.0
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.waiting = 0
        """How many links wait, in all jobs, as of the last look."""

    async def submit(self, urls: Sequence[object], *, webhook: str | None = None) -> Job:
        """
        Take links to save them in the background; what is no link fails at once, and alone.

        Raises:
            InvalidRequest: There are none or too many, or the webhook cannot be honoured.
            Busy: Too many wait already.
            StorageError: The job is not taken.
        """
        if not 1 <= len(urls) <= ITEMS_MAX:
            raise InvalidRequest(f"urls has to hold 1 to {ITEMS_MAX} links")
        if webhook is not None:
            if self._webhook_key is None:
                raise InvalidRequest("webhook needs security.signing_keys, by which it is signed")
            read_source(webhook)
        if self.waiting + len(urls) > WAITING_MAX:
            raise Busy(f"{WAITING_MAX} links wait already", retry_after_s=60)
        new = await asyncio.to_thread(lambda: [self._read(url) for url in urls])
        job = await self._jobs.create(self._draw_id(), new, webhook)
        if job.failed:
            log.warning("job has links that cannot be used", extra={"job": job.id, "links": job.failed})
        self.waiting += job.total - job.failed
        self._look_at = self._tell_at = 0
        self._wake.set()
        return job

    async def find(self, job_id: str) -> Job | None:
        return await self._jobs.find(job_id)

    async def page(
        self, *, limit: int, after: tuple[int, str] | None = None, state: JobState | None = None
    ) -> Sequence[Job]:
        return await self._jobs.page(limit=limit, after=after, state=state)

    async def cancel(self, job_id: str) -> Job | None:
        """
        End a job at once; its fetches in this process are given up, those of others are not begun. `None`: there is
        none. One that has ended stays as it is.

        Raises:
            StorageError: It goes on.
        """
        job = await self._jobs.cancel(job_id)
        if job is None:
            return None
        for host in list(self._at_hand):
            left = deque(item for item in self._at_hand.pop(host) if item.job != job_id)
            if left:
                self._at_hand[host] = left
        for (of, _), task in list(self._tasks.items()):
            if of == job_id:
                task.cancel()
        self._tell_at = 0
        self._tidy_at = 0  # what waits is counted anew
        self._wake.set()
        for event in self._watchers.get(job_id, ()):
            event.set()
        return job

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[JobResult]:
        return await self._jobs.results(job_id, after=after, limit=limit)

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

    async def run(self) -> None:
        """Work jobs off, for ever."""
        self._tidy_at = self._timer()
        try:
            while True:
                self._wake.clear()
                pause_s: float = POLL_INTERVAL_S
                try:
                    if self._timer() >= self._tidy_at:
                        await self._jobs.forget(RESULTS_RETENTION_S)
                        self.waiting = await self._jobs.count_waiting()
                        self._tidy_at = self._timer() + CLEANUP_INTERVAL_S
                    await self._depart()
                    if self._timer() >= self._tell_at:
                        self._tell_at = self._timer() + await self._tell_all()
                    if self.waiting <= 0:
                        self.waiting = await self._jobs.count_waiting()  # once, before a long pause
                    if not self.waiting:
                        pause_s = min(max(self._tell_at - self._timer(), POLL_INTERVAL_S), CLEANUP_INTERVAL_S)
                except StorageError:
                    pass  # the database tells its own trouble
                except Exception:  # this loop must not end, whatever happens
                    log.exception("working jobs off failed as nobody foresaw")
                await self._wait(pause_s)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def look_again(self) -> None:
        """Somebody else may have taken a job."""
        self._look_at = self._tell_at = self._tidy_at = 0
        self._wake.set()

    async def _wait(self, seconds: float) -> None:
        """Wait until there is something to do, for so long at most."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        waking = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait([sleeping, waking], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, waking):
                task.cancel()
            await asyncio.gather(sleeping, waking, return_exceptions=True)

    async def _depart(self) -> None:
        """Begin as many as may be under way."""
        while len(self._running) < CONCURRENT_MAX:
            item = self._pop()
            if item is not None:
                self._begin(item)
            elif not await self._refill():
                return

    def _pop(self) -> JobItem | None:
        """Take the link that expires first of those at hand whose host has a place."""
        taken = Counter(item.host for item in self._running.values())
        free = [items[0] for host, items in self._at_hand.items() if taken[host] < PER_HOST_MAX]
        if not free:
            return None
        first = min(free, key=lambda item: (item.expires_at is None, item.expires_at, item.job, item.number))
        items = self._at_hand[first.host]
        items.popleft()
        if not items:
            del self._at_hand[first.host]
        return first

    async def _refill(self) -> bool:
        """Take more at hand; `False`: there is nothing, or it was looked for a moment ago."""
        now = self._timer()
        taken = Counter(item.host for item in self._running.values())
        busy = {host for host, number in taken.items() if number >= PER_HOST_MAX}
        if now < self._look_at and busy >= self._in_vain:
            return False
        known = {(item.job, item.number) for items in self._at_hand.values() for item in items} | self._running.keys()
        due = await self._jobs.due(QUEUED_MAX, but=known, busy=busy)
        if len(due) < QUEUED_MAX:
            self._look_at, self._in_vain = now + POLL_INTERVAL_S, busy
        for item in due:
            self._at_hand.setdefault(item.host, deque()).append(item)
        return bool(due)

    def _begin(self, item: JobItem) -> None:
        self._running[item.job, item.number] = item
        task = asyncio.create_task(self._save(item))
        self._tasks[item.job, item.number] = task
        # By a callback: a task that is cancelled before its first step runs no line of its own.
        task.add_done_callback(lambda _: self._end(item))

    def _end(self, item: JobItem) -> None:
        del self._running[item.job, item.number]
        del self._tasks[item.job, item.number]
        self._wake.set()

    async def _save(self, item: JobItem) -> None:
        try:
            job = await self._try(item)
        except StorageError:
            return  # the database: it stays where it was, and is found to be kept the next time
        except Exception:
            log.exception("saving a link failed as nobody foresaw")
            job = await self._jobs.failed(item, Failure("internal_error", "the server met an error of its own"))
        if job is not None:
            self.waiting -= 1
            if job.finished_at is not None:
                self._tell_at = 0
            for event in self._watchers.get(item.job, ()):
                event.set()

    async def _try(self, item: JobItem) -> Job | None:
        if not await self._jobs.waits(item):
            return None  # another process has cancelled the job since this was found to be due
        try:
            saved = await self._saver.save_link(read_source(item.link))
        except ImgkeepError as error:
            delay_s = self._delay(item, error)
            if delay_s is None:
                self._counted(error.code)
                self._log_failure(item, error)
                return await self._jobs.failed(item, Failure(error.code, str(error)))
            self._counted("retried")
            await self._jobs.postpone(item, delay_s)
            return None
        self._counted("saved")
        return await self._jobs.saved(item, saved.record.key, created=saved.created)

    def _log_failure(self, item: JobItem, error: ImgkeepError) -> None:
        """Log which link of which job has failed, by its key: the link grants access."""
        facts: dict[str, object] = {"job": item.job, "number": item.number, "host": item.host}
        with suppress(ImgkeepError):
            info = self._identify(read_source(item.link))
            facts |= {"key": info.key, "provider": info.provider}
        detail = error.in_full if isinstance(error, StorageError) else str(error)
        log.warning("job link failed", extra={**facts, "code": error.code, "detail": detail})

    def _delay(self, item: JobItem, error: ImgkeepError) -> float | None:
        """Return the seconds to wait before another attempt; `None`: no attempt would help."""
        if not _may_pass(error):
            return None
        delay_s = min(DELAY_MIN_S * 2.0**item.attempts, DELAY_MAX_S) * (1 + self._draw() / 2)
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

    async def _tell_all(self) -> float:
        """Tell who is to be told now; return in how many seconds there is something to tell again."""
        webhooks = await self._jobs.webhooks(WEBHOOKS_CONCURRENT_MAX)
        due = [webhook for webhook in webhooks if webhook.due_in_s <= 0]
        async with asyncio.TaskGroup() as group:
            for webhook in due:
                group.create_task(self._tell(webhook))
        return 0 if due else min((webhook.due_in_s for webhook in webhooks), default=CLEANUP_INTERVAL_S)

    async def _tell(self, webhook: Webhook) -> None:
        with suppress(StorageError):  # the database's; it is told once more
            await self._send(webhook)

    async def _send(self, webhook: Webhook) -> None:
        """Send a message as Standard Webhooks describes it (https://www.standardwebhooks.com)."""
        job = webhook.job
        now = self._clock()
        body = msgspec.json.encode({"type": "job.done", "timestamp": now, "data": describe(job)})
        key = (self._webhook_key or "").encode()
        stamp = str(int(now.timestamp()))
        mac = digest(key, f"{job.id}.{stamp}.".encode() + body, sha256)
        headers = {
            "webhook-id": job.id,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{b64encode(mac).decode()}",
        }
        is_last = webhook.attempts + 1 >= WEBHOOK_ATTEMPTS_MAX
        try:
            status = await self._messenger.post(read_source(webhook.url), body, headers)
            reason = "" if 200 <= status < 300 else f"it says {status}"
        except ImgkeepError as error:
            reason, is_last = str(error), is_last or isinstance(error, SourceRejected)
        if not reason or is_last:
            if reason:
                log.error("nobody could be told that a job is done", extra={"job": job.id, "reason": reason})
            await self._jobs.told(webhook)
            return
        delay_s = WEBHOOK_DELAY_MIN_S * 2.0**webhook.attempts * (1 + self._draw() / 2)
        await self._jobs.postpone_webhook(webhook, delay_s)


def describe(job: Job) -> dict[str, Any]:
    """Return what is said of a job, results left out."""
    return {
        "id": job.id,
        "state": job.state,
        "total": job.total,
        "saved": job.saved,
        "failed": job.failed,
        "cancelled": job.cancelled,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
    }


def _may_pass(error: ImgkeepError) -> bool:
    """Whether the same link may do better later."""
    if isinstance(error, (Busy, RateLimited, OriginTimeout)):
        return True
    if isinstance(error, StorageError):
        return not isinstance(error, Conflict)
    status = getattr(error, "origin_status", None)
    return type(error) is OriginError and (status is None or status == 429 or status >= 500)
