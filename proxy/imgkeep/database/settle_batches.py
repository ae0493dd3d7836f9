"""
Settles the links of a member of a cluster in batches: those that end while a transaction runs share the next one.

All members add to the same row of a job, and each waits for the commit of the one before. One transaction for each link
would let a job advance by one link for each write of the disk, however many members work at it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from imgkeep.database.job_notices import SETTLED, announce
from imgkeep.database.schema import jobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgkeep.core.jobs import JobItem
    from imgkeep.database.engine import DatabaseEngine
    from imgkeep.database.job_notices import NoticeThrottle

    Facts = Mapping[str, Any]

BATCH_MAX: Final = 256
"""Maximum number of links in one transaction."""

# A row that another transaction holds is about to be cancelled: two that wait for rows of each other would never end.
_SETTLE: Final = sa.text(
    """
WITH ended AS (
    SELECT * FROM unnest(CAST(:job AS text[]), CAST(:number AS int[]), CAST(:state AS text[]), CAST(:key AS text[]),
        CAST(:created AS bool[]), CAST(:code AS text[]), CAST(:detail AS text[]))
    AS ended (job, number, state, key, created, code, detail)
), own AS (
    SELECT items.job, items.number FROM items JOIN ended USING (job, number)
    WHERE items.state = 'waiting' AND items.member = :member FOR UPDATE OF items SKIP LOCKED
)
UPDATE items SET link = NULL, member = NULL, state = ended.state, key = coalesce(ended.key, items.key),
    created = ended.created, code = ended.code, detail = ended.detail
FROM ended JOIN own USING (job, number)
WHERE items.job = ended.job AND items.number = ended.number
RETURNING items.job, items.state
"""
)
_COUNT: Final = sa.text(
    """
UPDATE jobs SET saved = jobs.saved + ended.saved, failed = jobs.failed + ended.failed,
    finished_at = coalesce(jobs.finished_at, CASE
        WHEN jobs.saved + jobs.failed + ended.saved + ended.failed = jobs.total
        THEN floor(extract(epoch FROM clock_timestamp())) END)
FROM unnest(CAST(:job AS text[]), CAST(:saved AS int[]), CAST(:failed AS int[])) AS ended (job, saved, failed)
WHERE jobs.id = ended.job
RETURNING jobs.*
"""
)


@dataclass(slots=True)
class _Settlement:
    """One link that has ended, and the facts that its row gets."""

    item: JobItem
    facts: Facts
    job: asyncio.Future[Facts] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class SettleBatches:
    """The links of one member that have ended."""

    def __init__(self, engine: DatabaseEngine, member: str, throttle: NoticeThrottle) -> None:
        self._engine = engine
        self._member = member
        self._throttle = throttle
        self._waiting: list[_Settlement] = []
        self._task: asyncio.Task[None] | None = None

    async def settle(self, item: JobItem, facts: Facts) -> Facts:
        """
        Settle a link, unless another member has it now; return the row of its job.

        Raises:
            StorageError: The link waits as before.
        """
        settlement = _Settlement(item, facts)
        self._waiting.append(settlement)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await settlement.job

    async def flush(self) -> None:
        """Wait until all links that have ended are settled, as far as the database answers."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                await self._settle(batch)
        finally:
            self._task = None

    async def _settle(self, batch: Sequence[_Settlement]) -> None:
        now = asyncio.get_running_loop().time()
        news = {job_id for job_id in {each.item.job for each in batch} if self._throttle.admits(job_id, now)}
        try:
            rows = await self._engine.execute(lambda connection: self._change(connection, batch, news))
            for row in rows.values():
                if row["finished_at"] is not None:
                    self._throttle.forget(row["id"])
            for each in batch:
                if not each.job.done():  # its task may have been cancelled
                    each.job.set_result(rows[each.item.job])
        except Exception as error:  # noqa: BLE001 - each caller gets it, and none waits for ever
            for each in batch:
                if not each.job.done():
                    each.job.set_exception(error)

    def _change(self, connection: sa.Connection, batch: Sequence[_Settlement], news: set[str]) -> dict[str, Facts]:
        names = ("state", "key", "created", "code", "detail")
        columns: dict[str, Any] = {name: [each.facts.get(name) for each in batch] for name in names}
        columns |= {"job": [each.item.job for each in batch], "number": [each.item.number for each in batch]}
        ended = connection.execute(_SETTLE, {**columns, "member": self._member}).all()
        counts = Counter((row.job, row.state) for row in ended)
        changed = sorted({row.job for row in ended})
        # In one order for all members. Two that wait for rows of each other would never end.
        own = sa.select(jobs.c.id).where(jobs.c.id.in_(changed)).order_by(jobs.c.id).with_for_update()
        if len(changed) > 1:
            connection.execute(own)
        rows: dict[str, Facts] = {}
        if changed:
            numbers = {state: [counts[job_id, state] for job_id in changed] for state in ("saved", "failed")}
            rows = _by_id(connection.execute(_COUNT, {"job": changed, **numbers}))
        if other := {each.item.job for each in batch} - rows.keys():
            rows |= _by_id(connection.execute(sa.select(jobs).where(jobs.c.id.in_(other))))
        told = [job_id for job_id in changed if job_id in news or rows[job_id]["finished_at"] is not None]
        announce(connection, SETTLED, told)
        return rows


def _by_id(found: sa.CursorResult[Any]) -> dict[str, Facts]:
    return {row["id"]: dict(row) for row in found.mappings()}
