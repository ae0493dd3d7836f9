"""Heads that a strict parser refuses, read as browsers do (verdicts: `tests/support/response_heads.py`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.response_head import FIELDS_MAX, Contradiction, find_head_end, has_chunked, may_begin, mend_head
from tests.support.tables import table


def corrected(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes | None:
    head = mend_head(b"\r\n".join([status, *lines, b"", b""]))
    return None if head is None else head.data


CASES = {
    "nothing": ([], []),
    "a field": ([b"X-A: b"], [b"X-A: b"]),
    "white space": ([b"X-A \t: \t b \t"], [b"X-A: b"]),
    "no colon": ([b"nonsense", b"X-A: b"], [b"X-A: b"]),
    "no token": ([b"a b: c", b": d", b"(e): f", b"g\x01: h", b"\xe4: i", b"X-A: b"], [b"X-A: b"]),
    "a fold": ([b"X-A: b", b"  c", b"\td ", b"X-B: e"], [b"X-A: b c d", b"X-B: e"]),
    "a fold of nothing": ([b"X-A:", b"  b"], [b"X-A: b"]),
    "a fold of an empty line": ([b"X-A: b", b" "], [b"X-A: b"]),
    "a fold first": ([b" X-A: b", b"X-B: c"], [b"X-B: c"]),
    "a fold behind a malformed line": ([b"a b: c", b" d", b"e", b" f", b"X-A: b"], [b"X-A: b"]),
    "bytes": ([b"X-A: \xe4\x01"], [b"X-A: \xe4\x01"]),
    "of the connection": (
        [b"Connection: keep-alive", b"Upgrade: h2c", b"Keep-Alive: 5", b"Sec-WebSocket-Key1: a", b"X-A: b"],
        [b"X-A: b"],
    ),
    "a length": ([b"Content-Length: 5"], [b"Content-Length: 5"]),
    "lengths that agree": ([b"content-length: 5", b"Content-Length : 5,5"], [b"Content-Length: 5"]),
    "a length with zeros": ([b"Content-Length: 005"], [b"Content-Length: 5"]),
    "no length": ([b"Content-Length: five"], []),
    "a signed length": ([b"Content-Length: +5"], []),
    "a length beyond all": ([b"Content-Length: 1234567890123456789"], []),
    "chunked": ([b"Transfer-Encoding: Chunked"], [b"Transfer-Encoding: chunked"]),
    "chunked among others": ([b"Transfer-Encoding: gzip, chunked, x"], [b"Transfer-Encoding: chunked"]),
    "chunked and lengths": (
        [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Content-Length: 6"],
        [b"Transfer-Encoding: chunked"],
    ),
    "identity": ([b"Transfer-Encoding: identity", b"Content-Length: 5"], [b"Content-Length: 5"]),
}


@table(("lines", "wanted"), CASES.values(), ids=CASES.keys())
def test_fields_are_written_as_a_strict_parser_wants_them(lines: list[bytes], wanted: list[bytes]) -> None:
    framing = [line for line in wanted if line.lower().startswith((b"content-length", b"transfer-encoding"))]
    others = [line for line in wanted if line not in framing]
    assert corrected(*lines) == b"\r\n".join([b"HTTP/1.1 200 ", *others, *framing, b"Connection: close", b"", b""])


@table(
    ("line", "status"),
    [
        (b"HTTP/1.1 200 OK", 200),
        (b"HTTP/1.1 404", 404),
        (b"HTTP/1.1 0200 OK", 200),
        (b"http/1.0   302 Found", 302),
        (b"HTTP/2 206 Part", 206),
        (b"HTTP 503", 503),
        (b"HTTP/1.1", 200),
        (b"HTTP/1.1 OK", 200),
        (b"HTTP/1.1 200OK", 200),
        (b"abcdHTTP/1.1 404 x", 404),
        (b"HTTP/1.1 103 Early", 103),
        (b"HTTP/1.1 20 x", None),
        (b"HTTP/1.1 2000 x", None),
        (b"HTTP/1.1 099 x", None),
        (b"abcdeHTTP/1.1 200 OK", None),
        (b"ICY 200 OK", None),
        (b"HTTP/1.1 200 \0", None),
    ],
)
def test_status_line_is_read(line: bytes, status: int | None) -> None:
    head = mend_head(line + b"\r\n\r\n")
    assert (None if head is None else head.status) == status


@pytest.mark.parametrize("lines", [(b"Content-Length: 5", b"Content-Length: 6"), (b"Content-Length: 5, 6",)])
def test_two_lengths_contradict_each_other(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(Contradiction):
        corrected(*lines)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nbody", 19),
        (b"HTTP/1.1 200 OK\n\nbody", 17),
        (b"HTTP/1.1 200 OK\n\r\nbody", 18),
        (b"HTTP/1.1 200 OK\r\n\nbody", 18),
        (b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\nbody", 23),
        (b"HTTP/1.1 200 OK\r\n", None),
        (b"HTTP/1.1 200 OK\r\r", None),
        (b"\r\n\r\n", None),
    ],
)
def test_head_ends_at_an_empty_line(data: bytes, end: int | None) -> None:
    assert find_head_end(data) == end
    assert all(find_head_end(bytearray(data), start) == end for start in range(1, (end or 4) - 3))


def test_other_bytes_than_http_are_recognised_early() -> None:
    assert may_begin(b"")
    assert may_begin(b"\r\n\r\nHTT")
    assert may_begin(b"\r\n\r\nhttp")
    assert not may_begin(b"\x89PNG\r\n\x1a\n")


def test_fields_have_a_limit() -> None:
    assert corrected(*[b"X-A: b"] * FIELDS_MAX) is not None
    assert corrected(*[b"X-A: b"] * (FIELDS_MAX + 4)) is None


def test_chunked_is_found_in_any_list() -> None:
    assert has_chunked(["gzip, Chunked", "x"])
    assert not has_chunked(["gzip", "xchunked"])


@given(st.binary(max_size=200))
def test_repaired_head_is_read_alike_again(data: bytes) -> None:
    try:
        head = mend_head(b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n")
    except Contradiction:
        return
    if head is not None:
        assert mend_head(head.data) == head
        assert find_head_end(head.data) == len(head.data)


def test_connection_that_may_be_used_again_is_not_ended() -> None:
    head = mend_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", is_last=False)
    assert head is not None
    assert head.data == b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"
    assert head.chunked
