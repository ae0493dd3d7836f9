"""
Names of responses that depend on `Accept`: of one target there is one response for each class of clients.

Only the format of a picture depends on it, and only where the options say `format=auto`, by themselves or by a preset.
A target without these two parameters has one response, and costs no lookup more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.derived.negotiation import read_accept

if TYPE_CHECKING:
    from imgkeep.core.http_headers import Fields


def may_vary(target: bytes) -> bool:
    """
    Tell whether the response to a target may depend on `Accept`, as far as its bytes show. Options of a source that is
    a picture of this server may be percent-encoded.
    """
    return b"format=" in target or b"preset=" in target


def name_variant(target: bytes, fields: Fields) -> bytes:
    """Return the name of the response to a target for a client with these header fields."""
    return join_variant(target, read_class(fields))


def read_class(fields: Fields) -> bytes:
    """Return the class of a client, by the lines of its `Accept` combined (RFC 9110, 5.3)."""
    lines = fields.getall("Accept", [])
    return read_accept(", ".join(lines) if lines else None).key.encode()


def join_variant(target: bytes, client_class: bytes) -> bytes:
    """Return the name of the response to a target for a class of clients: no target has a space."""
    return b"%b %b" % (target, client_class)


def split_variant(name: bytes) -> tuple[bytes, bytes | None]:
    """Return the target in the name of a response, and the class of clients; `None`: all clients have the same one."""
    target, space, client_class = name.partition(b" ")
    return target, client_class if space else None
