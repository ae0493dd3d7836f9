"""
The tables' version: makes them in an empty database, and brings those of an older release up to date.

An empty database gets the tables as `schema.py` and `cluster_schema.py` declare them; a database of an older release
goes through the migrations (Alembic). Both ways lead to the same tables; a test compares them. Only a database of
another version makes this module import Alembic, which takes a fifth of the time of a start.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.database.advisory_locks import MIGRATION_LOCK
from imgkeep.database.cluster_schema import cluster_metadata
from imgkeep.database.schema import apply_conditions, metadata, state

if TYPE_CHECKING:
    from collections.abc import Callable

NEWEST: Final = "0008"
"""The last of the migrations."""
RELEASED: Final = frozenset({"0006", "0007", NEWEST})
"""The versions that this one can use or migrate: those of releases, and the last one before the first release."""
_UNRELEASED: Final = frozenset({"0001", "0002", "0003", "0004", "0005"})
"""Versions of the months before the first release. Their migrations are gone."""

_migrating: Final = threading.Lock()
"""Held during a migration. A thread takes it last, after every lock of its database."""
_version: Final = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


class IncompatibleDatabase(StorageError):
    """A database of a version that this one cannot use. It stays as it is: its own version may be about to return."""


COMPATIBLE_FROM: Final = "0007"
"""The oldest version that can use the tables of this one."""
COMPATIBLE_FROM_MARK: Final = "compatible_from"
"""The row of the table `state` that has it."""


def prepare_tables(
    connection: sa.Connection, before_migration: Callable[[], None] = lambda: None, *, read_only: bool = False
) -> None:
    """
    Make or migrate the tables, within the transaction that `connection` is in.

    Args:
        connection: To the database.
        before_migration: Called before a migration, which may take minutes.
        read_only: Whether to make no tables; a migration is made all the same.

    Raises:
        IncompatibleDatabase: A version made the tables that this one cannot use.
        StorageError: There are none to be read.
    """
    is_postgresql = connection.dialect.name == "postgresql"
    if is_postgresql:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    if sa.inspect(connection).has_table(_version.name):
        version = connection.scalar(sa.select(_version))
        if version != NEWEST and not is_compatible_newer(version, _read_compatible_from(connection)):
            if version not in RELEASED:
                raise IncompatibleDatabase(f"the database {describe_mismatch(version)}")
            before_migration()
            migrate(connection)
            _mark_compatible(connection)
    elif read_only:
        raise StorageError("the database has no tables; `imgkeep reindex` makes them, and fills the image index")
    else:
        apply_conditions(connection.dialect.name)
        metadata.create_all(connection, checkfirst=False)
        if is_postgresql:
            cluster_metadata.create_all(connection, checkfirst=False)
        _mark_compatible(connection)
        _version.create(connection, checkfirst=False)
        connection.execute(_version.insert().values(version_num=NEWEST))


def is_compatible_newer(version: str | None, compatible_from: str | None) -> bool:
    """Tell whether a newer version made the tables, and says that this one can use them."""
    if version is None or not re.fullmatch(r"[0-9]{4}", version) or version < NEWEST:
        return False
    return compatible_from is not None and compatible_from <= NEWEST


def _read_compatible_from(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(state.name):
        return None
    return connection.scalar(sa.select(state.c.value).where(state.c.name == COMPATIBLE_FROM_MARK))


def _mark_compatible(connection: sa.Connection) -> None:
    connection.execute(sa.delete(state).where(state.c.name == COMPATIBLE_FROM_MARK))
    connection.execute(sa.insert(state), {"name": COMPATIBLE_FROM_MARK, "value": COMPATIBLE_FROM})


def migrate(connection: sa.Connection, version: str = "head") -> None:
    """
    Run each migration up to `version` that the database has not seen.

    One database after the other: Alembic's `context` and `op` are proxies of the whole process. Of two migrations at
    once, in two threads, each may run on the connection of the other:

    1. Thread A makes `alembic_version` on its connection, and does not commit yet.
    2. Thread B installs its proxies.
    3. Thread A goes on through the proxies, so on B's connection, and makes a table there that A's own connection has
       made or locked. The server lets it wait for A's transaction.
    4. Only thread A could end that transaction. PostgreSQL sees an idle client and no deadlock: both threads hang.

    With two SQLite files the migrations of one run in the other one.
    """
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "imgkeep.database:migrations")
    config.attributes["connection"] = connection
    with _migrating:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        command.upgrade(config, version)


def describe_mismatch(version: str | None) -> str:
    """Return the end of the sentence that says why this version cannot use a database."""
    if version in _UNRELEASED:
        return (
            f"was written before the first release (schema {version}): move it away; "
            "`imgkeep reindex` fills a new one from the records, jobs are lost"
        )
    return (
        f"was written by a newer version of imgkeep (schema {version}), or by another program: run that version, or "
        "name another database in database.url"
    )
