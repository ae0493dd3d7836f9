"""
The outbox: the images of the fallback that wait for an upload to the primary, in the order of their uploads.

The fallback's folder is the truth about what waits; a lost table is filled again from it (`OutboxWorker.enlist`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from imgkeep.core.records import Backlog, Key, OutboxEntry
from imgkeep.database.schema import outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from imgkeep.core.records import Record
    from imgkeep.database.engine import DatabaseEngine


class Outbox:
    """
    The images that wait for the primary. `ImageIndex.put` adds a record that is `pending`, and removes one that is not.

    Attributes:
        last_backlog: The last result of `backlog`; `None` before the first call.
    """

    def __init__(self, engine: DatabaseEngine, flush: Callable[[], Awaitable[None]], *, node: str = "") -> None:
        self._engine = engine
        self._mine = outbox.c.node == node
        self._node = node
        self._flush = flush
        """Waits until the image index has written all records that were put."""
        self.last_backlog: Backlog | None = None

    async def due(self, limit: int) -> Sequence[OutboxEntry]:
        """Return up to `limit` images whose time has come, those that wait longest first."""
        await self._flush()
        query = (
            sa.select(outbox.c.key, outbox.c.attempts)
            .where(self._mine, outbox.c.due_at <= self._engine.now())
            .order_by(outbox.c.since, outbox.c.key)
            .limit(limit)
        )
        rows = await self._engine.execute(lambda connection: connection.execute(query).all())
        return [OutboxEntry(Key(row.key), row.attempts) for row in rows]

    async def postpone(self, entry: OutboxEntry, delay_s: float, error: str, *, counts: bool = True) -> None:
        """Count a failed attempt, unless it does not count, and wait `delay_s` seconds before the next."""
        change = (
            sa.update(outbox)
            .where(self._mine, outbox.c.key == entry.key)
            .values(attempts=entry.attempts + counts, due_at=self._engine.now() + round(delay_s), error=error[:255])
        )
        await self._engine.execute(lambda connection: connection.execute(change))

    async def note_error(self, error: str) -> None:
        """Note the reason why the outbox worker uploads no image at the moment, for the operator."""
        change = sa.update(outbox).where(self._mine).values(error=error[:255])
        await self._engine.execute(lambda connection: connection.execute(change))

    async def remove(self, key: Key) -> None:
        """Remove a key for which nothing is left to do."""
        await self._engine.execute(lambda connection: delete_entries(connection, self._node, [key]))

    async def backlog(self) -> Backlog:
        await self._flush()
        self.last_backlog = await self._engine.execute(lambda connection: _read_backlog(connection, self._mine))
        return self.last_backlog


def update_entries(connection: sa.Connection, node: str, records: Sequence[Record]) -> None:
    """Add the records that are pending, and remove those that are not, in the transaction that writes their rows."""
    keys = [record.key for record in records]
    mine = sa.and_(outbox.c.node == node, outbox.c.key.in_(keys))
    known = set(connection.scalars(sa.select(outbox.c.key).where(mine))) if keys else set()
    arrived = [record.key for record in records if not record.pending and record.key in known]
    if arrived:
        delete_entries(connection, node, arrived)
    new = [
        {"node": node, "key": record.key, "since": int(record.stored_at.timestamp()), "attempts": 0, "due_at": 0}
        for record in records
        if record.pending and record.key not in known
    ]
    if new:
        connection.execute(sa.insert(outbox), new)


def delete_entries(connection: sa.Connection, node: str, keys: Collection[Key]) -> None:
    connection.execute(sa.delete(outbox).where(outbox.c.node == node, outbox.c.key.in_(keys)))


def _read_backlog(connection: sa.Connection, mine: sa.ColumnElement[bool]) -> Backlog:
    count, oldest = connection.execute(sa.select(sa.func.count(), sa.func.min(outbox.c.since)).where(mine)).one()
    last = sa.select(outbox.c.error).where(mine, outbox.c.error.is_not(None)).order_by(outbox.c.due_at.desc()).limit(1)
    since = None if oldest is None else datetime.fromtimestamp(oldest, UTC)
    return Backlog(count, since, connection.scalar(last) if count else None)
