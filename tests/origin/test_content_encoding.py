"""Undoing content codings: whole and proved, or an error, whatever the pieces it comes in."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped]  # it has no annotations
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.errors import Busy, OriginError
from imgkeep.origin.content_encoding import (
    CODINGS_MAX,
    OVERHEAD_BYTES_MAX,
    TRAILING_BYTES_MAX,
    Decoder,
    WindowSlots,
    make_pool,
    read_codings,
)
from imgkeep.origin.decompressors import FRAMES_MAX, GZIP_HEAD_BYTES_MAX, STEP_BYTES_MAX

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from tests.support.images import make_image
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

BODY = bytes(range(256)) * 3
POOL = make_pool()
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


async def each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def run(codings: str, chunks: AsyncIterator[bytes]) -> tuple[bytes, Decoder]:
    decoder = read_codings([codings], POOL)
    assert decoder is not None
    return b"".join([piece async for piece in decoder.decode(chunks)]), decoder


def undo(codings: str, chunks: Iterable[bytes]) -> tuple[bytes, bool]:
    """Undo codings; return what comes out, and whether it is proved to be all."""
    body, decoder = asyncio.run(run(codings, each(chunks)))
    return body, decoder.proved


def with_fields() -> bytes:
    """Return a member with all optional fields of its header (RFC 1952, 2.3)."""
    plain = gzip.compress(BODY)
    head = plain[:3] + bytes([0x02 | 0x04 | 0x08 | 0x10]) + plain[4:10]
    head += b"\x04\x00extr" + b"name.png\x00" + b"comment\x00"
    return head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + plain[10:]


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


def with_window(body: bytes, log: int) -> bytes:
    compressor = zstd.ZstdCompressor(
        options={zstd.CompressionParameter.window_log: log, zstd.CompressionParameter.checksum_flag: 1}
    )
    return compressor.compress(body) + compressor.flush()


WHOLE = {
    "gzip": ("gzip", gzip.compress(BODY), BODY),
    "gzip stored": ("gzip", gzip.compress(BODY, 0), BODY),
    "gzip empty": ("gzip", gzip.compress(b""), b""),
    "gzip with all header fields": ("gzip", with_fields(), BODY),
    "x-gzip": ("X-GZip", gzip.compress(BODY), BODY),
    "deflate": ("deflate", zlib.compress(BODY), BODY),
    "deflate without a wrapper": ("deflate", raw_deflate(BODY), BODY),
    "br": ("br", brotli.compress(BODY), BODY),
    "br stored": ("br", brotli.compress(b"\xff" * 5, quality=0), b"\xff" * 5),
    "zstd": ("zstd", zstd.compress(BODY), BODY),
    "zstd, several frames": ("zstd", zstd.compress(BODY) + SKIPPABLE + zstd.compress(BODY), BODY * 2),
    "zstd, skippable frames": ("zstd", SKIPPABLE + zstd.compress(BODY) + SKIPPABLE, BODY),
    "zstd, largest window": ("zstd", with_window(BODY, 23), BODY),
    "gzip twice": ("gzip, gzip", gzip.compress(gzip.compress(BODY)), BODY),
    "br, then gzip": (" br ,GZIP ", gzip.compress(brotli.compress(BODY)), BODY),
    "all": ("deflate,zstd,br,gzip", gzip.compress(brotli.compress(zstd.compress(zlib.compress(BODY)))), BODY),
}


@table(("codings", "data", "body"), WHOLE.values(), ids=WHOLE.keys())
@table("size", [1, 2, 7, 10_000])
def test_whole_stream_decodes_in_pieces_of_any_size(codings: str, data: bytes, body: bytes, size: int) -> None:
    assert undo(codings, (data[at : at + size] for at in range(0, len(data), size))) == (body, True)


def test_empty_pieces_change_nothing() -> None:
    data = gzip.compress(BODY)
    assert undo("gzip", [b"", data[:5], b"", b"", data[5:], b""]) == (BODY, True)


@table(("codings", "data", "body"), WHOLE.values(), ids=WHOLE.keys())
def test_cut_stream_is_not_proved(codings: str, data: bytes, body: bytes) -> None:
    for end in {*range(0, len(data), 3), *range(max(0, len(data) - 12), len(data))}:
        given_, proved = undo(codings, [data[:end]])
        assert body.startswith(given_)
        # Frames are whole each by itself, and so is what ends between two.
        assert not proved or (codings == "zstd" and data[end:].startswith((b"\x28\xb5\x2f\xfd", SKIPPABLE[:4])))


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("at", [-8, -5, -4, -1], ids=["checksum", "checksum's end", "size", "size's end"])
def test_wrong_gzip_trailer_proves_nothing(at: int, size: int) -> None:
    """As in Chromium, which does not look at them: the image has to prove that it is whole."""
    data = bytearray(gzip.compress(BODY))
    data[at] ^= 1
    assert undo("gzip", [bytes(data[start : start + size]) for start in range(0, len(data), size)]) == (BODY, False)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"\x1f\x8b\x07" + bytes(7), id="another method"),
        pytest.param(b"\x1f\x8b\x08\x20" + bytes(6), id="an unknown flag"),
        pytest.param(b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * GZIP_HEAD_BYTES_MAX, id="a name without end"),
    ],
)
def test_wrong_gzip_head_is_damage(head: bytes) -> None:
    with pytest.raises(OriginError):
        undo("gzip", (head[at : at + 1000] for at in range(0, len(head), 1000)))


@pytest.mark.parametrize(
    ("codings", "data"), [("deflate", zlib.compress(BODY)), ("zstd", with_window(BODY, 20))], ids=["deflate", "zstd"]
)
def test_wrong_checksum_is_an_error(codings: str, data: bytes) -> None:
    with pytest.raises(OriginError):
        undo(codings, [data[:-1] + bytes([data[-1] ^ 1])])


ENDED = {name: WHOLE[name] for name in ("gzip", "deflate", "deflate without a wrapper", "br", "gzip twice")}


@table(("codings", "data", "body"), ENDED.values(), ids=ENDED.keys())
@table("more", [b"\n", b"\r\n", bytes(4000), b" "], ids=["newline", "line end", "zeros", "space"])
@table("apart", [False, True], ids=["in one piece", "in another piece"])
def test_padding_behind_the_end_is_ignored(codings: str, data: bytes, body: bytes, more: bytes, *, apart: bool) -> None:
    assert undo(codings, [data, more] if apart else [data + more]) == (body, True)


MORE = [b"x", b"garbage" * 500, gzip.compress(b""), gzip.compress(BODY)]


@table(("codings", "data", "body"), ENDED.values(), ids=ENDED.keys())
@table("more", MORE, ids=["a letter", "garbage", "an empty member", "another member"])
@table("apart", [False, True], ids=["in one piece", "in another piece"])
def test_bytes_behind_the_end_prove_nothing(
    codings: str, data: bytes, body: bytes, more: bytes, *, apart: bool
) -> None:
    assert undo(codings, [data, more] if apart else [data + more]) == (body, False)


async def test_bytes_behind_the_end_stay_unread() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield gzip.compress(BODY)
        while True:
            taken += 1
            yield bytes(10_000)

    body, _ = await run("gzip", endless())
    assert body == BODY
    assert taken * 10_000 <= TRAILING_BYTES_MAX + 10_000


def test_bytes_behind_a_zstd_frame_are_damage() -> None:
    with pytest.raises(OriginError):
        undo("zstd", [zstd.compress(BODY) + b"\n\n\n\n\n"])


@table("coding", ["gzip", "br", "zstd", "deflate"])
@table("data", [b"\xff" * 50, BODY + b"\xff", b"\x89PNG\r\n\x1a\n" + BODY], ids=["ff", "bytes", "png"])
def test_uncoded_bytes_are_no_body(coding: str, data: bytes) -> None:
    try:
        _, proved = undo(coding, [data])
    except OriginError:
        return
    assert not proved


@pytest.mark.parametrize("log", [24, 27])
def test_too_large_window_is_refused(log: int) -> None:
    with pytest.raises(OriginError):
        undo("zstd", [with_window(b"x" * 100, log)])


# --- which codings there are


@table(
    "name",
    ["", "identity", "aws-chunked", "base64", "utf-8", "binary", "undefined", "none", "image/png", "8bit", "compress"],
)
def test_unknown_coding_name_is_ignored(name: str) -> None:
    assert read_codings([name], POOL) is None
    assert read_codings([name, name], POOL) is None
    assert read_codings([], POOL) is None


PNG = make_image()


@pytest.mark.parametrize("fields", [["aws-chunked,gzip"], ["gzip", "utf-8"], ["identity , gzip"], ["gzip, base64"]])
@pytest.mark.parametrize("size", [1, 10_000])
async def test_first_bytes_decide_beside_an_unknown_coding(fields: list[str], size: int) -> None:
    for data, applied in ((gzip.compress(PNG), True), (PNG, False)):
        decoder = read_codings(fields, POOL)
        assert decoder is not None
        chunks = each(data[at : at + size] for at in range(0, len(data), size))
        assert b"".join([piece async for piece in decoder.decode(chunks)]) == PNG
        assert decoder.applied is applied


@pytest.mark.parametrize(
    ("coding", "data"),
    [("br", brotli.compress(PNG)), ("zstd", zstd.compress(PNG)), ("deflate", zlib.compress(PNG))],
    ids=["br", "zstd", "deflate"],
)
async def test_first_bytes_identify_every_coding(coding: str, data: bytes) -> None:
    assert (await run(f"aws-chunked,{coding}", each([data])))[0] == PNG
    assert (await run(f"aws-chunked,{coding}", each([PNG])))[0] == PNG
    assert (await run(f"aws-chunked,{coding}", each([])))[0] == b""


def test_too_many_codings_are_refused() -> None:
    assert read_codings([",".join(["gzip"] * CODINGS_MAX)], POOL) is not None
    for codings in (["gzip"] * (CODINGS_MAX + 1), ["gzip"] * 5000, ["br"] * 3, ["br", "zstd", "zstd"]):
        with pytest.raises(OriginError):
            read_codings([",".join(codings)], POOL)


# --- budgets


QUICKLY: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: bytes(brotli.compress(body, quality=1)),
    "zstd": zstd.compress,
}


@pytest.mark.parametrize("coding", QUICKLY)
async def test_bomb_comes_in_steps_as_far_as_it_is_read(coding: str) -> None:
    bomb = await asyncio.to_thread(QUICKLY[coding], bytes(50 * 1024 * 1024))
    decoder = Decoder([coding], POOL)
    pieces = decoder.decode(each([bomb]))
    for _ in range(3):
        assert len(await anext(pieces)) <= 2 * STEP_BYTES_MAX
    assert not decoder.proved


def _empty_blocks(coding: str) -> tuple[bytes, bytes]:
    """Return the head of a stream, and a piece that can be repeated for ever and holds nothing."""
    if coding == "gzip":
        return gzip.compress(b"")[:10], b"\x00\x00\x00\xff\xff" * 2000
    if coding == "br":
        return b"\x0c", b"\x06" * 10_000  # metadata blocks of no bytes
    return b"", SKIPPABLE * 800


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_stream_without_content_ends(coding: str) -> None:
    head, again = _empty_blocks(coding)
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield head
        while True:
            taken += len(again)
            yield again

    with pytest.raises(OriginError):
        await run(coding, endless())
    assert taken <= OVERHEAD_BYTES_MAX + 2 * len(again)


def test_zstd_frames_have_a_limit() -> None:
    frame = zstd.compress(b"x" * 1000)
    assert undo("zstd", [frame * (FRAMES_MAX // 2)])[1]
    with pytest.raises(OriginError):
        undo("zstd", [frame * (FRAMES_MAX + 1)])


async def test_large_windows_work_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    own = brotli.Decompressor

    def noted() -> object:
        class Noted:
            def __init__(self) -> None:
                self._it = own()

            def process(self, data: bytes, **how: int) -> bytes:
                threads.add(threading.current_thread().name.partition("_")[0])
                return bytes(self._it.process(data, **how))

            def __getattr__(self, name: str) -> object:
                return getattr(self._it, name)

        return Noted()

    monkeypatch.setattr(brotli, "Decompressor", noted)
    assert (await run("br", each([brotli.compress(BODY)])))[0] == BODY
    assert threads == {"decode"}


async def test_slots_bound_the_windows() -> None:
    slots = WindowSlots(number=2, timeout_s=0.05)
    async with slots.hold(0), slots.hold(2), slots.hold(0):
        with pytest.raises(Busy):
            async with slots.hold(1):
                pass
    entered = asyncio.Event()

    async def hold() -> None:
        async with slots.hold(1):
            entered.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(hold())
    await entered.wait()
    with pytest.raises(Busy):
        async with slots.hold(2):
            pass
    task.cancel()
    await asyncio.wait([task])
    async with slots.hold(2):
        pass


# --- anything


CODERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw deflate": raw_deflate,
    "br": brotli.compress,
    "zstd": zstd.compress,
}


@given(
    st.binary(max_size=5000),
    st.sampled_from([*CODERS]),
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
    st.data(),
)
def test_body_comes_back_whole_or_unproved(body: bytes, name: str, sizes: list[int], data: st.DataObject) -> None:
    coding = name.rpartition(" ")[2]
    whole = CODERS[name](body)
    chunks: list[bytes] = []
    at = 0
    while at < len(whole):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(whole[at : at + size])
        at += size
    assert undo(coding, chunks) == (body, True)
    end = data.draw(st.integers(0, len(whole) - 1))
    part, proved = undo(coding, [whole[:end]])
    assert body.startswith(part)
    assert not proved


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "br", "zstd"]))
def test_noise_is_an_error_or_a_body(noise: bytes, coding: str) -> None:
    with suppress(OriginError):
        undo(coding, [noise])
