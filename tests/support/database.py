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


LATER = "0009"
"""The schema of a release to come."""


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


def upgrade_to_later(url: str, compatible_from: str) -> None:
    """Change the tables as a later release may: each gets a column, and there is a new one. Blocks."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in sa.inspect(connection).get_table_names():
            if table != "alembic_version":
                connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN later VARCHAR(9) NOT NULL DEFAULT 'later'")
        connection.exec_driver_sql("CREATE TABLE later_table (key VARCHAR(64) PRIMARY KEY)")
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{LATER}'")
        connection.exec_driver_sql(f"UPDATE state SET value = '{compatible_from}' WHERE name = 'compatible_from'")
    engine.dispose()
