"""
Reads the head of a request that asks for nothing but bytes: what the quick way of answering has to know of it.

Rules:
- Only what is certain is read. Whatever a strict reading does not cover (a body, an upgrade, a field of odd form, a
  second request behind the first) is left to the full parser, so that the two can never disagree about where a request
  ends (RFC 9112, 11.2).
- What is read depends on the bytes alone, so it may be remembered by them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.http_headers import read_host

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

BLOCK_BYTES_MAX: Final = 8192
"""Of the header fields together: a browser's, cookies included, have a tenth of it."""
FIELDS_MAX: Final = 100
"""A browser sends twenty; the full parser refuses more than it cares to read, and says so."""

# RFC 9110, 5.1 and 5.5; an empty line only at the end.
_BLOCK: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")
_NOTABLE: Final = re.compile(
    rb"^(connection|content-encoding|content-length|expect|host|if-none-match|if-range|proxy-connection|range"
    rb"|transfer-encoding|upgrade):([^\r]*)\r$",
    re.IGNORECASE | re.MULTILINE,
)
_CONDITIONS: Final = frozenset({"if-none-match", "range", "if-range"})


@dataclass(frozen=True, slots=True)
class RequestConditions:
    """The conditions of a request, each field as it came; `None`: it did not."""

    if_none_match: str | None = None
    range: str | None = None
    if_range: str | None = None


PLAIN: Final = RequestConditions()
"""Of a request without conditions."""


def read_fields(block: bytes, hosts: AbstractSet[str] = frozenset()) -> RequestConditions | None:
    """
    Read what stands behind a request line of HTTP/1.1: header fields, and the empty line at their end.

    `None`: this is not certainly the whole of one request without a body, on a connection that stays open, and under
    one of the names `hosts` if there are any.
    """
    if len(block) > BLOCK_BYTES_MAX or block.count(b"\n") > FIELDS_MAX or _BLOCK.fullmatch(block) is None:
        return None
    conditions: dict[str, str] = {}
    lines_of_host = 0
    for name_bytes, value_bytes in _NOTABLE.findall(block):
        name, value = name_bytes.decode().lower(), decode(value_bytes).strip(" \t")
        if name in _CONDITIONS:
            # Its lines combined (RFC 9110, 5.3).
            conditions[name] = f"{conditions[name]}, {value}" if name in conditions else value
        elif name == "host":
            lines_of_host += 1
            host = read_host(value)
            if host is None or (hosts and host not in hosts):
                return None
        # The parser takes either name for the other, as old clients do.
        elif name not in {"connection", "proxy-connection"} or value.lower() not in {"keep-alive", ""}:
            return None
    if lines_of_host != 1:
        return None  # RFC 9112, 3.2
    if not conditions:
        return PLAIN
    return RequestConditions(conditions.get("if-none-match"), conditions.get("range"), conditions.get("if-range"))


def decode(field: bytes) -> str:
    """
    Decode as the full parser does, so that a field is judged alike whichever of the two has read it. A byte that is not
    UTF-8 stays recognisable: as Latin-1, 0xA0 would be a space and 0x85 a line end to `str.strip`.
    """
    return field.decode("utf-8", "surrogateescape")


def list_fields(block: bytes) -> list[tuple[str, str]]:
    """Return names and values of a block that `read_fields` has read."""
    lines = decode(block).split("\r\n")
    return [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines) if name]
