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

from imgkeep.database.cluster_schema import members
from imgkeep.database.durable_jobs import SEARCHED_MAX, to_item
from imgkeep.database.schema import items, jobs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from imgkeep.core.jobs import JobItem
    from imgkeep.database.engine import DatabaseEngine

    Name = tuple[str, int]
    """Job and number of a link."""

_RESERVE_LOCK: Final = 0x696D676B6A6F
"""Advisory lock: one member at a time reserves links."""
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
    sa.func.pg_advisory_xact_lock(_RESERVE_LOCK),
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
_NAME: Final = sa.tuple_(items.c.job, items.c.number)
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
        held: The links that this member has reserved.
        waiting: How many links wait in all jobs.
    """

    held: Collection[Name]
    waiting: int


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
        self._past = sa.func.clock_timestamp() - sa.literal(timedelta(seconds=dead_after_s))
        self._members_are_known = sa.exists().where(members.c.started_at < self._past)

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

        def work(connection: sa.Connection) -> Checked:
            self._free(connection, sa.and_(self._is_lost(items.c.member), self._members_are_known))
            own = items.c.member == self._member
            self._free(connection, sa.and_(own, _NAME.not_in(list(running))) if running else own)
            lost = sa.and_(jobs.c.webhook.is_not(None), self._is_lost(jobs.c.webhook_member), self._members_are_known)
            connection.execute(sa.update(jobs).where(lost).values(webhook_member=None))
            held = connection.execute(sa.select(items.c.job, items.c.number).where(own)).all()
            waiting = int(connection.scalar(_UNFINISHED) or 0)
            return Checked({(row.job, row.number) for row in held}, waiting)

        return await self._engine.execute(work)

    async def release(self) -> None:
        """End all reservations of this member."""

        def work(connection: sa.Connection) -> None:
            self._free(connection, items.c.member == self._member)
            own = sa.and_(jobs.c.webhook.is_not(None), jobs.c.webhook_member == self._member)
            connection.execute(sa.update(jobs).where(own).values(webhook_member=None))

        await self._engine.execute(work)

    async def count_waiting(self) -> int:
        """Return the number of waiting links in all jobs."""
        return int(await self._engine.execute(lambda connection: connection.scalar(_UNFINISHED)) or 0)

    def _is_lost(self, member: sa.Column[str | None]) -> sa.ColumnElement[bool]:
        """Return the condition that a member is dead or unknown."""
        is_live = sa.exists().where(members.c.id == member, members.c.heartbeat_at >= self._past)
        return sa.and_(member.is_not(None), member != self._member, ~is_live)

    def _free(self, connection: sa.Connection, condition: sa.ColumnElement[bool]) -> None:
        free = sa.select(items.c.job, items.c.number).where(condition).with_for_update(of=items, skip_locked=True)
        connection.execute(sa.update(items).where(_NAME.in_(free)).values(member=None))
