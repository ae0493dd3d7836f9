"""Decoders for tokens: base64 in its alphabets, JSON, JSON Web Tokens (RFC 7519). They verify no signature."""

from __future__ import annotations

from binascii import a2b_base64
from functools import lru_cache
from typing import Final

import msgspec

NESTING_MAX: Final = 64
"""Maximum number of brackets in a token's JSON: claims are flat, and deeper nesting is an attack on the parser."""

_URL_SAFE: Final = str.maketrans("-_", "+/")
_CLOUDFRONT: Final = str.maketrans("-_~", "+=/")


def decode_base64(text: str, *, cloudfront: bool = False) -> bytes | None:
    """
    Decode base64 in the usual or the URL-safe alphabet, padded or not; return `None` for any other text.

    Args:
        text: ASCII.
        cloudfront: `- _ ~` stand for `+ = /`, as in CloudFront's policies.
    """
    try:
        return a2b_base64(text.translate(_CLOUDFRONT if cloudfront else _URL_SAFE) + "==")
    except ValueError:
        return None


def read_json(data: bytes | None) -> object:
    """Read JSON; return `None` if the data is no JSON, or has more than `NESTING_MAX` brackets."""
    if data is None or data.count(b"[") + data.count(b"{") > NESTING_MAX:
        return None
    try:
        read: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return read


# The engine reads one token three times in a row: to recognise it, for its expiry and for its claims.
@lru_cache(maxsize=16)
def read_jwt(text: str) -> dict[str, object] | None:
    """
    Read the claims of a JSON Web Token; return `None` for any other text.

    Header and payload must be JSON objects, and the header must have an `alg`. OneDrive's
    `v1.<payload>.<signature>` has no header and counts as well.
    """
    parts = text.split(".")
    if len(parts) != 3:
        return None
    if parts[0] != "v1":
        header = read_json(decode_base64(parts[0]))
        if not isinstance(header, dict) or "alg" not in header:
            return None
    payload = read_json(decode_base64(parts[1]))
    return payload if isinstance(payload, dict) else None
