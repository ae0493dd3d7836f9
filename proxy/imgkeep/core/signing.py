"""
Our own signatures on `/img` URLs: the permission to cause a fetch, or to read an image at all.

A signature is the HMAC-SHA-256 (RFC 2104) of four lines, joined by LF, in base64url without padding (RFC 4648, 5):

    v1
    <exp: epoch seconds in decimal, or nothing>
    <options: our other parameters sorted by name, as name=value&..., or nothing>
    <src: the source URL, decoded>

The signature covers `src` as the page writes it, character by character: a signer need not know how imgkeep parses
URLs. This module needs only the standard library; `docs/signing.md` has the recipe for other languages.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from imgkeep.core.errors import SignatureExpired, SignatureInvalid, SignatureRequired

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KEY_CHARS_MIN: Final = 16
"""Minimum length of a key: `imgkeep token` prints 43 characters, and an attacker can guess a shorter invented one."""

_EPOCH: Final = re.compile(r"[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True)
class ForeignSignature:
    """
    A valid signature of another image server on a URL, by the key of that server, which the operator has entered here.

    Attributes:
        covers_options: Whether it covers the options of the picture, and not the source alone.
        ends: When the permission ends, in epoch seconds; `None`: never.
    """

    covers_options: bool
    ends: int | None = None


def sign(key: str, src: str, *, expires: int | None = None, options: Iterable[tuple[str, str]] = ()) -> str:
    """Return the parameter `sig` of a source URL; `expires` is in epoch seconds, `options` are sorted by name."""
    return _sign(key, "" if expires is None else str(expires), options, src)


def signed_path(key: str, src: str, *, expires: int | None = None, options: Iterable[tuple[str, str]] = ()) -> str:
    """
    Return the signed path for a page, `/img?src=...&w=...&exp=...&sig=...`; the caller prepends the public URL.

    Args:
        key: One of `security.signing_keys`.
        src: The source URL.
        expires: When the permission ends, in epoch seconds; `None`: never.
        options: The options of a derived picture.
    """
    return f"/img?src={quote(src, safe='')}{_signed_options(key, src, expires, options)}"


def signed_images_path(
    key: str, path: str, *, expires: int | None = None, options: Iterable[tuple[str, str]] = ()
) -> str:
    """Return the signed path of a picture of a stored image; `path` is `/images/<name>`. See `signed_path`."""
    return f"{path}?{_signed_options(key, path, expires, options).removeprefix('&')}"


def _signed_options(key: str, src: str, expires: int | None, options: Iterable[tuple[str, str]]) -> str:
    options = sorted(options)
    given = "".join(f"&{name}={quote(value, safe='')}" for name, value in options)
    end = "" if expires is None else f"&exp={expires}"
    return f"{given}{end}&sig={sign(key, src, expires=expires, options=options)}"


class Signatures:
    """A verifier of signatures by any of `keys`, so that operators can rotate keys."""

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
            SignatureRequired: The URL has no signature.
            SignatureInvalid: The signature is not by any of the keys.
            SignatureExpired: The signature is valid, but has expired.
        """
        given = options.get("sig", "")
        if not given:
            raise SignatureRequired("the URL has to be signed: sig is missing")
        end = options.get("exp", "")
        others = sorted((name, value) for name, value in options.items() if name not in {"sig", "exp"})
        # It tries all keys in any case, so the time does not reveal which one matched.
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
