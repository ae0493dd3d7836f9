"""Chunked bodies are read as browsers read them, in whatever pieces they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.chunked_body import LINE_BYTES_MAX, Chunks, Malformed
from tests.support.tables import table

BODIES = {
    "one": b"5\r\nabcde\r\n0\r\n\r\n",
    "usual": b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    "line feeds": b"3\nabc\n2\nde\n0\n\n",
    "both": b"3\nabc\r\n2\r\nde\n0\r\n\n",
    "spaces and extensions": b'3  \r\nabc\r\n2 ;a="b;c"; \xff\r\nde\r\n0;;\r\n\r\n',
    "zeros": b"0000000000000000000000003\r\nabc\r\n02\r\nde\r\n0000\r\n\r\n",
    "trailers": b"3\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\nnothing\r\n : c\r\n\r\n",
}
MALFORMED = {
    "no size": b"\r\n",
    "no digits": b"x\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "tab behind the size": b"3\t\r\nabc\r\n0\r\n\r\n",
    "two carriage returns": b"3\r\r\nabc\r\n0\r\n\r\n",
    "size beyond 60 bits": b"1000000000000000\r\n",
    "longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "no line end behind data": b"3\r\nabc0\r\n\r\n",
    "a line without end": b"3;" + b"a" * LINE_BYTES_MAX,
    "a trailer without end": b"0\r\n" + b"a" * (LINE_BYTES_MAX + 1),
}


@table("size", [1, 2, 3, 100])
@table("data", BODIES.values(), ids=BODIES.keys())
def test_body_comes_out_of_pieces_of_any_size(data: bytes, size: int) -> None:
    chunks = Chunks()
    assert b"".join(chunks.feed(data[at : at + size]) for at in range(0, len(data), size)) == b"abcde"
    assert chunks.ended
    assert not chunks.has_more


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES.keys())
def test_body_that_is_cut_has_not_ended(data: bytes) -> None:
    for size in range(len(data)):
        chunks = Chunks()
        assert b"abcde".startswith(chunks.feed(data[:size]))
        assert not chunks.ended


@table("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_framing_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Chunks().feed(data)


def test_bytes_behind_the_end_are_reported_and_dropped() -> None:
    chunks = Chunks()
    assert chunks.feed(BODIES["usual"] + b"\n") == b"abcde"
    assert chunks.has_more


@given(st.lists(st.binary(min_size=1, max_size=20)), st.integers(1, 9))
def test_any_chunks_come_out_whole(bodies: list[bytes], size: int) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"
    chunks = Chunks()
    assert b"".join(chunks.feed(data[at : at + size]) for at in range(0, len(data), size)) == b"".join(bodies)
    assert chunks.ended
