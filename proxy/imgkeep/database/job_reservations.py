"""
Reservations: which member of a cluster saves which link at the moment, and delivers which webhook. PostgreSQL has them.

Rules:
- One member at a time reserves (an advisory lock), so the links that all members save at one host are counted exactly.
- A reservation ends with its link: settled, postponed, cancelled. It also ends when its member is dead or unknown, or
  does not know of it (the answer to its statement was lost).
- PostgreSQL empties the table of members after a crash of its own. So an unknown member loses its links only if another
  one has been known for as long as a member may be silent: by then each live member has joined again.
- A crash may lose a reservation, not a link: reserving does not wait for the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from imgkeep.database.advisory_locks import RESERVATION_LOCK
from imgkeep.database.durable_jobs import SEARCHED_MAX, to_item
from imgkeep.database.schema import items, jobs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from imgkeep.core.jobs import JobItem
    from imgkeep.database.engine import DatabaseEngine

    Name = tuple[str, int]
    """Job and number of a link."""

_LOOKAHEAD: Final = 4
"""Number of rows that one statement reads for each link that is wanted: several may be of one host."""

_SETTINGS: Final = {
    "synchronous_commit": "off",
    # A planner without statistics takes the waiting links for few, and would sort them all.
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "jit": "off",
}
_BEGIN: Final = sa.select(
    *(sa.func.set_config(name, value, sa.true()) for name, value in _SETTINGS.items()),
    sa.func.pg_advisory_xact_lock(RESERVATION_LOCK),
)
# A row that another transaction holds is about to be cancelled.
_RESERVE: Final = sa.text(
    """
WITH held AS (
    SELECT host, count(*) AS number FROM items WHERE member IS NOT NULL GROUP BY host
), due AS (
    SELECT job, number, host, expires_at FROM items
    WHERE state = 'waiting' AND member IS NULL AND due_at <= extract(epoch FROM statement_timestamp())
    ORDER BY expires_at, job, number LIMIT :searched_max
), found AS (
    SELECT * FROM due WHERE host NOT IN (SELECT host FROM held WHERE number >= :per_host_max)
    ORDER BY expires_at, job, number LIMIT :lookahead
), placed AS (
    SELECT found.*, coalesce(held.number, 0) + row_number() OVER (
        PARTITION BY found.host ORDER BY found.expires_at, found.job, found.number) AS place
    FROM found LEFT JOIN held USING (host)
), chosen AS (
    SELECT job, number FROM placed WHERE place <= :per_host_max ORDER BY expires_at, job, number LIMIT :wanted
), free AS (
    SELECT items.job, items.number FROM items JOIN chosen USING (job, number)
    WHERE items.state = 'waiting' AND items.member IS NULL FOR UPDATE OF items SKIP LOCKED
)
UPDATE items SET member = :member FROM free WHERE items.job = free.job AND items.number = free.number
RETURNING items.*
"""
)
_CHECK: Final = sa.text(
    """
WITH running AS (
    SELECT * FROM unnest(CAST(:job AS text[]), CAST(:number AS int[])) AS running (job, number)
), live AS (
    SELECT id FROM cluster_members WHERE heartbeat_at >= clock_timestamp() - CAST(:dead_after AS interval)
), known AS (
    SELECT EXISTS (
        SELECT FROM cluster_members WHERE started_at < clock_timestamp() - CAST(:dead_after AS interval)) AS yes
), lost AS (
    SELECT job, number FROM items WHERE member IS NOT NULL AND CASE
        WHEN member = :member THEN (job, number) NOT IN (SELECT job, number FROM running)
        ELSE (SELECT yes FROM known) AND member NOT IN (SELECT id FROM live) END
    FOR UPDATE SKIP LOCKED
), freed AS (
    UPDATE items SET member = NULL FROM lost WHERE items.job = lost.job AND items.number = lost.number
), freed_webhooks AS (
    UPDATE jobs SET webhook_member = NULL WHERE webhook IS NOT NULL AND webhook_member <> :member
        AND (SELECT yes FROM known) AND webhook_member NOT IN (SELECT id FROM live)
)
SELECT waiting, has_webhooks, held.job, held.number FROM (
    SELECT (SELECT coalesce(sum(total - saved - failed), 0) FROM jobs WHERE finished_at IS NULL) AS waiting,
        EXISTS (SELECT FROM jobs WHERE webhook IS NOT NULL AND finished_at IS NOT NULL) AS has_webhooks
) AS all_jobs LEFT JOIN (SELECT job, number FROM items WHERE member = :member) AS held ON true
"""
)
"""One statement, whose parts see the tables as they were before it."""
_UNFINISHED: Final = (
    sa.select(sa.func.coalesce(sa.func.sum(jobs.c.total - jobs.c.saved - jobs.c.failed), 0))
    .where(jobs.c.finished_at.is_(None))
    .select_from(jobs)
)
"""The number of links that wait, without a look at each."""


@dataclass(frozen=True, slots=True)
class Checked:
    """
    What a check of the reservations has found.

    Attributes:
        held: Those of the running links that this member still has.
        waiting: How many links wait in all jobs.
        has_webhooks: Whether a webhook waits for its delivery.
    """

    held: Collection[Name]
    waiting: int
    has_webhooks: bool


class JobReservations:
    """
    The reservations of one member.

    Args:
        engine: The engine of a PostgreSQL.
        member: Name of this member.
        dead_after_s: How long a member may be silent.
    """

    def __init__(self, engine: DatabaseEngine, member: str, *, dead_after_s: float) -> None:
        self._engine = engine
        self._member = member
        self._dead_after = timedelta(seconds=dead_after_s)

    async def reserve(self, limit: int, *, per_host_max: int) -> Sequence[JobItem]:
        """
        Reserve up to `limit` links whose time has come, earliest expiry first, as far as all members together save
        fewer than `per_host_max` links of a host.
        """

        def work(connection: sa.Connection) -> Sequence[JobItem]:
            connection.execute(_BEGIN)
            reserved: list[JobItem] = []
            while (wanted := limit - len(reserved)) > 0:
                rows = connection.execute(
                    _RESERVE,
                    {
                        "member": self._member,
                        "wanted": wanted,
                        "lookahead": _LOOKAHEAD * wanted,
                        "per_host_max": per_host_max,
                        "searched_max": SEARCHED_MAX,
                    },
                ).all()
                reserved += map(to_item, rows)
                if not rows:  # until then the next statement leaves the hosts out that this one has filled
                    break
            return sorted(reserved, key=lambda item: (item.expires_at is None, item.expires_at, item.job, item.number))

        return await self._engine.execute(work)

    async def check(self, running: Collection[Name]) -> Checked:
        """End reservations of dead members, and those of this one that it does not know of: of links not `running`."""
        parameters = {
            "member": self._member,
            "dead_after": self._dead_after,
            "job": [job_id for job_id, _ in running],
            "number": [number for _, number in running],
        }
        rows = await self._engine.execute(lambda connection: connection.execute(_CHECK, parameters).all())
        held = {(row.job, row.number) for row in rows} & set(running)
        return Checked(held, int(rows[0].waiting), rows[0].has_webhooks)

    async def release(self) -> None:
        """End all reservations of this member."""

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.update(items).where(items.c.member == self._member).values(member=None))
            own = sa.and_(jobs.c.webhook.is_not(None), jobs.c.webhook_member == self._member)
            connection.execute(sa.update(jobs).where(own).values(webhook_member=None))

        await self._engine.execute(work)

    async def count_waiting(self) -> int:
        """Return the number of waiting links in all jobs."""
        return int(await self._engine.execute(lambda connection: connection.scalar(_UNFINISHED)) or 0)
