"""
Reads the head of an origin's answer as browsers read it, and writes it again as a strict parser wants it.

A strict parser refuses a head for one malformed line, and the image behind it, which every browser shows. The rules
here are Chromium's (`net/http/http_util.cc`, `http_response_headers.cc`, `http_stream_parser.cc`):

- up to four bytes may stand before `HTTP`, in any case; what is no version is 1.0, and no status is 200;
- lines end with CR, LF or both; a line that begins with white space goes on with the field before it;
- a line without a colon or with a name that is no token is no field; white space before the colon does not count;
- `chunked` anywhere in `Transfer-Encoding` frames the body, whatever lengths there are;
- else all values of `Content-Length` are one, or the answer is refused; what is no number is no length.

Strictness protects readers who stand in a row: what the first reads as one answer, the next reads as two. We read
answers that we asked for over connections of our own, use no such connection again and forward no framing. So there is
no next reader, and nothing is smuggled. (Chunks that a strict parser refuses are read by `chunks.py`; whatever comes
behind the end of a body ends the connection.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

FIELDS_MAX: Final = 1024
"""Maximum of fields in a head: each costs a microsecond. Real heads have thirty, long lists of cookies some hundred."""

_START: Final = re.compile(rb".{0,4}?(?=http)", re.IGNORECASE | re.DOTALL)
_END: Final = re.compile(rb"\n\r?\n")
_LINE: Final = re.compile(rb"[^\r\n]+")
_STATUS: Final = re.compile(rb"[^ ]* +([0-9]+)")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

# Fields about the connection, which ends with this answer. aiohttp refuses the last one in any answer.
_DROPPED: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"content-length", b"transfer-encoding",
    b"sec-websocket-key1",
})  # fmt: skip


class Contradiction(ValueError):
    """A head that says two things of one length. The message is for people and holds nothing that the origin sent."""


@dataclass(frozen=True, slots=True)
class Head:
    """
    A head that a strict parser takes.

    Attributes:
        status: three digits.
        data: the head, the empty line included. It ends the connection, unless that may be used again.
        length: bytes of the body; `None`: chunks, or the end of the connection, tell where it ends.
        chunked: whether chunks do.
    """

    status: int
    data: bytes
    length: int | None
    chunked: bool


def may_begin(data: bytes | bytearray) -> bool:
    """Return whether `data` may be the beginning of an answer."""
    return len(data) < 8 or _START.match(data) is not None


def find_head_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Return where the head at the beginning of `data` ends; `None` if that is still to come. Look from `start` on."""
    begin = _START.match(data)
    end = None if begin is None else _END.search(data, max(start, begin.end()))
    return None if end is None else end.end()


def mend_head(data: bytes, *, is_last: bool = True) -> Head | None:
    """
    Return a head as a strict parser wants it; `None` if it is none to browsers either, or has too many fields.

    Args:
        data: a head, the empty line included.
        is_last: whether the connection ends with this answer.

    Raises:
        Contradiction: it has two lengths.
    """
    begin = _START.match(data)
    # To count is cheap, to split is not.
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
    kept = [b"%b: %b\r\n" % field for field in fields if field[0].lower() not in _DROPPED]
    if chunked:
        kept.append(b"Transfer-Encoding: chunked\r\n")
    elif length is not None:
        kept.append(b"Content-Length: %d\r\n" % length)
    if is_last:
        kept.append(b"Connection: close\r\n")
    return Head(status, b"HTTP/1.1 %d \r\n%b\r\n" % (status, b"".join(kept)), length, chunked)


def has_chunked(values: list[str]) -> bool:
    """Return whether `chunked` is anywhere in the values of `Transfer-Encoding`."""
    return any(item.strip(" \t").lower() == "chunked" for value in values for item in value.split(","))


def _read_status(line: bytes) -> int | None:
    """Return the status; `None` for one that no specification knows."""
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
