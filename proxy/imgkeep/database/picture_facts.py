"""
The facts of pictures by digest: records of the same bytes share them.

They may be lost: the pixels tell them again. The rows of a removed image go with its block (`image_index.py`,
`blocked_digests.py`), and `put` writes none of a blocked digest.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.core.picture_facts import PictureFacts, read_picture_facts
from imgkeep.core.records import Digest
from imgkeep.database.advisory_locks import INDEX_LOCK
from imgkeep.database.dialect_insert import insert_new
from imgkeep.database.schema import images, picture_facts, refused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from imgkeep.core.records import Record
    from imgkeep.database.engine import DatabaseEngine

FIND_MAX: Final = 500
"""Maximum number of digests in one statement; a page of the API has as many at most."""
STALE_MAX: Final = 100_000
"""Maximum number of rows that one reindex deletes: a second or two."""

_NAMES: Final = tuple(field.name for field in fields(PictureFacts))


class PictureFactsTable:
    """The facts of pictures in the database."""

    def __init__(self, engine: DatabaseEngine) -> None:
        self._engine = engine

    async def find(self, digests: Collection[Digest]) -> dict[Digest, PictureFacts]:
        """Return the facts that are known, by digest. Raises: StorageError."""
        wanted, found = sorted(set(digests)), {}
        for start in range(0, len(wanted), FIND_MAX):
            query = sa.select(picture_facts).where(picture_facts.c.digest.in_(wanted[start : start + FIND_MAX]))
            for row in await self._engine.read(partial(_read_rows, query)):
                facts = read_picture_facts({name: getattr(row, name) for name in _NAMES})
                if facts is not None:
                    found[Digest(row.digest)] = facts
        return found

    async def put(self, facts: Mapping[Digest, PictureFacts]) -> None:
        """Add facts, but none of blocked digests. Raises: StorageError."""

        def work(connection: sa.Connection) -> None:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(INDEX_LOCK)))  # no block meanwhile
            blocked = set(connection.scalars(sa.select(refused.c.digest).where(refused.c.digest.in_(facts))))
            insert_facts(connection, {digest: each for digest, each in facts.items() if digest not in blocked})

        await self._engine.execute(work)

    async def add_to(self, records: Sequence[Record]) -> list[Record]:
        """Return records with their facts where these are known; a database that fails knows none."""
        known: Mapping[Digest, PictureFacts] = {}
        with suppress(StorageError):
            known = await self.find({record.digest for record in records if record.picture is None})
        return [add_facts(record, known.get(record.digest)) for record in records]


def add_facts(record: Record, facts: PictureFacts | None) -> Record:
    """Return a record with the facts of its picture; a record without a size in pixels has no place for them."""
    if facts is None or record.pixel_size is None:
        return record
    return replace(record, pixel_size=replace(record.pixel_size, picture=facts))


def _read_rows(query: sa.Select[Any], connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    return connection.execute(query).all()


def delete_stale_facts(connection: sa.Connection) -> None:
    """Delete the rows of images that are stored no longer, up to `STALE_MAX` of them."""
    stale = sa.select(picture_facts.c.digest).outerjoin(images, images.c.digest == picture_facts.c.digest)
    digests = stale.where(images.c.digest.is_(None)).limit(STALE_MAX)
    connection.execute(sa.delete(picture_facts).where(picture_facts.c.digest.in_(digests)))


def insert_facts(connection: sa.Connection, facts: Mapping[Digest, PictureFacts]) -> None:
    """Insert rows; those that are there stay. In one order, so that no two nodes wait for each other."""
    rows = [{"digest": digest, **asdict(each)} for digest, each in sorted(facts.items())]
    if rows:
        connection.execute(insert_new(connection, picture_facts), rows)


def delete_facts(connection: sa.Connection, digests: Collection[str]) -> None:
    """Delete the rows of removed images."""
    connection.execute(sa.delete(picture_facts).where(picture_facts.c.digest.in_(digests)))
