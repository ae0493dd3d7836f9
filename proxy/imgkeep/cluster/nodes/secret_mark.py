"""The hash of `cluster.secret` in the database, by which a process of another cluster is found out."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

SECRET_MARK: Final = "secret"  # noqa: S105 - the name of a row
SALT_BYTES: Final = 16
_SCRYPT: Final[dict[str, int]] = {"n": 16384, "r": 8, "p": 1}
"""Parameters of the hash, 50 ms (RFC 7914, 2): a guess costs as much."""


def make_mark(secret: str) -> str:
    """Return a new mark for a secret. Blocks for the time of a hash."""
    return _hash(secret, secrets.token_bytes(SALT_BYTES))


def matches(mark: str | None, secret: str) -> bool:
    """Tell whether a mark is the hash of a secret. Blocks for the time of a hash."""
    if mark is None:
        return False
    salt, _, _ = mark.partition(":")
    return hmac.compare_digest(mark, _hash(secret, bytes.fromhex(salt)))


def find_conflict(secret: str, *, is_same: bool, others_live: bool) -> str | None:
    """
    Return why a process with this secret may not join, and the remedy; `None`: it may.

    Args:
        secret: `cluster.secret` of the process.
        is_same: Whether the database has the mark of the same secret.
        others_live: Whether members of other machines live.
    """
    if not others_live:
        return None
    if not secret:
        return "other nodes use the database: set cluster.secret and cluster.advertise_url as on them"
    if not is_same:
        return (
            "the live nodes of the database have another cluster.secret: set it as on the other nodes, or "
            "database.url to a database of this cluster alone; to change the secret, end all nodes first"
        )
    return None


def _hash(secret: str, salt: bytes) -> str:
    return f"{salt.hex()}:{hashlib.scrypt(secret.encode(), salt=salt, dklen=32, **_SCRYPT).hex()}"
