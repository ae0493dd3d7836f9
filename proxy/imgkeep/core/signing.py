"""
Our own signatures on `/img` URLs: who may have images fetched, or see them at all.

A signature is the HMAC-SHA-256 (RFC 2104) of four lines, joined by LF, in base64url without padding (RFC 4648, 5):

    v1
    <exp: epoch seconds in decimal, or nothing>
    <options: our other parameters sorted by name, as name=value&..., or nothing>
    <src: the source URL, decoded>

`src` is signed as the page names it, character by character: whoever signs need not know how we read URLs. This module
needs nothing beyond the standard library; `docs/signing.md` has the recipe for other languages.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from imgkeep.core.errors import SignatureExpired, SignatureInvalid, SignatureRequired

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KEY_CHARS_MIN: Final = 16
"""`imgkeep token` prints 43 characters; what people make up themselves is guessed below this."""

_EPOCH: Final = re.compile(r"[1-9][0-9]{0,11}")


def sign(key: str, src: str, *, expires: int | None = None, options: Iterable[tuple[str, str]] = ()) -> str:
    """Return the parameter `sig` of a source URL; `expires` is in epoch seconds."""
    return _sign(key, "" if expires is None else str(expires), options, src)


def signed_path(key: str, src: str, *, expires: int | None = None) -> str:
    """Return what a page asks for: `/img?src=...&exp=...&sig=...`, to be put behind the server's public URL."""
    end = "" if expires is None else f"&exp={expires}"
    return f"/img?src={quote(src, safe='')}{end}&sig={sign(key, src, expires=expires)}"


class Signatures:
    """Judges signatures. Any of `keys` makes them valid, so that keys can be rotated."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"Signatures({len(self._keys)} keys)"

    def judge(self, src: str, options: Mapping[str, str], now_s: float) -> int | None:
        """
        Return when the permission ends, in epoch seconds; `None`: never.

        Args:
            src: As in `ImgQuery.text`.
            options: All our parameters, `sig` and `exp` among them.
            now_s: Epoch seconds.

        Raises:
            SignatureRequired: There is none.
            SignatureInvalid: None of the keys has signed this.
            SignatureExpired: One has, for a time that is over.
        """
        given = options.get("sig", "")
        if not given:
            raise SignatureRequired("the URL has to be signed: sig is missing")
        end = options.get("exp", "")
        others = sorted((name, value) for name, value in options.items() if name not in {"sig", "exp"})
        # All keys are tried in any case, so the time tells nothing about which of them it was.
        valid = [compare_digest(_sign(key, end, others, src).encode(), given.encode()) for key in self._keys]
        if not any(valid) or (end and not _EPOCH.fullmatch(end)):
            raise SignatureInvalid("the signature does not fit this URL")
        if end and int(end) <= now_s:
            raise SignatureExpired("the signature has expired")
        return int(end) if end else None


def _sign(key: str, end: str, options: Iterable[tuple[str, str]], src: str) -> str:
    line = "&".join(f"{name}={value}" for name, value in options)
    message = f"v1\n{end}\n{line}\n{src}".encode()
    return urlsafe_b64encode(digest(key.encode(), message, sha256)).rstrip(b"=").decode()
