"""What commands read of a cluster, and change in it, by its tables alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from imgkeep.cluster.nodes.membership import DEAD_AFTER_S
from imgkeep.cluster.nodes.secret_mark import SECRET_MARK, find_conflict, matches
from imgkeep.core.errors import StorageError
from imgkeep.database.advisory_locks import JOIN_LOCK
from imgkeep.database.cluster_schema import members
from imgkeep.database.dialect_insert import insert_or_replace
from imgkeep.database.schema import state
from imgkeep.database.schema_upgrade import IncompatibleDatabase
from imgkeep.database.store_mark import COMPLETE_MARK, STORE_MARK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.database import Database, DatabaseEngine

_SILENCE_S: Final = sa.extract("epoch", sa.func.clock_timestamp() - members.c.heartbeat_at)
"""Seconds since the last heartbeat of a row."""


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """
    A process in the table of members.

    Attributes:
        heartbeat_s: Seconds since its last heartbeat; one that is silent for longer than `DEAD_AFTER_S` is dead.
    """

    id: str
    node: str
    version: str
    heartbeat_s: float

    @property
    def is_live(self) -> bool:
        return self.heartbeat_s < DEAD_AFTER_S


async def list_members(engine: DatabaseEngine) -> Sequence[MemberFacts]:
    """Return the processes of all nodes; none where the database is a file of this machine. Raises: StorageError."""
    return await engine.execute(_list_members)


async def forget_node(database: Database, node: str) -> int:
    """
    Drop what waits in the outbox of a node that does not come back; return the number of images.

    Raises:
        StorageError: The node lives, or the database failed.
    """
    if any(member.node == node and member.is_live for member in await list_members(database.engine)):
        raise StorageError(f"the node {node!r} is live, and uploads what waits there by itself: end it first")
    return await database.outbox.forget(node)


async def compare_secret(engine: DatabaseEngine, secret: str, host: str) -> str:
    """
    Compare `cluster.secret` with that of the live nodes, as a start does; return what follows from it.

    Args:
        engine: The database that the nodes share.
        secret: `cluster.secret` of this node.
        host: The identity of its data folder: its own processes may live with an earlier secret.

    Raises:
        StorageError: A start would be refused, or the database failed.
    """

    def work(connection: sa.Connection) -> tuple[str | None, bool]:
        mark = connection.scalar(sa.select(state.c.value).where(state.c.name == SECRET_MARK))
        others = sa.select(members.c.id).where(members.c.host != host, _SILENCE_S < DEAD_AFTER_S).limit(1)
        return mark, connection.scalar(others) is not None

    mark, others_live = await engine.execute(work)
    is_same = await asyncio.to_thread(matches, mark, secret)
    if (conflict := find_conflict(secret, is_same=is_same, others_live=others_live)) is not None:
        raise StorageError(conflict, place=engine.location)
    if mark is None:
        return "no node has used the database yet"
    if not is_same:
        return "another cluster.secret than that of the last nodes; none of them is live, so the next start changes it"
    return "the same cluster.secret as the other nodes" if others_live else "cluster.secret has not changed"


async def adopt_store(engine: DatabaseEngine, store: str) -> None:
    """
    Make a database that of a store, before a reindex fills its image index anew.

    Raises:
        IncompatibleDatabase: Nodes with another store use it.
        StorageError: The database failed.
    """

    def work(connection: sa.Connection) -> None:
        if connection.dialect.name != "postgresql":
            return
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(JOIN_LOCK)))
        mark = connection.scalar(sa.select(state.c.value).where(state.c.name == STORE_MARK))
        if mark == store:
            return
        if mark is not None and any(member.is_live for member in _list_members(connection)):
            raise IncompatibleDatabase(
                f"live nodes use the database for another store ({mark}): set store.url as on them, or end them first",
                place=engine.location,
            )
        connection.execute(sa.delete(state).where(state.c.name == COMPLETE_MARK))
        connection.execute(insert_or_replace(state), {"name": STORE_MARK, "value": store})

    await engine.execute(work)


def _list_members(connection: sa.Connection) -> list[MemberFacts]:
    if connection.dialect.name != "postgresql":
        return []
    query = sa.select(members.c.id, members.c.node, members.c.version, _SILENCE_S).order_by(
        members.c.node, members.c.id
    )
    return [MemberFacts(row[0], row[1], row[2], float(row[3])) for row in connection.execute(query)]
