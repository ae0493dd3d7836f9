"""
The decision which responses to rewrite, and their new headers (RFC 9110).

Rules:
- Only complete pages of HTML are rewritten: `text/html` in one response. Partial responses, responses without a body,
  downloads, signed responses, and bodies from another source than the application stay; so does XHTML, which has other
  rules.
- A response with `no-transform` stays.
- A response with contradictory headers stays: two media types, two lengths, a length that is no number.
- Headers about the exact bytes go: digests, ranges, strong validators.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from imgkeep.core.http_headers import etag_matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Headers = Sequence[tuple[str, str]]

Coding = Literal["identity", "gzip", "deflate"]

CODINGS: Final[Mapping[str, Coding]] = {"": "identity", "identity": "identity", "gzip": "gzip", "x-gzip": "gzip",
                                        "deflate": "deflate"}  # fmt: skip
"""Codings that the standard library can decode; it has no br and zstd."""

NO_BODY: Final = frozenset({204, 205, 206, 304})

ELSEWHERE: Final = frozenset({
    "content-range", "transfer-encoding", "signature-input",
    "x-sendfile", "x-accel-redirect", "x-lighttpd-send-file", "x-litespeed-location", "x-reproxy-url",
})  # fmt: skip
"""Fields of a response whose body must stay: a part, a framed body, a signed one (RFC 9421), one from the server."""

DIGESTS: Final = frozenset({"content-md5", "digest", "content-digest", "repr-digest"})
"""Fields with a digest of the body (RFC 1864, 3230, 9530)."""

_DROPPED: Final = DIGESTS | {"accept-ranges", "content-length"}

_CHARSET: Final = re.compile(r';[ \t]*charset[ \t]*=[ \t]*"?([^\s";]+)', re.IGNORECASE)
_NO_TRANSFORM: Final = re.compile(r"(?:^|,)[ \t]*no-transform[ \t]*(?:,|$)", re.IGNORECASE)
_STRONG: Final = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True, slots=True)
class Plan:
    """
    The parameters for rewriting one response.

    Attributes:
        has_body: Whether the response has a body; one to HEAD has none.
        length: The application's `Content-Length`; `None`: it sends none.
        charset: Parameter `charset` of the media type.
    """

    has_body: bool
    length: int | None
    coding: Coding
    charset: str | None


def plan(method: str, status: int, headers: Headers) -> Plan | None:
    """Return the parameters for rewriting a response; `None`: the response stays."""
    if status < 200 or status in NO_BODY:
        return None
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value)
    kind = fields.get("content-type", [])
    if len(kind) != 1 or kind[0].partition(";")[0].strip().lower() != "text/html":
        return None
    if ELSEWHERE & fields.keys() or any(map(_NO_TRANSFORM.search, fields.get("cache-control", []))):
        return None
    if any(value.strip().lower().startswith("attachment") for value in fields.get("content-disposition", [])):
        return None
    coding = CODINGS.get(", ".join(fields.get("content-encoding", [])).strip().lower())
    lengths = fields.get("content-length", [])
    if coding is None or len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        return None
    told = _CHARSET.search(kind[0])
    return Plan(method != "HEAD", int(lengths[0]) if lengths else None, coding, told[1] if told else None)


def is_part(method: str, status: int, headers: Headers) -> bool:
    """
    Return whether a response is a part of a page that would be rewritten as a whole. Its ranges count other bytes
    (RFC 9110, 14), so a client that joins it with a part of a rewritten page gets neither page.
    """
    if status != 206 or method != "GET":
        return False
    return plan(method, 200, [(name, value) for name, value in headers if name.lower() != "content-range"]) is not None


def rewritten(headers: Headers, length: int | None) -> list[tuple[str, str]]:
    """
    Return the headers of a rewritten response.

    Args:
        headers: The application's headers.
        length: Length of the new body, if known; it replaces the application's `Content-Length`.
    """
    changed: list[tuple[str, str]] = []
    for name, value in headers:
        lower = name.lower()
        if lower == "etag":
            if (tag := _weak(value)) is not None:
                changed.append((name, tag))
        elif lower == "content-length" and length is not None:
            changed.append((name, str(length)))
        elif lower not in _DROPPED:
            changed.append((name, value))
    return changed


def revalidated(status: int, headers: Headers, if_none_match: str) -> list[tuple[str, str]]:
    """Return the headers of a response that stays: a 304 gets the weak tag by which the client knows the page."""
    return [
        (name, _as_known(value, if_none_match) if status == 304 and name.lower() == "etag" else value)
        for name, value in headers
    ]


def _weak(tag: str) -> str | None:
    tag = tag.strip()
    if tag.startswith("W/"):
        return tag
    return f"W/{tag}" if _STRONG.fullmatch(tag) else None


def _as_known(tag: str, if_none_match: str) -> str:
    is_known = _STRONG.fullmatch(tag) is not None and f"W/{tag}" in if_none_match
    return f"W/{tag}" if is_known and etag_matches(if_none_match, tag) else tag
