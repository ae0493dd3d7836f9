"""Undoing gzip: whole or an error, whatever the pieces it comes in."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import OriginError
from proxy.origin.coding import STEP_BYTES_MAX, Decoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

BODY = bytes(range(256)) * 3


async def each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def decode(chunks: Iterable[bytes]) -> bytes:
    """Decode; the result is proved or there is none."""

    async def run() -> bytes:
        decoder = Decoder()
        body = b"".join([piece async for piece in decoder.decode(each(chunks))])
        assert decoder.proved
        return body

    return asyncio.run(run())


def with_fields() -> bytes:
    """Return a member with all optional fields of its header (RFC 1952, 2.3)."""
    plain = gzip.compress(BODY)
    head = plain[:3] + bytes([0x02 | 0x04 | 0x08 | 0x10]) + plain[4:10]
    head += b"\x04\x00extr" + b"name.png\x00" + b"comment\x00"
    return head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + plain[10:]


WHOLE = {
    "compressed": (gzip.compress(BODY), BODY),
    "stored": (gzip.compress(BODY, 0), BODY),
    "empty": (gzip.compress(b""), b""),
    "with all header fields": (with_fields(), BODY),
}


@pytest.mark.parametrize(("data", "body"), WHOLE.values(), ids=WHOLE.keys())
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_a_whole_member_is_decoded_in_pieces_of_any_size(data: bytes, body: bytes, size: int) -> None:
    assert decode(data[at : at + size] for at in range(0, len(data), size)) == body


def test_empty_pieces_change_nothing() -> None:
    data = gzip.compress(BODY)
    assert decode([b"", data[:5], b"", b"", data[5:], b""]) == BODY


@pytest.mark.parametrize("data", [data for data, _ in WHOLE.values()], ids=WHOLE.keys())
def test_a_member_cut_anywhere_is_an_error(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(OriginError):
            decode([data[:end]])


@pytest.mark.parametrize("at", [-8, -5, -4, -1], ids=["checksum", "checksum's end", "size", "size's end"])
def test_a_wrong_checksum_or_size_is_an_error(at: int) -> None:
    data = bytearray(gzip.compress(BODY))
    data[at] ^= 1
    with pytest.raises(OriginError):
        decode([bytes(data)])


MORE = [b"\x00", b"x", gzip.compress(b""), gzip.compress(BODY)]


@pytest.mark.parametrize("more", MORE, ids=["a null", "a letter", "an empty member", "another member"])
@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "in another piece"])
def test_what_goes_on_after_its_end_is_an_error(more: bytes, *, apart: bool) -> None:
    data = gzip.compress(BODY)
    with pytest.raises(OriginError):
        decode([data, more] if apart else [data + more])


@pytest.mark.parametrize("data", [b"x", b"\x1f", b"\x1f\x8c", zlib.compress(BODY), BODY], ids=repr)
def test_what_is_not_gzip_is_an_error(data: bytes) -> None:
    with pytest.raises(OriginError):
        decode([data])


async def test_a_bomb_comes_out_in_steps_and_only_as_far_as_somebody_reads() -> None:
    bomb = await asyncio.to_thread(gzip.compress, bytes(50 * 1024 * 1024))
    decoder = Decoder()
    pieces = decoder.decode(each([bomb]))
    for _ in range(3):
        assert len(await anext(pieces)) <= STEP_BYTES_MAX
    assert not decoder.proved


async def test_many_empty_members_end_with_the_first() -> None:
    taken = 0

    async def members() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100_000):
            taken += 1
            yield gzip.compress(b"")

    with pytest.raises(OriginError):
        [piece async for piece in Decoder().decode(members())]
    assert taken == 2


@given(st.binary(max_size=5000), st.integers(0, 9), st.lists(st.integers(1, 300), min_size=1, max_size=20), st.data())
def test_every_body_comes_back_and_never_a_part_of_it(
    body: bytes, level: int, sizes: list[int], data: st.DataObject
) -> None:
    whole = gzip.compress(body, level)
    chunks: list[bytes] = []
    at = 0
    while at < len(whole):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(whole[at : at + size])
        at += size
    assert decode(chunks) == body
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(OriginError):
        decode([whole[:end]])


@given(st.binary(max_size=300))
def test_noise_is_an_error_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(OriginError):
        decode([b"\x1f\x8b\x08\x00" + bytes(6) + noise + b"\xff"])
