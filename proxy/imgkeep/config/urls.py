"""The URLs of stores and databases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from imgkeep.config.errors import ConfigError
from imgkeep.core.store_url import Folder
from imgkeep.core.store_url import read_store_url as read_place

if TYPE_CHECKING:
    from imgkeep.config.schema import Config
    from imgkeep.core.store_url import StorePlace

DATA_FOLDER_DEFAULT: Final = "data"
"""The folder for drafts and copies if there is no fallback."""


def read_store_url(setting: str, url: str) -> StorePlace:
    """
    Read the URL of a store.

    Raises:
        ConfigError: It names no store that this version knows.
    """
    try:
        return read_place(url)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from None


def data_folder(config: Config) -> Path:
    """Return the data folder of this machine: of the local store, or of the fallback of a bucket."""
    place = read_store_url("store.url", config.store.url)
    if isinstance(place, Folder):
        return Path(place.path)
    fallback = read_store_url("store.fallback", config.store.fallback) if config.store.fallback else None
    return Path(fallback.path if isinstance(fallback, Folder) else DATA_FOLDER_DEFAULT)


_LIBPQ_PARAMETERS: Final = frozenset({
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "gssencmode", "host", "hostaddr",
    "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname", "load_balance_hosts",
    "options", "passfile", "port", "require_auth", "service", "ssl_max_protocol_version", "ssl_min_protocol_version",
    "sslcert", "sslcompression", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslrootcert", "sslsni",
    "target_session_attrs", "tcp_user_timeout",
})  # fmt: skip
"""Connection parameters (PostgreSQL 17, 32.1.2). An unknown one would fail at the first connection only."""


def read_database_url(url: str) -> str:
    """
    Return the SQLAlchemy URL of `database.url`: `sqlite:PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.

    Raises:
        ConfigError: It has another form. The message does not quote it: it may hold a password.
    """
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme == "sqlite":
        # SQLAlchemy reads options of the driver after a `?`, and SQLite has names for databases in memory. SQLAlchemy
        # decodes percent-encoding, so both forms are checked.
        if not all(
            re.fullmatch(r"(?!//)(?!:)[^\x00-\x1f\x7f?#]*[^\x00-\x1f\x7f?#/]", it) for it in (rest, unquote(rest))
        ):
            raise ConfigError("database.url: expected sqlite:PATH, a file, without ? and # in its name")
        return f"sqlite:///{rest}"
    if scheme in {"postgresql", "postgres"}:
        _check_postgresql_url(url)
        return f"postgresql+psycopg:{rest}"
    raise ConfigError("database.url: expected sqlite:PATH or postgresql://USER:PASSWORD@HOST/DATABASE")


def _check_postgresql_url(url: str) -> None:
    expected = "database.url: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigError(f"{expected}; in a password / ? # @ : and % are percent-encoded") from None
    user, _, authority = parts.netloc.rpartition("@")
    # SQLAlchemy takes a stray percent sign or a space, and libpq refuses it with a message that quotes the password.
    is_plain = url.isprintable() and not re.search(r" |%(?![0-9A-Fa-f]{2})", url)
    if not is_plain or "\0" in unquote(url) or parts.fragment or "@" in user:
        raise ConfigError(f"{expected}; in a password / ? # @ : and % are percent-encoded")
    if not host or port == 0 or not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?", authority):
        raise ConfigError(f"{expected}; the host or the port is malformed")
    if not re.fullmatch(r"/[^/]+", parts.path):
        raise ConfigError(f"{expected}; the name of the database is missing or has a slash in it")
    for name, _ in parameters:
        if name not in _LIBPQ_PARAMETERS:
            raise ConfigError(
                "database.url: behind the ? expected parameters of PostgreSQL's libpq, as sslmode=require"
            )
