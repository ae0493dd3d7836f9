"""
Which responses are rewritten, and what becomes of their headers (RFC 9110).

Rules:
- Only whole pages of HTML are: what a browser shows as `text/html` and gets in one response. Parts, answers without a
  body, downloads, signed ones, and those whose body the server takes from elsewhere are left alone; XHTML too, which is
  read by other rules.
- Who says `no-transform` is heeded.
- Of doubtful headers none is guessed about: two media types, two lengths, a length that is no number.
- What is said about bytes that change goes: digests, ranges, strong validators.
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
"""All others (br, zstd) cannot be undone with what Python brings."""

NO_BODY: Final = frozenset({204, 205, 206, 304})

ELSEWHERE: Final = frozenset({
    "content-range", "transfer-encoding", "signature-input",
    "x-sendfile", "x-accel-redirect", "x-lighttpd-send-file", "x-litespeed-location", "x-reproxy-url",
})  # fmt: skip
"""With one of these the body is not ours to change: a part, framed already, signed (RFC 9421), made by the server."""

DIGESTS: Final = frozenset({"content-md5", "digest", "content-digest", "repr-digest"})
"""RFC 1864, 3230, 9530."""

_DROPPED: Final = DIGESTS | {"accept-ranges", "content-length"}

_CHARSET: Final = re.compile(r';[ \t]*charset[ \t]*=[ \t]*"?([^\s";]+)', re.IGNORECASE)
_NO_TRANSFORM: Final = re.compile(r"(?:^|,)[ \t]*no-transform[ \t]*(?:,|$)", re.IGNORECASE)
_STRONG: Final = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How the body of a response is rewritten.

    Attributes:
        has_body: Not in answers to HEAD.
        length: What the application says how many bytes come; `None`: it does not.
        charset: As the media type tells it.
    """

    has_body: bool
    length: int | None
    coding: Coding
    charset: str | None


def plan(method: str, status: int, headers: Headers) -> Plan | None:
    """Return how a response is rewritten; `None`: it is left alone."""
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
    Return whether a response is a part of what is rewritten as a whole. Its ranges are those of other bytes (RFC 9110,
    14), so who puts parts together that they have and parts that they get has neither page.
    """
    if status != 206 or method != "GET":
        return False
    return plan(method, 200, [(name, value) for name, value in headers if name.lower() != "content-range"]) is not None


def rewritten(headers: Headers, length: int | None) -> list[tuple[str, str]]:
    """
    Return the headers of a response that is rewritten.

    Args:
        headers: The application's.
        length: Of the new body, if it is known; it is told where the application has told one.
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
    """Return the headers of a response that is left alone: a 304 calls a page as its client does, by our weak tag."""
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
