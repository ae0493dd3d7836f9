"""
Ranges of bytes: the fields `Range`, `If-Range` and `Content-Range` (RFC 9110, 13.1.5 and 14).

Positions count from zero, and ends are exclusive. A malformed field is as good as absent; nothing raises on any input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
_CONTENT_RANGE: Final = re.compile(r"bytes[ \t]+0-([0-9]{1,18})/([0-9]{1,18})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from `start` up to and without `end`."""

    start: int
    end: int


def range_applies(if_range: str | None, etag: str) -> bool:
    """Compare strongly, as `If-Range` does (RFC 9110, 13.1.5). We send no dates, so none can match."""
    return if_range is None or if_range.strip() == etag


def read_range(value: str, size: int) -> Span | Literal["unsatisfiable"] | None:
    """
    Read a `Range` of a body of `size` bytes (RFC 9110, 14.2).

    `None` stands for a range that we ignore: another unit, malformed, or several ranges, which may be answered whole.
    """
    match = _RANGE.fullmatch(value.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return Span(size - length, size) if length else "unsatisfiable"
    start = int(match[1])
    end = int(match[2]) + 1 if match[2] else size
    if end <= start and match[2]:
        return None
    return Span(start, min(end, size)) if start < size else "unsatisfiable"


def is_whole_range(content_range: str) -> bool:
    """Return whether the `Content-Range` of an unasked 206 covers the whole file."""
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    return match is not None and int(match[1]) + 1 == int(match[2])
