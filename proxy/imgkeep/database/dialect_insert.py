"""
INSERT for rows of which some may be there: each dialect has its own form.

A dialect is imported where its database is used: that of PostgreSQL takes a tenth of the time of a start with SQLite.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection, Insert, Table


def insert_new(connection: Connection, table: Table) -> Insert:
    """Return an INSERT that leaves the rows that are there as they are."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_shared  # noqa: PLC0415 - see above

        return insert_shared(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415

    return insert(table).on_conflict_do_nothing()


@cache
def insert_or_replace(table: Table) -> Insert:
    """Return an INSERT for PostgreSQL that replaces every value of the rows that are there."""
    from sqlalchemy.dialects.postgresql import insert  # noqa: PLC0415

    statement = insert(table)
    others = [column.name for column in table.c if not column.primary_key]
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={name: statement.excluded[name] for name in others}
    )
