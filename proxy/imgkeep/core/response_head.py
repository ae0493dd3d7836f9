"""
A parser of response heads with the tolerance of browsers, which rewrites a head for a strict parser.

A strict parser refuses a head for one malformed line, and with it an image that every browser shows. The rules here are
Chromium's (`net/http/http_util.cc`, `http_response_headers.cc`, `http_stream_parser.cc`):

- up to four bytes may precede `HTTP`, in any case; an invalid version means 1.0, a missing status means 200;
- lines end with CR, LF or both; a line that begins with white space continues the field before it;
- a line without a colon, or whose name is no token, is no field; white space before the colon does not count;
- `chunked` anywhere in `Transfer-Encoding` frames the body, whatever the lengths;
- else all values of `Content-Length` must be equal, or imgkeep refuses the response; a value that is no number is no
  length.

Strictness protects a chain of parsers: one reads a single response where the next reads two. imgkeep reads responses to
its own requests over its own connections, closes such a connection afterwards and forwards no framing. So there is no
next parser, and no smuggling. (`chunked_body.py` decodes chunks that a strict parser refuses; bytes behind the end of a
body end the connection.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

FIELDS_MAX: Final = 1024
"""Maximum number of fields in a head, at a microsecond each. Real heads have thirty, with many cookies some hundred."""

_START: Final = re.compile(rb".{0,4}?(?=http)", re.IGNORECASE | re.DOTALL)
_END: Final = re.compile(rb"\n\r?\n")
_LINE: Final = re.compile(rb"[^\r\n]+")
_STATUS: Final = re.compile(rb"[^ ]* +([0-9]+)")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

# Fields about the connection, which ends with this response. aiohttp refuses the last one in any response.
_DROPPED: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"content-length", b"transfer-encoding",
    b"sec-websocket-key1",
})  # fmt: skip


class Contradiction(ValueError):
    """A head with two different lengths. The message is for people and quotes nothing from the origin."""


@dataclass(frozen=True, slots=True)
class Head:
    """
    A head for a strict parser.

    Attributes:
        status: Status of three digits.
        data: The head with the empty line, and with `Connection: close` for the last response of a connection.
        length: Length of the body; `None`: chunks or the end of the connection frame it.
        chunked: Whether chunks frame it.
    """

    status: int
    data: bytes
    length: int | None
    chunked: bool


def may_begin(data: bytes | bytearray) -> bool:
    """Return whether `data` may be the beginning of a response."""
    return len(data) < 8 or _START.match(data) is not None


def find_head_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Return where the head in `data` ends; `None` if it is still incomplete. Search from `start` on."""
    begin = _START.match(data)
    end = None if begin is None else _END.search(data, max(start, begin.end()))
    return None if end is None else end.end()


def mend_head(data: bytes, *, is_last: bool = True) -> Head | None:
    """
    Return the head for a strict parser; `None` if browsers refuse it, too, or if it has too many fields.

    Args:
        data: A head with the empty line.
        is_last: Whether the connection ends with this response.

    Raises:
        Contradiction: The head has two lengths.
    """
    begin = _START.match(data)
    # Counting is cheap, splitting is not.
    if begin is None or b"\0" in data or data.count(b"\n") + data.count(b"\r") > 2 * (FIELDS_MAX + 4):
        return None
    first, *lines = _LINE.findall(data, begin.end())
    status = _read_status(first)
    if status is None:
        return None
    fields = _read_fields(lines)
    codings, lengths = (_items(fields, name) for name in (b"transfer-encoding", b"content-length"))
    chunked = b"chunked" in {coding.lower() for coding in codings}
    length = None if chunked else _read_length(lengths)
    rewritten = [b"%b: %b\r\n" % field for field in fields if field[0].lower() not in _DROPPED]
    if chunked:
        rewritten.append(b"Transfer-Encoding: chunked\r\n")
    elif length is not None:
        rewritten.append(b"Content-Length: %d\r\n" % length)
    if is_last:
        rewritten.append(b"Connection: close\r\n")
    return Head(status, b"HTTP/1.1 %d \r\n%b\r\n" % (status, b"".join(rewritten)), length, chunked)


def has_chunked(values: list[str]) -> bool:
    """Return whether `chunked` is anywhere in the values of `Transfer-Encoding`."""
    return any(item.strip(" \t").lower() == "chunked" for value in values for item in value.split(","))


def _read_status(line: bytes) -> int | None:
    """Return the status; `None` if it does not have three digits."""
    match = _STATUS.match(line)
    if match is None:
        return 200
    digits = match[1].lstrip(b"0")
    return int(digits) if len(digits) == 3 else None


def _read_fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    parts: list[bytes] | None = None
    name = b""
    for line in [*lines, b"end:"]:
        if line[:1] in {b" ", b"\t"}:
            if parts is not None:
                parts.append(line.strip(b" \t"))
            continue
        if parts is not None:
            fields.append((name, b" ".join(filter(None, parts))))
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" \t")
        parts = [value.strip(b" \t")] if colon and _TOKEN.fullmatch(name) else None
    return fields


def _items(fields: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return the members of all lists under `name`, the empty ones too."""
    return [item.strip(b" \t") for field, value in fields if field.lower() == name for item in value.split(b",")]


def _read_length(values: list[bytes]) -> int | None:
    if len(set(values)) > 1:
        raise Contradiction("the origin's answer has two different lengths")
    return int(values[0]) if values and _LENGTH.fullmatch(values[0]) else None
