"""Rules for the section `[cluster]`: which settings make a node of several, and which values they take."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from imgkeep.config.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.config.schema import Config

SECRET_CHARS_MIN: Final = 32
"""Minimum length of `cluster.secret`: 128 bits in hexadecimal digits."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_URL_EXAMPLE: Final = "expected the URL at which other nodes reach this one, as http://10.0.0.5:8081, without a path"


def cluster_rules(config: Config) -> Iterator[Rule]:
    """Yield the rules."""
    yield from _identity_rules(config)
    yield from _address_rules(config)


def _identity_rules(config: Config) -> Iterator[Rule]:
    cluster = config.cluster
    yield Rule(
        "cluster.name",
        lambda: not cluster.name or _NAME.fullmatch(cluster.name) is not None,
        "expected up to 63 letters, digits, hyphens, dots and underscores",
    )
    yield Rule(
        "cluster.secret",
        lambda: not cluster.secret or re.fullmatch(rf"[!-~]{{{SECRET_CHARS_MIN},}}", cluster.secret) is not None,
        f"needs {SECRET_CHARS_MIN} printable ASCII characters or more, without spaces; see `imgkeep token`",
    )
    yield Rule(
        "cluster.secret",
        lambda: not cluster.secret or config.database.is_shared,
        "several nodes share a PostgreSQL, and database.url is a SQLite file of this machine: set database.url to "
        "postgresql://USER:PASSWORD@HOST/DATABASE, or leave [cluster] out",
        needs=("database.url",),
    )
    yield Rule(
        "cluster.secret",
        lambda: not cluster.secret or not config.store.url.lower().startswith("file:"),
        "several nodes share a bucket, and store.url is a folder of this machine: name a bucket there",
        needs=("store.url",),
    )


def _address_rules(config: Config) -> Iterator[Rule]:
    cluster = config.cluster
    yield Rule(
        "cluster.secret",
        lambda: not cluster.secret or bool(cluster.advertise_url),
        "needs cluster.advertise_url, the URL at which the other nodes reach this one",
        needs=("cluster.advertise_url",),
    )
    yield Rule(
        "cluster.advertise_url", lambda: not cluster.advertise_url or _is_base(cluster.advertise_url), _URL_EXAMPLE
    )
    yield Rule(
        "cluster.advertise_url",
        lambda: not cluster.advertise_url or bool(cluster.secret),
        "needs cluster.secret, the same for all nodes; `imgkeep token` makes one",
        needs=("cluster.secret",),
    )
    yield Rule(
        "cluster.advertise_url",
        lambda: not cluster.advertise_url or bool(cluster.listen) or _has_port(cluster.advertise_url),
        "needs a port, or cluster.listen, the address at which this node listens for the others",
        needs=("cluster.listen",),
    )
    yield Rule(
        "cluster.listen",
        lambda: cluster.listen_host_and_port is None or cluster.listen_host_and_port[1] != config.server.port,
        "is server.port; the other nodes need a port of their own, which no client reaches",
        needs=("cluster.advertise_url", "server.port"),
    )
    yield Rule(
        "cluster.tls_certificate",
        lambda: bool(cluster.tls_certificate) == bool(cluster.tls_key),
        "cluster.tls_certificate and cluster.tls_key need each other",
        needs=("cluster.tls_key",),
    )
    yield Rule(
        "cluster.tls_certificate",
        lambda: not cluster.tls_certificate or cluster.advertise_url.lower().startswith("https:"),
        "needs a cluster.advertise_url that begins with https://",
        needs=("cluster.advertise_url",),
    )


def _is_base(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    is_plain = re.fullmatch(r"[!-~]+", text) is not None and not (parts.query or parts.fragment or "@" in parts.netloc)
    return is_plain and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.path in {"", "/"}


def _has_port(text: str) -> bool:
    return not _is_base(text) or urlsplit(text).port is not None  # another rule reports what is no URL
