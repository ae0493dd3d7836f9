"""What tests of the database share: records by the hundred, and a look into the tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from imgkeep.core.records import Record
    from imgkeep.database import Database


async def walk(records: Iterable[Record]) -> AsyncIterator[Record]:
    """Yield records as a walk through a store does."""
    for record in records:
        yield record


def make_records(number: int) -> list[Record]:
    """Return records of which every two lie a second apart and every ten share their bytes."""
    return [
        replace(
            record_of(str(index // 10).encode() * 100, name=str(index)),
            stored_at=NOON + timedelta(seconds=index // 2),
            provenance=replace(
                record_of(str(index // 10).encode() * 100, name=str(index)).provenance, host=f"host-{index % 3}.example"
            ),
        )
        for index in range(number)
    ]


def query(database: Database, statement: str) -> list[Any]:
    """Run a statement on a connection of its own, in this thread."""
    engine = sa.create_engine(database.engine.url)
    with engine.begin() as connection:
        result = connection.exec_driver_sql(statement)
        rows = list(result) if result.returns_rows else []
    engine.dispose()
    return rows
