"""
The tables' version: makes them in an empty database, and brings those of an older release up to date.

An empty database gets the tables as `tables.py` declares them; a database of an older release goes through the
migrations (Alembic). Both ways lead to the same tables; a test compares them. Only a database of another version makes
this module import Alembic, which takes a fifth of the time of a start.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.database.schema import metadata

NEWEST: Final = "0006"
"""The last of the migrations."""
RELEASED: Final = frozenset({NEWEST})
"""The versions that this one can use or migrate: those of releases, and the last one before the first release."""
_UNRELEASED: Final = frozenset({"0001", "0002", "0003", "0004", "0005"})
"""Versions of the months before the first release. Their migrations are gone."""

_version: Final = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


class IncompatibleDatabase(StorageError):
    """A database of a version that this one cannot use. It stays as it is: its own version may be about to return."""


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
    if sa.inspect(connection).has_table(_version.name):
        version = connection.scalar(sa.select(_version))
        if version != NEWEST:
            if version not in RELEASED:
                raise IncompatibleDatabase(f"the database {describe_mismatch(version)}")
            migrate(connection)
    elif read_only:
        raise StorageError("the database has no tables; `imgkeep reindex` makes them, and fills the image index")
    else:
        metadata.create_all(connection, checkfirst=False)
        _version.create(connection, checkfirst=False)
        connection.execute(_version.insert().values(version_num=NEWEST))


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
