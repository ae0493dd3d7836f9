"""
Checks of a configuration on this machine, without the network, that create nothing.

`imgkeep check` runs all of them. A command on a store runs some before it opens the store: the user of a command that
writes must own the store, and a command that only reads must find one.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from imgkeep.bootstrap.bucket_clients import make_client
from imgkeep.bootstrap.peer_tls import require_tls_files
from imgkeep.config import ConfigError, data_folder, read_database_url, read_store_url
from imgkeep.core.derived.names import DERIVED
from imgkeep.core.layout import OBJECTS
from imgkeep.core.store_url import Folder
from imgkeep.database import require_driver
from imgkeep.database.sqlite_file import find_fault, find_file
from imgkeep.storage.local import ownership
from imgkeep.storage.local.store_files import DAMAGED

if TYPE_CHECKING:
    from imgkeep.config import Config
    from imgkeep.core.store_url import StorePlace
    from imgkeep.storage.bucket.client import BucketClient


async def check_machine(config: Config) -> None:
    """
    Check whether this machine can honour a configuration.

    Raises:
        ConfigError: It cannot. The error lists all mistakes.
    """
    mistakes = await asyncio.to_thread(_find_local_mistakes, config)
    place = read_store_url("store.url", config.store.url)
    if not isinstance(place, Folder):
        try:
            client = make_client(place, timeout_s=config.store.timeout_s)
            await client.check_settings()
            require_presign(config, client)
        except ConfigError as error:
            mistakes += error.messages
    if mistakes:
        raise ConfigError(*mistakes)


def require_owner(config: Config, *, server_helps: bool) -> None:
    """
    Refuse to write into a store of another user. Blocks.

    Raises:
        ConfigError: The store belongs to another user, or is read-only. The message has the remedy.
    """
    folder, database = data_folder(config), database_file(config)
    others = () if database is None else (database,)
    if why := ownership.refusal(folder, *others, server_helps=server_helps):
        raise ConfigError(why)


def require_folder_owner(folder: Path) -> None:
    """Refuse to write into a folder of another user. Blocks. Raises: as `require_owner`."""
    if why := ownership.refusal(folder, server_helps=False):
        raise ConfigError(why)


def require_presign(config: Config, client: BucketClient) -> None:
    """
    Refuse `delivery.mode` presign where the credentials of the store sign no links, after `client.check_settings`.

    Raises:
        ConfigError: They do not.
    """
    if config.delivery.mode == "presign" and not client.features.presign:
        raise ConfigError(
            "delivery.mode: presign is not possible with these credentials of the store; use others, or 'serve' or "
            "'redirect'"
        )


def require_no_images(config: Config) -> None:
    """
    Refuse `store.exclusive` while images of an earlier configuration are on the local disk. Blocks.

    Copies in the disk cache and in that of derived pictures do not count: imgkeep deletes them.

    Raises:
        ConfigError: There are some. The message has the remedy.
    """
    if not config.store.exclusive:
        return
    folder = data_folder(config)
    if any(path.is_file() for name in (OBJECTS, DERIVED, DAMAGED) for path in (folder / name).rglob("*")):
        raise ConfigError(
            f"store.exclusive: there are images in {folder.absolute()}; copy them by `imgkeep migrate file:{folder} "
            f"{config.store.url}`, then delete the folders v1 and {DAMAGED} there"
        )


def require_store(config: Config) -> None:
    """
    Refuse to work on a local store that does not exist, rather than create an empty one. Blocks.

    Raises:
        ConfigError: There is no store in the configured folder, as seen from the working folder.
    """
    place = read_store_url("store.url", config.store.url)
    if isinstance(place, Folder) and not _is_store_there(Path(place.path)):
        raise ConfigError(f"store.url: there is no store in {Path(place.path).absolute()}: {_HINT}")


def require_source_store(place: StorePlace) -> None:
    """Refuse a source of `migrate` that does not exist. Blocks. Raises: as `require_store`."""
    if isinstance(place, Folder) and not _is_store_there(Path(place.path)):
        raise ConfigError(f"FROM: there is no store in {Path(place.path).absolute()}; name its folder")


def _is_store_there(folder: Path) -> bool:
    """Whether there is a store, or perhaps one that this user cannot see."""
    try:
        (folder / "v1").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


_HINT: Final = "run this in the folder where imgkeep runs, or name its configuration with --config"


def require_database_file(config: Config) -> None:
    """
    Refuse to read a database that does not exist, rather than create an empty one. Blocks.

    Raises:
        ConfigError: There is no file as configured, as seen from the working folder, or it belongs to another user.
    """
    database = database_file(config)
    if database is None:
        return
    with suppress(PermissionError):  # of a folder above it
        if not database.exists():
            raise ConfigError(_missing_store_message(config, database))
        if os.access(database, os.R_OK | os.W_OK):
            return
    owner = ownership.name_user(_owner_of(database))
    remedy = f"run this as that user (sudo -u {owner} imgkeep ...)"
    raise ConfigError(f"database.url: {database.absolute()} belongs to user {owner}: {remedy}")


def _missing_store_message(config: Config, database: Path) -> str:
    """Return the message for a missing database: perhaps the whole store is missing."""
    place = read_store_url("store.url", config.store.url)
    if isinstance(place, Folder) and not _is_store_there(Path(place.path)):
        return f"store.url: there is no store in {Path(place.path).absolute()}: {_HINT}"
    return (
        f"database.url: there is no file {database.absolute()}: {_HINT}; `imgkeep reindex` makes one from the records"
    )


def _owner_of(path: Path) -> int:
    """Return the owner of a path, or of the nearest folder above it that this user can see."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            return place.stat().st_uid
    return os.geteuid()


def database_file(config: Config) -> Path | None:
    """Return the file of the database; `None`: a server holds it. Blocks."""
    url = sa.make_url(read_database_url(config.database.url))
    return find_file(Path(url.database or "")) if url.get_backend_name() == "sqlite" else None


def _find_local_mistakes(config: Config) -> list[str]:
    mistakes: list[str] = []
    folder, database = data_folder(config), database_file(config)
    setting = "store.url" if isinstance(read_store_url("store.url", config.store.url), Folder) else "store.fallback"
    if why := _find_folder_fault(folder):
        mistakes.append(f"{setting}: {why}")
    try:
        require_no_images(config)
    except ConfigError as error:
        mistakes += error.messages
    try:
        require_tls_files(config.cluster)
    except ConfigError as error:
        mistakes += error.messages
    if database is None:
        try:
            require_driver(read_database_url(config.database.url))
        except ConfigError as error:
            mistakes += error.messages
    elif why := find_fault(database):
        mistakes.append(f"database.url: {database.absolute()} {why}")
    elif database.parent != folder and (why := _find_folder_fault(database.parent)):
        mistakes.append(f"database.url: {why}")
    return mistakes


def _find_folder_fault(folder: Path) -> str | None:
    """Return the reason why this user cannot write into a folder or create it; `None`: the user can."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            if not place.is_dir():
                if os.path.lexists(place):
                    return f"{place} is a file, not a folder"
                continue
        except OSError as error:
            return f"{place} cannot be read: {os.strerror(error.errno or errno.EIO)}"
        if os.access(place, os.R_OK | os.W_OK | os.X_OK):
            return None
        owner = ownership.name_user(place.stat().st_uid)
        doing = "write to" if place == folder.absolute() else f"make {folder.absolute()} in"
        return f"{ownership.name_user(os.geteuid())} may not {doing} {place}, which belongs to user {owner}"
    return None
