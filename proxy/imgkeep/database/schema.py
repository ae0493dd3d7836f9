"""
Brings the tables of a database to their newest form.

An empty database gets the tables as they are declared, one of an older version is taken there step by step (Alembic).
Both are the same to every reader; a test holds them to it. Alembic is read only where there is a step to take: it is a
fifth of the time that a start takes.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.database.tables import metadata

NEWEST: Final = "0006"
"""The last of the migrations."""
KNOWN: Final = frozenset(f"{number:04}" for number in range(1, int(NEWEST) + 1))
"""All of them."""

_version: Final = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


class IncompatibleDatabase(StorageError):
    """Left alone: a newer version may be about to come back."""


def bring_up(connection: sa.Connection, *, reading: bool = False) -> None:
    """
    Make or change the tables, within the transaction that `connection` is in.

    Args:
        connection: To the database.
        reading: Whether to change what there is only, and to make nothing.

    Raises:
        IncompatibleDatabase: A newer version made them.
        StorageError: There are none to be read.
    """
    if sa.inspect(connection).has_table(_version.name):
        if connection.scalar(sa.select(_version)) != NEWEST:
            upgrade(connection)
    elif reading:
        raise StorageError("the database holds no database; `imgkeep reindex` makes one from the records")
    else:
        metadata.create_all(connection, checkfirst=False)
        _version.create(connection, checkfirst=False)
        connection.execute(_version.insert().values(version_num=NEWEST))


def upgrade(connection: sa.Connection, version: str = "head") -> None:
    """Take each step up to `version` that was not taken yet. Raises: IncompatibleDatabase."""
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "imgkeep.database:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, version)
    except CommandError:
        raise IncompatibleDatabase(
            "the database was written by a newer version of imgkeep, or is no database"
        ) from None
