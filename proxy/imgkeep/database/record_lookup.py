"""
The lookup of one record by the session of a PostgreSQL: every miss has one.

It is one request, without the engine's thread and without SQLAlchemy's work for each statement: a third of the time.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import psycopg

from imgkeep.database.schema import images, select_records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.core.records import Key
    from imgkeep.database.session import DatabaseSession

_QUERY: Final = select_records(sa.bindparam("node")).where(images.c.key == sa.bindparam("key"))
_STATEMENT: Final = str(_QUERY.compile(dialect=psycopg.dialect()))  # type: ignore[no-untyped-call]
_Row: Final = namedtuple("_Row", [column.name for column in _QUERY.selected_columns])  # type: ignore[misc]  # noqa: PYI024 - the columns are those of the tables


class RecordLookup:
    """Finds rows of records as `node` sees them."""

    def __init__(self, session: DatabaseSession, node: str) -> None:
        self._session = session
        self._node = node

    @property
    def is_connected(self) -> bool:
        """Whether the session can be asked."""
        return self._session.is_connected

    async def find(self, key: Key, *, timeout_s: float) -> Sequence[Any]:
        """Return the row of a key, with the names of `select_records`, or none. Raises: StorageError."""
        rows = await self._session.execute(_STATEMENT, {"key": key, "node": self._node}, timeout_s=timeout_s)
        return [_Row(*row) for row in rows]
