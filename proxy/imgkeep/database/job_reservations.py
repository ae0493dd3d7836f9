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

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from imgkeep.database.cluster_schema import members
from imgkeep.database.durable_jobs import DATABASE_TIME, SEARCHED_MAX, WAITING, to_item
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
"""Number of rows that one SELECT reads for each link that is wanted: several may be of one host."""

_BEGIN: Final = sa.text(
    "SELECT set_config('synchronous_commit', 'off', true), pg_advisory_xact_lock(:lock)"
).bindparams(lock=_RESERVE_LOCK)
_WAITING: Final = sa.and_(items.c.state == WAITING, items.c.member.is_(None))
_PLACE: Final = (items.c.expires_at, items.c.job, items.c.number)
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
            chosen = self._choose(connection, limit, per_host_max)
            return self._take(connection, chosen) if chosen else []

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

    def _choose(self, connection: sa.Connection, limit: int, per_host_max: int) -> list[Name]:
        """Return job and number of the links to reserve."""
        reserved = sa.select(items.c.host, sa.func.count()).where(items.c.member.is_not(None)).group_by(items.c.host)
        of_host = Counter({row[0]: row[1] for row in connection.execute(reserved)})
        chosen: list[Name] = []
        after: sa.Row[Any] | None = None
        read = 0
        while len(chosen) < limit and read < SEARCHED_MAX:
            full = [host for host, number in of_host.items() if number >= per_host_max]
            rows = connection.execute(_search(full, after, wanted := _LOOKAHEAD * (limit - len(chosen)))).all()
            for row in rows:
                if of_host[row.host] < per_host_max and len(chosen) < limit:
                    of_host[row.host] += 1
                    chosen.append((row.job, row.number))
            if len(rows) < wanted:
                break
            after, read = rows[-1], read + len(rows)
        return chosen

    def _take(self, connection: sa.Connection, chosen: Sequence[Name]) -> Sequence[JobItem]:
        # What a cancel holds locked at the moment is about to be no longer waiting.
        free = (
            sa.select(items.c.job, items.c.number).where(_NAME.in_(chosen), _WAITING).with_for_update(skip_locked=True)
        )
        rows = connection.execute(
            sa.update(items).where(_NAME.in_(free)).values(member=self._member).returning(items)
        ).all()
        return sorted(
            map(to_item, rows), key=lambda item: (item.expires_at is None, item.expires_at, item.job, item.number)
        )

    def _is_lost(self, member: sa.Column[str | None]) -> sa.ColumnElement[bool]:
        """Return the condition that a member is dead or unknown."""
        is_live = sa.exists().where(members.c.id == member, members.c.heartbeat_at >= self._past)
        return sa.and_(member.is_not(None), member != self._member, ~is_live)

    def _free(self, connection: sa.Connection, condition: sa.ColumnElement[bool]) -> None:
        free = sa.select(items.c.job, items.c.number).where(condition).with_for_update(of=items, skip_locked=True)
        connection.execute(sa.update(items).where(_NAME.in_(free)).values(member=None))


def _search(full: Collection[str], after: sa.Row[Any] | None, limit: int) -> sa.Select[Any]:
    """Return the query for due links in the order of their expiry, after a row, and without those of full hosts."""
    first = sa.select(items.c.host, *_PLACE).where(_WAITING, items.c.due_at <= DATABASE_TIME)
    if after is not None:
        first = first.where(sa.tuple_(*_PLACE) > sa.tuple_(after.expires_at, after.job, after.number))
    found = first.order_by(*_PLACE).limit(SEARCHED_MAX).subquery()
    place = (found.c.expires_at, found.c.job, found.c.number)
    return sa.select(found).where(found.c.host.not_in(full)).order_by(*place).limit(limit)
