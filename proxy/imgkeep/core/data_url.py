"""Images without a link: data URLs, and the identities of bytes and of names in an imported folder."""

from __future__ import annotations

import re
from base64 import b64decode, urlsafe_b64encode
from binascii import Error
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from imgkeep.core.errors import InvalidRequest
from imgkeep.core.records import Key, SourceInfo

if TYPE_CHECKING:
    from imgkeep.core.records import Digest

_HEAD: Final = re.compile(r"data:([^,]{0,256}),", re.IGNORECASE)
_SPACE: Final = re.compile(rb"[ \t\r\n\f]+")


def identify_bytes(digest: Digest) -> SourceInfo:
    """Return the identity of an image without a link, from its bytes: an `ni` URI (RFC 6920)."""
    hashed = urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()
    identity = f"ni:///sha-256;{hashed}"
    return SourceInfo(identity, Key(sha256(identity.encode()).hexdigest()))


def identify_legacy(mount: str, name: str) -> SourceInfo:
    """Return the identity of an image that was imported under its old name, `/<mount>/<name>`."""
    identity = f"legacy:{mount}/{name}"
    return SourceInfo(identity, Key(sha256(identity.encode()).hexdigest()))


def read_data_url(text: str) -> bytes:
    """
    Return the bytes of a data URL (RFC 2397), and ignore its media type: the bytes show the format.

    The decoder is that of browsers (WHATWG Infra, "forgiving-base64 decode"): white space and padding are optional.

    Raises:
        InvalidRequest: It is no data URL.
    """
    head = _HEAD.match(text)
    if head is None:
        raise InvalidRequest("data is not a data URL: it begins with data:image/png;base64, or the like")
    # Base64 may be percent-encoded, too.
    data = text[head.end() :].encode("utf-8", "replace")
    data = unquote_to_bytes(data) if b"%" in data else data
    if not head[1].lower().rstrip().endswith(";base64"):
        return data
    data = _SPACE.sub(b"", data).rstrip(b"=")
    try:
        return b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except Error:
        raise InvalidRequest("data is not valid base64") from None
