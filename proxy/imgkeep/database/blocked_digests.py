"""
A copy of the store's blocked digests, for a start without the store.

The store's own marks are the truth; a lost table is filled again at the next refresh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from imgkeep.core.records import Digest
from imgkeep.database.picture_facts import delete_facts
from imgkeep.database.schema import refused

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgkeep.database.engine import DatabaseEngine


class RemovalIndex:
    """The digests of removed images, as far as this node knows them."""

    def __init__(self, engine: DatabaseEngine) -> None:
        self._engine = engine

    async def list_blocked(self) -> Collection[Digest]:
        query = sa.select(refused.c.digest)
        rows = await self._engine.execute(lambda connection: connection.scalars(query).all())
        return [Digest(digest) for digest in rows]

    async def block(self, digests: Collection[Digest]) -> None:
        """Add blocked digests, for the next start."""

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.delete(refused).where(refused.c.digest.in_(digests)))
            connection.execute(sa.insert(refused), [{"digest": digest} for digest in digests])
            delete_facts(connection, digests)

        await self._engine.execute(work)

    async def unblock(self, digests: Collection[Digest]) -> None:
        """Remove digests that an undo has unblocked."""
        change = sa.delete(refused).where(refused.c.digest.in_(digests))
        await self._engine.execute(lambda connection: connection.execute(change))
