"""One body: rewritten in pieces or whole, packed or not; and what happens when that goes wrong."""

from __future__ import annotations

import gzip
import logging
import zlib
from random import Random
from typing import TYPE_CHECKING

import pytest

from imgkeep.integrations.content_encoding import PIECE_BYTES_MAX
from imgkeep.integrations.links import LinkRewriter
from imgkeep.integrations.response_body import SRCSET_STEP_BYTES, Body, CutShort, Streamed, Unaltered, Whole
from imgkeep.integrations.responses import Plan
from tests.support.pages import LINK, NEW_LINK, PAGE, PLAIN, WANTED, rewriter
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imgkeep.integrations.responses import Coding

PACK: dict[Coding, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}
UNPACK: dict[Coding, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}
LARGE = PAGE + bytes(Random(1).choices(b"abcdefgh <>\n", k=150_000)) + f"<img src='{LINK}'>".encode()
LARGE_WANTED = LARGE.replace(LINK.encode(), NEW_LINK.encode())


def body(coding: Coding = "identity", *, length: int | None = None, charset: str | None = None) -> Body:
    return Body(Plan(has_body=True, length=length, coding=coding, charset=charset), rewriter().of_page(None))


def sent(body: Body, pieces: Iterable[bytes]) -> bytes:
    """Send a body in pieces, as a server would."""
    out: list[bytes] = []
    first = True
    for piece in pieces:
        if first:
            assert body.begin(piece, is_last=False) == Streamed()
        first = False
        out += body.feed(piece)
    return b"".join((*out, *body.close()))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@table("size", [1, 100, 5000])
def test_images_of_a_page_get_a_srcset_in_small_steps(size: int) -> None:
    links = LinkRewriter(public_url="", which="all", allow=["*"], pictures={"widths": [1, 2], "sizes": "1em"})
    given = Body(Plan(has_body=True, length=None, coding="identity", charset=None), links.of_page("http://h.example/"))
    came = sent(given, cut(b"<img src=//a.example>" * 100, size))
    assert came.count(b'2w" sizes="1em">') == 100
    assert given.step_bytes_max == SRCSET_STEP_BYTES


@table("size", [1, 7, 1000, 1 << 20])
@table("coding", ["identity", "gzip", "deflate"])
def test_body_may_come_in_any_pieces(coding: Coding, size: int) -> None:
    page, wanted = (LARGE, LARGE_WANTED) if size >= 1000 else (PAGE, WANTED)
    came = sent(body(coding), cut(PACK[coding](page), size))
    assert UNPACK[coding](came) == wanted


@pytest.mark.parametrize("coding", ["identity", "gzip", "deflate"])
def test_finished_bytes_are_sent_at_once(coding: Coding) -> None:
    packer = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    unpacker = zlib.decompressobj(31 if coding == "gzip" else 15)
    streamed = body(coding, charset="utf-8")
    for number in range(3):
        piece = f"<p>{number}<img src='{LINK}'>".encode()
        if coding == "identity":
            out = b"".join(streamed.feed(piece))
        else:
            packed = packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
            out = unpacker.decompress(b"".join(streamed.feed(packed)))
        assert out == f"<p>{number}<img src='{NEW_LINK}'>".encode()


@pytest.mark.parametrize("coding", ["identity", "gzip", "deflate"])
def test_whole_body_is_rewritten_at_once(coding: Coding) -> None:
    packed = PACK[coding](PAGE)
    for length, is_last in ((len(packed), False), (len(packed), True), (None, True)):
        whole = body(coding, length=length).begin(packed, is_last=is_last)
        assert isinstance(whole, Whole)
        assert UNPACK[coding](whole.data) == WANTED


def test_without_links_packed_bytes_stay_as_they_were() -> None:
    packed = gzip.compress(PLAIN, 1, mtime=5)
    assert body("gzip").begin(packed, is_last=True) == Whole(packed)


def test_gzip_header_stays() -> None:
    # As Django writes it: a name of random length hides how long the page is (BREACH).
    flags = 4 | 8 | 16 | 2
    head = b"\x1f\x8b\x08" + bytes((flags,)) + b"\1\2\3\4\2\3" + b"\x03\0abc" + b"a name\0" + b"a comment\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    packed = head + gzip.compress(PAGE, mtime=0)[10:]
    for size in (1, 5, 1000):
        came = sent(body("gzip"), cut(packed, size))
        # Where the head comes in pieces it is known before anything else can be.
        assert came.startswith(head)
        assert gzip.decompress(came) == WANTED


def test_bytes_behind_a_compressed_body_stay() -> None:
    packed = gzip.compress(PAGE) + b"more" + gzip.compress(PAGE)
    for pieces in ([packed], cut(packed, 10)):
        came = sent(body("gzip"), pieces)
        unpacker = zlib.decompressobj(31)
        assert unpacker.decompress(came) == WANTED
        assert unpacker.unused_data == packed[len(gzip.compress(PAGE)) :]


def test_pieces_stay_small_however_much_was_packed() -> None:
    packed = gzip.compress(b"<p>" * 300_000)
    streamed = body("gzip", charset="utf-8")
    assert max(map(len, streamed.feed(packed))) <= PIECE_BYTES_MAX


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_body_too_large_to_hold_is_streamed(coding: Coding) -> None:
    page = gzip.compress(LARGE) if coding == "gzip" else LARGE
    plan = Plan(has_body=True, length=len(page), coding=coding, charset=None)
    streamed = Body(plan, rewriter().of_page(None), whole_bytes_max=20_000)
    assert streamed.begin(page, is_last=True) == Streamed()
    came = b"".join((*streamed.feed(page), *streamed.close()))
    assert (gzip.decompress(came) if coding == "gzip" else came) == LARGE_WANTED


@pytest.mark.parametrize(
    ("charset", "codec"), [("latin-1", "latin-1"), ("utf-16le", "utf-16le"), ("utf-16", "utf-16"), (None, "utf-8")]
)
def test_pages_in_other_encodings(charset: str | None, codec: str) -> None:
    page = f"<p>\xe4\xf6\xfc</p><img src='{LINK}'>"
    whole = body(charset=charset).begin(page.encode(codec), is_last=True)
    assert whole == Whole(page.replace(LINK, NEW_LINK).encode(codec))


# --- what goes wrong


def test_uncompressed_body_stays_uncompressed() -> None:
    assert body("gzip").begin(PAGE, is_last=True) == Whole(PAGE)
    assert sent(body("gzip"), cut(PAGE, 10)) == PAGE
    raw = zlib.compress(PAGE)[2:-4]
    assert sent(body("deflate"), [raw]) == raw


def test_damaged_compressed_body_is_sent_up_to_the_damage() -> None:
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(LARGE[:100_000]) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += b"\xff" * 10 + packer.compress(LARGE[100_000:]) + packer.flush()
    expected = unpacked(packed).replace(LINK.encode(), NEW_LINK.encode())
    assert len(expected) > 100_000
    for size in (100, 1000, 1 << 20):
        came = sent(body("gzip"), cut(packed, size))
        assert unpacked(came) == expected
        with pytest.raises(zlib.error):
            zlib.decompressobj(31).decompress(came)
    assert body("gzip").begin(packed, is_last=True) == Whole(packed)


def unpacked(data: bytes) -> bytes:
    """Return what can be unpacked, as browsers show it."""
    unpacker, found = zlib.decompressobj(31), bytearray()
    try:
        for at in range(len(data)):
            found += unpacker.decompress(data[at : at + 1])
    except zlib.error:
        pass
    return bytes(found)


def test_wrong_checksum_stays_wrong() -> None:
    packed = gzip.compress(LARGE)[:-8] + b"\0" * 8
    came = sent(body("gzip"), cut(packed, 5000))
    assert unpacked(came) == LARGE_WANTED
    with pytest.raises(zlib.error):
        zlib.decompressobj(31).decompress(came)


def test_cut_compressed_body_stays_cut() -> None:
    packed = gzip.compress(LARGE)
    came = sent(body("gzip"), cut(packed[:-1000], 5000))
    unpacker = zlib.decompressobj(31)
    shown = unpacker.decompress(came)
    assert not unpacker.eof
    assert shown == unpacked(packed[:-1000]).replace(LINK.encode(), NEW_LINK.encode())
    assert body("gzip").begin(packed[:-1000], is_last=True) == Whole(packed[:-1000])
    assert sent(body("gzip"), [packed[:5]]) == packed[:5]


def test_failing_choice_leaves_its_links(caplog: pytest.LogCaptureFixture) -> None:
    def choose(source: object) -> bool:
        assert source is None, LINK
        return True

    links = LinkRewriter(public_url="https://k.example", which=choose, allow=["*"]).of_page(None)
    broken = Body(Plan(has_body=True, length=None, coding="identity", charset=None), links)
    with caplog.at_level(logging.WARNING):
        assert broken.begin(PAGE + PAGE, is_last=True) == Whole(PAGE + PAGE)
    assert [record.getMessage().partition(" at ")[0] for record in caplog.records] == [
        "link not rewritten: AssertionError"
    ]
    assert "h.example" not in caplog.text


class Breaks:
    """Links that cannot even be asked."""

    url = None
    count = 1

    def __call__(self, url: str) -> str | None:
        raise LookupError(url)


@pytest.mark.parametrize("size", [1, 10, 1000])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_internal_error_leaves_the_rest_unchanged(coding: Coding, size: int, caplog: pytest.LogCaptureFixture) -> None:
    packed = gzip.compress(PAGE * 30) if coding == "gzip" else PAGE * 30
    plan = Plan(has_body=True, length=None, coding=coding, charset=None)
    came = sent(Body(plan, Breaks()), cut(packed, size))  # type: ignore[arg-type]
    assert (gzip.decompress(came) if coding == "gzip" else came) == PAGE * 30
    assert "rest of a page not rewritten: LookupError" in caplog.text
    assert "h.example" not in caplog.text
    assert Body(plan, Breaks()).begin(packed, is_last=True) == Whole(packed)  # type: ignore[arg-type]


def test_wrong_length_is_left_to_the_server() -> None:
    assert body(length=5).begin(PAGE, is_last=True) == Unaltered()
    assert body(length=5).begin(PAGE, is_last=False) == Unaltered()
    assert body(length=5000).begin(PAGE, is_last=True) == Unaltered()


def test_bytes_beyond_the_length_are_no_part_of_the_page() -> None:
    assert sent(body(length=len(PAGE)), [*cut(PAGE, 50), b"more", b"and more"]) == WANTED


def test_cut_body_does_not_look_whole() -> None:
    short = body(length=len(PAGE) + 9)
    out = [*short.feed(PAGE)]
    rest = short.close()
    out.append(next(rest))
    assert b"".join(out) == WANTED
    with pytest.raises(CutShort, match="9 bytes less"):
        next(rest)


def test_nothing_follows_a_whole_body() -> None:
    whole = body(length=len(PAGE))
    assert whole.begin(PAGE, is_last=False) == Whole(WANTED)
    assert [*whole.feed(b"more"), *whole.close()] == []
