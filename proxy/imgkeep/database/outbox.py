"""
The outbox: the images of the fallback that wait for an upload to the primary, in the order of their uploads.

The fallback's folder is the truth about what waits; a lost table is filled again from it (`OutboxWorker.enlist`).

Rules for a cluster, whose nodes share the table:
- Each row belongs to the node whose fallback has the image. Only that node uploads, postpones and deletes it.
- Other nodes read which node has an image. A removal makes their rows due, so that their workers meet it at once.
- An operator drops the rows of a node that does not come back (`forget`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Backlog, Key, OutboxEntry
from imgkeep.database.dialect_insert import insert_new
from imgkeep.database.schema import images, outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from imgkeep.core.records import Digest, Record
    from imgkeep.database.engine import DatabaseEngine

FIND_TIMEOUT_S: Final = 1
"""Timeout for a lookup: the store answers sooner than a database that takes longer."""


class Outbox:
    """
    The images that wait for the primary. `ImageIndex.put` adds a record that is `pending`, and removes one that is not.

    Attributes:
        last_backlog: The last result of `backlog`; `None` before the first call. Without the database the last one that
            it told, and what has come since.

    Args:
        engine: The engine of the database.
        flush: Waits until the image index has written all records that were put.
        unwritten: Returns the records that it could not write yet.
        node: The name of this node of a cluster; empty: it is the only one.
    """

    def __init__(
        self,
        engine: DatabaseEngine,
        flush: Callable[[], Awaitable[None]],
        *,
        unwritten: Callable[[], Collection[Record]] = tuple,
        node: str = "",
    ) -> None:
        self._engine = engine
        self._mine = outbox.c.node == node
        self._node = node
        self._flush = flush
        self._unwritten = unwritten
        self.last_backlog: Backlog | None = None
        self._told = Backlog()
        """The last backlog that the database told."""

    async def add(self, records: Sequence[Record]) -> None:
        """Add images that are pending, without a change of their rows in the image index."""
        if records:
            await self._engine.execute(lambda connection: update_entries(connection, self._node, records))

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
        """Return the summary of this node's outbox. Raises: StorageError."""
        await self._flush()
        try:
            self._told = await self._engine.execute(lambda connection: _read_backlog(connection, self._mine))
        except StorageError:
            new = [record.stored_at for record in self._unwritten() if record.pending]
            oldest = min([*new, *([self._told.oldest] if self._told.oldest else [])], default=None)
            self.last_backlog = replace(self._told, images=self._told.images + len(new), oldest=oldest)
            raise
        self.last_backlog = self._told
        return self._told

    async def backlogs(self) -> Mapping[str, Backlog]:
        """Return the backlog of each node that has one, by its name."""
        await self._flush()
        query = sa.select(outbox.c.node).distinct().order_by(outbox.c.node)

        def work(connection: sa.Connection) -> dict[str, Backlog]:
            nodes = connection.scalars(query).all()
            return {node: _read_backlog(connection, outbox.c.node == node) for node in nodes}

        return await self._engine.execute(work)

    async def holders(self, digest: Digest) -> Sequence[str]:
        """Return the other nodes whose fallbacks have an object."""
        if not self._node:
            return ()
        query = sa.select(outbox.c.node).distinct().where(outbox.c.digest == digest, outbox.c.node != self._node)
        return await self._engine.read(lambda connection: connection.scalars(query).all(), timeout_s=FIND_TIMEOUT_S)

    async def drop_lost(self, key: Key) -> None:
        """Remove an image that waits here and is nowhere any more, and its record."""
        await self._engine.execute(lambda connection: _forget(connection, self._node, outbox.c.key == key))

    async def forget(self, node: str) -> int:
        """Drop the rows of a node that does not come back, and the records of images that it alone has."""
        return await self._engine.execute(lambda connection: _forget(connection, node, sa.true()))


def update_entries(connection: sa.Connection, node: str, records: Sequence[Record]) -> None:
    """Add the records that are pending, and remove those that are not, in the transaction that writes their rows."""
    records = [record for record in records if not waits_elsewhere(record, node)]
    if not records:
        return
    query = sa.select(outbox.c.key, outbox.c.digest)
    query = query.where(outbox.c.node == node, outbox.c.key.in_([record.key for record in records]))
    known = {row.key: row.digest for row in connection.execute(query)}
    gone = [record.key for record in records if known.get(record.key) not in _waiting(record)]
    if gone:
        delete_entries(connection, node, gone)
    new = [
        {
            "node": node,
            "key": record.key,
            "since": int(record.stored_at.timestamp()),
            "attempts": 0,
            "due_at": 0,
            "digest": record.digest,
        }
        for record in records
        if record.pending and known.get(record.key) != record.digest
    ]
    if new:
        connection.execute(insert_new(connection, outbox), new)  # another worker of this node may enlist it


def delete_entries(connection: sa.Connection, node: str, keys: Collection[Key]) -> None:
    connection.execute(sa.delete(outbox).where(outbox.c.node == node, outbox.c.key.in_(keys)))


def hasten_entries(connection: sa.Connection, node: str, keys: Collection[Key]) -> None:
    """Have the other nodes look at once at what waits there under these keys."""
    if node:
        others = sa.and_(outbox.c.node != node, outbox.c.key.in_(keys))
        connection.execute(sa.update(outbox).where(others).values(due_at=0))


def waits_elsewhere(record: Record, node: str) -> bool:
    """Tell whether a record is of an image that waits in the fallback of another node."""
    return record.waits_at not in {None, "", node}


def waits_at_others(node: str) -> sa.ColumnElement[bool]:
    """Return a condition: the image waits in the fallback of another node."""
    same = sa.and_(outbox.c.key == images.c.key, outbox.c.digest == images.c.digest)
    return sa.exists().where(same, outbox.c.node != node) if node else sa.false()


def _waiting(record: Record) -> set[str | None]:
    """Return the digests of a row that a record leaves as it is; `None`: there is none."""
    return {record.digest, None} if record.pending else {None}


def _forget(connection: sa.Connection, node: str, these: sa.ColumnElement[bool]) -> int:
    """Delete rows of a node, and the records of images that no other node has; return the number of rows."""
    mine = sa.and_(outbox.c.node == node, these)
    same = sa.exists().where(mine, outbox.c.key == images.c.key, outbox.c.digest == images.c.digest)
    keys = images.c.key.in_(sa.select(outbox.c.key).where(mine))
    connection.execute(sa.delete(images).where(keys, same, ~waits_at_others(node)))
    return connection.execute(sa.delete(outbox).where(mine)).rowcount


def _read_backlog(connection: sa.Connection, mine: sa.ColumnElement[bool]) -> Backlog:
    count, oldest = connection.execute(sa.select(sa.func.count(), sa.func.min(outbox.c.since)).where(mine)).one()
    last = sa.select(outbox.c.error).where(mine, outbox.c.error.is_not(None)).order_by(outbox.c.due_at.desc()).limit(1)
    since = None if oldest is None else datetime.fromtimestamp(oldest, UTC)
    return Backlog(count, since, connection.scalar(last) if count else None)
