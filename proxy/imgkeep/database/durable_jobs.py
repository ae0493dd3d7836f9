"""
Durable jobs: links to save, until they are saved or have failed permanently.

These rows are the only copy: the loss of the database is the loss of the links that were not saved.

Members of a cluster share them. A member settles and postpones only what it has reserved (`job_reservations.py`), reads
the time from the database, and tells the others what it changes (`job_notices.py`).
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from imgkeep.core.jobs import Job, JobItem, JobResult, Webhook
from imgkeep.core.records import Failure, Key
from imgkeep.database.advisory_locks import CLEANUP_LOCK
from imgkeep.database.job_notices import CANCELLED, CREATED, SETTLED, NoticeThrottle, announce
from imgkeep.database.schema import items, jobs
from imgkeep.database.settle_batches import SettleBatches

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from imgkeep.core.jobs import JobState, NewItem
    from imgkeep.core.records import Record
    from imgkeep.database.engine import DatabaseEngine
    from imgkeep.database.image_index import ImageIndex

NO_END: Final = 253_402_300_799
"""The last second of the year 9999, for links without an expiry: they come last."""
BATCH: Final = 500
"""Maximum number of rows in one INSERT."""
SEARCHED_MAX: Final = 20_000
"""Maximum number of waiting links, earliest expiry first, that a search for an idle host reads: 10 ms."""
WAITING, SAVED, FAILED = "waiting", "saved", "failed"
STOPPED: Final = "stopped"
"""The state of a link whose job was cancelled: the column takes seven characters."""
DATABASE_TIME: Final[sa.ColumnElement[int]] = sa.cast(
    sa.func.floor(sa.extract("epoch", sa.func.clock_timestamp())), sa.BigInteger
)
"""The time of a PostgreSQL in whole seconds: the clocks of its nodes may differ."""
_SETTLED: Final = jobs.c.saved + jobs.c.failed
_STATES: Final[dict[JobState, sa.ColumnElement[bool]]] = {
    "queued": sa.and_(jobs.c.finished_at.is_(None), _SETTLED == 0),
    "running": sa.and_(jobs.c.finished_at.is_(None), _SETTLED > 0),
    "done": sa.and_(jobs.c.finished_at.is_not(None), jobs.c.total == _SETTLED),
    "cancelled": sa.and_(jobs.c.finished_at.is_not(None), jobs.c.total > _SETTLED),
}
"""The conditions of `Job.state`, in SQL."""


class DurableJobs:
    """
    Jobs, their links, and their webhooks. Each call is one transaction; its faults are `StorageError`.

    Args:
        engine: The engine of the database.
        image_index: Finds the records of saved links.
        member: The member of a cluster that this process is; empty: no other process changes jobs at the same time.
    """

    def __init__(self, engine: DatabaseEngine, image_index: ImageIndex, *, member: str = "") -> None:
        self._engine = engine
        self._image_index = image_index
        self._member = member
        self._throttle = NoticeThrottle()
        self._batches = SettleBatches(engine, member, self._throttle) if member else None

    async def create(self, job_id: str, new: Sequence[NewItem], webhook: str | None) -> Job:
        """Store a new job and its links."""
        failed = sum(item.failure is not None for item in new)

        def work(connection: sa.Connection) -> dict[str, Any]:
            now = self._read_time(connection)
            row = {
                "id": job_id,
                "created_at": now,
                "finished_at": now if failed == len(new) else None,
                "total": len(new),
                "saved": 0,
                "failed": failed,
                "webhook": webhook,
                "webhook_attempts": 0,
                "webhook_due_at": now,
            }
            connection.execute(sa.insert(jobs), row)
            rows = [_new_row(job_id, number, item) for number, item in enumerate(new)]
            for start in range(0, len(rows), BATCH):
                connection.execute(sa.insert(items), rows[start : start + BATCH])
            self._announce(connection, CREATED, job_id)
            return row

        return _to_job(await self._engine.execute(work))

    async def find(self, job_id: str) -> Job | None:
        query = sa.select(jobs).where(jobs.c.id == job_id)
        row = await self._engine.execute(lambda connection: connection.execute(query).mappings().first())
        return None if row is None else _to_job(dict(row))

    async def page(
        self, *, limit: int, after: tuple[int, str] | None = None, state: JobState | None = None
    ) -> Sequence[Job]:
        """Return up to `limit` jobs, newest first, after second and id of the last one of the page before."""
        query = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if after is not None:
            # Row values would be shorter, and SQLite finds no index for them in this order.
            older, same = jobs.c.created_at < after[0], jobs.c.created_at == after[0]
            query = query.where(jobs.c.created_at <= after[0], sa.or_(older, sa.and_(same, jobs.c.id < after[1])))
        if state is not None:
            query = query.where(_STATES[state])
        rows = await self._engine.execute(lambda connection: connection.execute(query).mappings().all())
        return [_to_job(dict(row)) for row in rows]

    async def cancel(self, job_id: str) -> Job | None:
        """End a job: no link of it waits any more. Return it as it is now; `None`: there is none."""
        waiting = sa.and_(items.c.job == job_id, items.c.state == WAITING)
        this = sa.and_(jobs.c.id == job_id, jobs.c.finished_at.is_(None))

        def work(connection: sa.Connection) -> dict[str, Any] | None:
            now = self._read_time(connection)
            # Links first, in the order of `_settle`: two transactions never wait for each other.
            connection.execute(sa.update(items).where(waiting).values(state=STOPPED, link=None, member=None))
            if connection.execute(sa.update(jobs).where(this).values(finished_at=now, webhook_due_at=now)).rowcount:
                self._announce(connection, CANCELLED, job_id)
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
            return None if row is None else dict(row)

        row = await self._engine.execute(work)
        return None if row is None else _to_job(row)

    async def is_waiting(self, item: JobItem) -> bool:
        """Return whether a link still waits: its job is not cancelled, and no other process has settled it."""
        query = sa.select(sa.literal(1)).where(self._is(item))
        return await self._engine.execute(lambda connection: connection.scalar(query)) is not None

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[JobResult]:
        """Return up to `limit` results in the order of their numbers, after the number `after`."""
        query = (
            sa.select(items).where(items.c.job == job_id, items.c.number > after).order_by(items.c.number).limit(limit)
        )
        rows = await self._engine.execute(lambda connection: connection.execute(query).all())
        records = await self._image_index.find_all({Key(row.key) for row in rows if row.state == SAVED})
        return [_to_result(row, records.get(row.key) if row.state == SAVED else None) for row in rows]

    async def count_waiting(self) -> int:
        """Return the number of waiting links in all jobs."""
        query = sa.select(sa.func.count()).select_from(items).where(items.c.state == WAITING)
        return await self._engine.execute(lambda connection: connection.scalar(query) or 0)

    async def due(
        self, limit: int, *, without: Collection[tuple[str, int]], busy: Collection[str]
    ) -> Sequence[JobItem]:
        """
        Return up to `limit` links whose time has come, earliest expiry first, without those named by job and number,
        and without those of `busy` hosts.
        """
        first = (
            sa.select(items)
            .where(items.c.state == WAITING, items.c.due_at <= self._engine.now())
            .order_by(items.c.expires_at, items.c.job, items.c.number)
            .limit(SEARCHED_MAX)
            .subquery()
        )
        query = (
            sa.select(first)
            .where(first.c.host.not_in(busy))
            .order_by(first.c.expires_at, first.c.job, first.c.number)
            .limit(limit + len(without))
        )
        rows = await self._engine.execute(lambda connection: connection.execute(query).all())
        return [to_item(row) for row in rows if (row.job, row.number) not in without][:limit]

    async def mark_saved(self, item: JobItem, key: Key, *, created: bool) -> Job:
        """Settle a link whose image is stored; return the job as it is now."""
        return await self._settle(item, {"state": SAVED, "key": key, "created": created}, jobs.c.saved)

    async def mark_failed(self, item: JobItem, failure: Failure) -> Job:
        """Settle a link that has failed permanently; return the job as it is now."""
        change = {"state": FAILED, "code": failure.code, "detail": failure.detail[:255]}
        return await self._settle(item, change, jobs.c.failed)

    async def postpone(self, item: JobItem, delay_s: float) -> None:
        """Count a failed attempt, and wait `delay_s` seconds before the next."""
        change = (
            sa.update(items)
            .where(self._is(item))
            .values(attempts=item.attempts + 1, due_at=self._time + round(delay_s), member=None)
        )
        await self._engine.execute(lambda connection: connection.execute(change))

    async def webhooks(self, limit: int) -> Sequence[Webhook]:
        """
        Return up to `limit` webhooks of jobs that have ended, those first that are due first. A member of a cluster
        reserves those that are due, with what it has reserved before and not delivered.
        """
        ended = sa.and_(jobs.c.webhook.is_not(None), jobs.c.finished_at.is_not(None))
        query = sa.select(jobs, (jobs.c.webhook_due_at - self._time).label("due_in_s")).where(ended)
        query = query.order_by(jobs.c.webhook_due_at).limit(limit)

        def work(connection: sa.Connection) -> Sequence[sa.RowMapping]:
            if not self._member:
                return connection.execute(query).mappings().all()
            free = sa.func.coalesce(jobs.c.webhook_member, self._member) == self._member
            due = (
                sa.select(jobs.c.id)
                .where(ended, free, jobs.c.webhook_due_at <= self._time)
                .order_by(jobs.c.webhook_due_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            own = sa.update(jobs).where(jobs.c.id.in_(due)).values(webhook_member=self._member)
            rows = connection.execute(own.returning(jobs, sa.literal(0).label("due_in_s"))).mappings().all()
            later = sa.and_(free, jobs.c.webhook_due_at > self._time)
            return rows or connection.execute(query.where(later)).mappings().all()

        rows = await self._engine.execute(work)
        return [Webhook(_to_job(dict(row)), row["webhook"], row["webhook_attempts"], row["due_in_s"]) for row in rows]

    async def remove_webhook(self, webhook: Webhook) -> None:
        """Forget a webhook that was delivered, or never will be."""
        change = sa.update(jobs).where(jobs.c.id == webhook.job.id).values(webhook=None, webhook_member=None)
        await self._engine.execute(lambda connection: connection.execute(change))

    async def postpone_webhook(self, webhook: Webhook, delay_s: float) -> None:
        """Count a failed delivery, and wait `delay_s` seconds before the next."""
        change = (
            sa.update(jobs)
            .where(jobs.c.id == webhook.job.id, sa.func.coalesce(jobs.c.webhook_member, "") == self._member)
            .values(
                webhook_attempts=webhook.attempts + 1, webhook_due_at=self._time + round(delay_s), webhook_member=None
            )
        )
        await self._engine.execute(lambda connection: connection.execute(change))

    async def delete_old(self, older_than_s: int) -> int:
        """Delete jobs that ended so long ago; return how many."""
        old = sa.select(jobs.c.id).where(jobs.c.finished_at < self._time - older_than_s)

        def work(connection: sa.Connection) -> int:
            if self._member and not connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(CLEANUP_LOCK))):
                return 0  # another member does it at the moment
            connection.execute(sa.delete(items).where(items.c.job.in_(old)))
            return connection.execute(sa.delete(jobs).where(jobs.c.id.in_(old))).rowcount

        return await self._engine.execute(work)

    async def send_late_notices(self) -> None:
        """Send the notices that were held back, as far as their time has come."""
        late = self._throttle.take_late(asyncio.get_running_loop().time())
        if late:
            await self._engine.execute(lambda connection: announce(connection, SETTLED, late))

    async def flush(self) -> None:
        """Wait until all links that have ended are settled, as far as the database answers."""
        if self._batches is not None:
            await self._batches.flush()

    async def _settle(self, item: JobItem, change: dict[str, Any], counter: sa.Column[int]) -> Job:
        if self._batches is not None:
            return _to_job(dict(await self._batches.settle(item, change)))
        done = sa.case((jobs.c.saved + jobs.c.failed + 1 == jobs.c.total, self._engine.now()))
        finished = sa.func.coalesce(jobs.c.finished_at, done)  # a client may have cancelled it meanwhile

        def work(connection: sa.Connection) -> dict[str, Any]:
            # A link is a credential, so it goes once nothing is left to do with it.
            if connection.execute(sa.update(items).where(self._is(item)).values(link=None, **change)).rowcount:
                counted = {counter.name: counter + 1, "finished_at": finished}
                connection.execute(sa.update(jobs).where(jobs.c.id == item.job).values(counted))
            return dict(connection.execute(sa.select(jobs).where(jobs.c.id == item.job)).mappings().one())

        return _to_job(await self._engine.execute(work))

    def _is(self, item: JobItem) -> sa.ColumnElement[bool]:
        """Return the condition of a link that waits, and that this process may change."""
        this = sa.and_(items.c.job == item.job, items.c.number == item.number, items.c.state == WAITING)
        return sa.and_(this, items.c.member == self._member) if self._member else this

    @property
    def _time(self) -> sa.ColumnElement[int]:
        return DATABASE_TIME if self._member else sa.literal(self._engine.now(), sa.BigInteger)

    def _read_time(self, connection: sa.Connection) -> int:
        return int(connection.scalar(sa.select(DATABASE_TIME)) or 0) if self._member else self._engine.now()

    def _announce(self, connection: sa.Connection, kind: str, job_id: str) -> None:
        if self._member:
            announce(connection, kind, [job_id])


def _new_row(job_id: str, number: int, item: NewItem) -> dict[str, Any]:
    return {
        "job": job_id,
        "number": number,
        "link": item.link if item.failure is None else None,
        "host": item.host,
        "expires_at": NO_END if item.expires_at is None else int(item.expires_at.timestamp()),
        "state": WAITING if item.failure is None else FAILED,
        "attempts": 0,
        "due_at": 0,
        "key": item.key,
        "code": None if item.failure is None else item.failure.code,
        "detail": None if item.failure is None else item.failure.detail[:255],
    }


def _to_job(row: dict[str, Any]) -> Job:
    finished = row["finished_at"]
    return Job(
        id=row["id"],
        created_at=datetime.fromtimestamp(row["created_at"], UTC),
        finished_at=None if finished is None else datetime.fromtimestamp(finished, UTC),
        total=row["total"],
        saved=row["saved"],
        failed=row["failed"],
    )


def to_item(row: sa.Row[Any]) -> JobItem:
    """Return a waiting link."""
    expires_at = None if row.expires_at == NO_END else datetime.fromtimestamp(row.expires_at, UTC)
    return JobItem(row.job, row.number, row.link, row.host, expires_at, row.attempts)


def _to_result(row: sa.Row[Any], record: Record | None) -> JobResult:
    failure = None if row.code is None else Failure(row.code, row.detail)
    key = None if row.key is None else Key(row.key)
    state = "cancelled" if row.state == STOPPED else row.state
    return JobResult(row.number, state, key, bool(row.created), record, failure, row.host)
