"""
The tables' version: makes them in an empty database, and brings those of an older release up to date.

An empty database gets the tables as `tables.py` declares them; a database of an older release goes through the
migrations (Alembic). Both ways lead to the same tables; a test compares them. Only a database of another version makes
this module import Alembic, which takes a fifth of the time of a start.
"""

from __future__ import annotations

import re
from typing import Final

import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.database.cluster_schema import cluster_metadata
from imgkeep.database.schema import metadata, state

NEWEST: Final = "0007"
"""The last of the migrations."""
RELEASED: Final = frozenset({"0006", NEWEST})
"""The versions that this one can use or migrate: those of releases, and the last one before the first release."""
_UNRELEASED: Final = frozenset({"0001", "0002", "0003", "0004", "0005"})
"""Versions of the months before the first release. Their migrations are gone."""

_version: Final = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


class IncompatibleDatabase(StorageError):
    """A database of a version that this one cannot use. It stays as it is: its own version may be about to return."""


COMPATIBLE_FROM: Final = "0007"
"""The oldest version that can use the tables of this one."""
_COMPATIBLE_FROM_MARK: Final = "compatible_from"
_MIGRATION_LOCK: Final = 0x696D676B6565
"""Advisory lock of PostgreSQL: nodes that start at once make the tables one after the other."""


def prepare_tables(connection: sa.Connection, *, read_only: bool = False) -> None:
    """
    Make or migrate the tables, within the transaction that `connection` is in.

    Args:
        connection: To the database.
        read_only: Whether to make no tables; a migration is made all the same.

    Raises:
        IncompatibleDatabase: A version made the tables that this one cannot use.
        StorageError: There are none to be read.
    """
    is_postgresql = connection.dialect.name == "postgresql"
    if is_postgresql:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    if sa.inspect(connection).has_table(_version.name):
        version = connection.scalar(sa.select(_version))
        if version != NEWEST and not _is_compatible_newer(connection, version):
            if version not in RELEASED:
                raise IncompatibleDatabase(f"the database {describe_mismatch(version)}")
            migrate(connection)
            _mark_compatible(connection)
    elif read_only:
        raise StorageError("the database has no tables; `imgkeep reindex` makes them, and fills the image index")
    else:
        metadata.create_all(connection, checkfirst=False)
        if is_postgresql:
            cluster_metadata.create_all(connection, checkfirst=False)
        _mark_compatible(connection)
        _version.create(connection, checkfirst=False)
        connection.execute(_version.insert().values(version_num=NEWEST))


def _is_compatible_newer(connection: sa.Connection, version: str | None) -> bool:
    """Tell whether a newer version made the tables, and says that this one can use them."""
    if version is None or not re.fullmatch(r"[0-9]{4}", version) or version < NEWEST:
        return False
    oldest = connection.scalar(sa.select(state.c.value).where(state.c.name == _COMPATIBLE_FROM_MARK))
    return oldest is not None and oldest <= NEWEST


def _mark_compatible(connection: sa.Connection) -> None:
    connection.execute(sa.delete(state).where(state.c.name == _COMPATIBLE_FROM_MARK))
    connection.execute(sa.insert(state), {"name": _COMPATIBLE_FROM_MARK, "value": COMPATIBLE_FROM})


def migrate(connection: sa.Connection, version: str = "head") -> None:
    """Run each migration up to `version` that the database has not seen."""
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "imgkeep.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, version)


def describe_mismatch(version: str | None) -> str:
    """Return the end of the sentence that says why this version cannot use a database."""
    if version in _UNRELEASED:
        return (
            f"was written before the first release (schema {version}): move it away; "
            "`imgkeep reindex` fills a new one from the records, jobs are lost"
        )
    return f"was written by a newer version of imgkeep (schema {version}), or by another program"
