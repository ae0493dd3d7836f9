"""Seeing the end of an image while its bytes come: whatever is told agrees with `is_whole`, and costs little."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkeep.core.formats import Budget, Ending, Spent, foresees_end, is_incomplete, is_whole, steps_max
from imgkeep.core.formats.end_detection import HEAD_BYTES_MAX, STEPS_MIN, TAIL_BYTES
from imgkeep.core.records import Format
from tests.support.image_files import animated, png_chunk, png_header, samples, saved
from tests.support.tables import table

SAMPLES = samples()
WALKED = {Format.PNG, Format.APNG, Format.JPEG, Format.GIF, Format.WEBP, Format.SVG}
SEGMENT = b"\xff\xe1\x00\x04ab"


def ending_of(fmt: Format, *pieces: bytes) -> Ending:
    ending = Ending(fmt)
    for piece in pieces:
        ending.feed(piece)
    return ending


def sees(fmt: Format, body: bytes) -> bool:
    ending = ending_of(fmt, body)
    return ending.is_seen or foresees_end(ending, len(body), Budget(steps_max(len(body))))


@table("name", SAMPLES)
def test_complete_image_is_recognised_where_its_format_has_an_end(name: str) -> None:
    sample = SAMPLES[name]
    ending = ending_of(sample.fmt, sample.body)
    assert ending.is_walked is (sample.fmt in WALKED)
    if sees(sample.fmt, sample.body):
        assert is_whole(sample.fmt, sample.body)
    else:
        # A naked codestream and what the walks leave to `is_whole`: animations, junk, UTF-16, prefixes.
        left = {Format.APNG, Format.JXL, Format.JPEG, Format.SVG, Format.TIFF, Format.HEIC, Format.AVIF}
        assert sample.fmt in left, name


COMMON = {
    "png": (Format.PNG, saved("PNG")),
    "jpeg": (Format.JPEG, saved("JPEG")),
    "progressive jpeg": (Format.JPEG, saved("JPEG", progressive=True)),
    "gif": (Format.GIF, saved("GIF")),
    "animated gif": (Format.GIF, animated("GIF")),
    "webp": (Format.WEBP, saved("WEBP")),
    "lossless webp": (Format.WEBP, saved("WEBP", lossless=True)),
    "animated webp": (Format.WEBP, animated("WEBP")),
    "bmp": (Format.BMP, saved("BMP")),
    "ico": (Format.ICO, saved("ICO")),
    "avif": (Format.AVIF, saved("AVIF")),
}


@table("name", COMMON)
def test_common_images_need_no_second_look(name: str) -> None:
    assert sees(*COMMON[name])


@settings(deadline=None)  # on a busy machine any example may take long
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_complete_verdict_does_not_depend_on_pieces(name: str, data: st.DataObject) -> None:
    fmt, body, _ = SAMPLES[name]
    cut = body[: data.draw(st.integers(0, len(body)))]
    if sees(fmt, cut):
        assert is_whole(fmt, cut)


@settings(deadline=None)  # on a busy machine any example may take long
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_complete_verdict_ignores_changes_in_the_middle(name: str, data: st.DataObject) -> None:
    fmt, body, _ = SAMPLES[name]
    if fmt in {Format.JPEG, Format.SVG}:
        return  # their ends are told from their last bytes
    start = data.draw(st.integers(0, len(body)))
    changed = body[:start] + data.draw(st.binary(max_size=16)) + body[data.draw(st.integers(start, len(body))) :]
    if sees(fmt, changed):
        assert is_whole(fmt, changed)


@settings(deadline=None)  # on a busy machine any example may take long
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.integers(0, 4000), max_size=12))
def test_pieces_of_any_size_give_the_same_result(name: str, cuts: list[int]) -> None:
    fmt, body, _ = SAMPLES[name]
    places = [0, *sorted(cuts), len(body)]
    pieces = [body[start:end] for start, end in pairwise(places)]
    assert ending_of(fmt, *pieces).is_seen is ending_of(fmt, body).is_seen


@table("name", SAMPLES)
def test_single_bytes_give_the_same_result(name: str) -> None:
    fmt, body, _ = SAMPLES[name]
    assert ending_of(fmt, *(bytes([byte]) for byte in body)).is_seen is ending_of(fmt, body).is_seen


PNG = saved("PNG")
JPEG = saved("JPEG")
SCAN = JPEG.index(b"\xff\xda")


@table(
    ("fmt", "body", "seen"),
    [
        pytest.param(Format.PNG, png_header() + png_chunk(b"IEND"), False, id="png without pixels"),
        pytest.param(Format.PNG, png_header() + b"\xff" * 40, False, id="png that is astray"),
        pytest.param(Format.PNG, png_header() + png_chunk(b"ID T") + saved("PNG")[33:], False, id="png, no chunk"),
        pytest.param(Format.PNG, png_header() + png_chunk(b"ID4T") + saved("PNG")[33:], True, id="png, odd chunk"),
        pytest.param(Format.PNG, PNG[:60] + b"\0\0\0" + PNG[63:], False, id="png whose pixels are damaged"),
        pytest.param(Format.PNG, PNG[:-16] + b"\0" + PNG[-15:], False, id="png with a wrong checksum"),
        pytest.param(Format.PNG, saved("PNG") + b"more", True, id="png and more"),
        pytest.param(Format.WEBP, saved("WEBP") + b"more", True, id="webp and more"),
        pytest.param(Format.WEBP, b"RIFF\x0c\0\0\0WEBPEXIF\0\0\0\0", False, id="webp without pixels"),
        pytest.param(Format.WEBP, b"RIFF\x0c\0\0\0WEBPVP8 \xff\0\0\0" + b"\0" * 300, False, id="webp, chunk too long"),
        pytest.param(Format.JPEG, JPEG, True, id="jpeg"),
        pytest.param(Format.JPEG, JPEG[:2] + SEGMENT * 20 + JPEG[2:], True, id="jpeg with metadata"),
        pytest.param(Format.JPEG, JPEG + b"\0" * 20 + b"\r\n", True, id="jpeg and padding"),
        pytest.param(Format.JPEG, JPEG + b"\0" * TAIL_BYTES, False, id="jpeg and more padding"),
        pytest.param(Format.JPEG, JPEG[:-2], False, id="jpeg without eoi"),
        pytest.param(Format.JPEG, JPEG[:SCAN] + b"\xff\xd9", False, id="jpeg without a scan"),
        pytest.param(Format.JPEG, JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG, False, id="jpeg cut behind its thumbnail"),
        pytest.param(Format.JPEG, JPEG[:2] + b"junk" + JPEG[2:], False, id="jpeg with junk"),
        pytest.param(Format.GIF, saved("GIF")[:13] + b"\x3b", False, id="gif without an image"),
        pytest.param(Format.GIF, b"GIF87a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\0;", False, id="gif without pixels"),
        pytest.param(Format.GIF, saved("GIF") + b"more", True, id="gif and more"),
        pytest.param(Format.SVG, b"<svg><svg></svg>\n", True, id="svg by its last tag alone"),
        pytest.param(Format.SVG, b"<svg></svg><!-- -->", False, id="svg and a comment"),
    ],
)
def test_end_of_a_walk(fmt: Format, body: bytes, seen: bool) -> None:  # noqa: FBT001 - a table
    assert ending_of(fmt, body).is_seen is seen


def test_first_look_uses_the_size_of_the_framing() -> None:
    body = saved("BMP")
    ending = ending_of(Format.BMP, body[:60])
    assert foresees_end(ending, len(body), Budget(100))
    assert not foresees_end(ending, len(body) - 1, Budget(100))
    assert not foresees_end(ending_of(Format.BMP), len(body), Budget(100))
    assert not foresees_end(ending_of(Format.BMP, body[:20]), len(body), Budget(100)), "more bytes are needed"
    with pytest.raises(Spent):
        foresees_end(ending, len(body), Budget(0))


def test_end_of_a_body_may_be_known_early() -> None:
    webp = saved("WEBP")
    ending = ending_of(Format.WEBP, webp[:40])
    assert not ending.is_seen
    assert ending.is_foreseen(len(webp))
    assert ending.is_foreseen(len(webp) + 1)
    assert not ending.is_foreseen(len(webp) - 1)
    assert not ending_of(Format.WEBP, webp[:16]).is_foreseen(len(webp))
    assert ending_of(Format.PNG, PNG[:-4]).is_foreseen(len(PNG))
    assert not ending_of(Format.PNG, PNG[:-5]).is_foreseen(len(PNG))
    assert not ending_of(Format.BMP, saved("BMP")).is_foreseen(10**6)


def test_look_at_a_piece_that_has_not_come_says_nothing() -> None:
    ending = ending_of(Format.BMP, b"12345")
    assert ending.look(100, lambda body: body.piece(0, 5) == b"12345", Budget(10))
    assert ending.look(5, lambda body: body.piece(0, 10) == b"12345", Budget(10))
    assert not ending.look(100, lambda body: bool(body.piece(0, 10)), Budget(10))


def test_look_does_not_go_beyond_the_first_bytes() -> None:
    body = SAMPLES["TIFF"].body if "TIFF" in SAMPLES else saved("TIFF")
    assert not foresees_end(ending_of(Format.TIFF, body[:20]), len(body), Budget(1000))
    long = b"\0" * HEAD_BYTES_MAX
    ending = ending_of(Format.BMP, long, long)
    assert len(ending._head) == HEAD_BYTES_MAX


@pytest.mark.parametrize(
    ("fmt", "opening", "piece"),
    [
        (Format.PNG, png_header(), png_chunk(b"tEXt")),
        (Format.GIF, saved("GIF")[:13] + b"!\xfe", b"\x01a"),
        (Format.JPEG, b"\xff\xd8", SEGMENT),
        (Format.WEBP, b"RIFF\xf8\xff\xff\xffWEBP", b"EXIF\0\0\0\0"),
    ],
)
def test_walk_gives_up_after_too_many_steps(fmt: Format, opening: bytes, piece: bytes) -> None:
    """Five megabytes of the smallest pieces: without its budget a walk would hold the event loop for a second."""
    body = opening + piece * (5_000_000 // len(piece))
    ending = Ending(fmt)
    ending.feed(opening)
    began = time.thread_time()
    for start in range(len(opening), len(body), 65_536):
        ending.feed(body[start : start + 65_536])
    assert time.thread_time() - began < 0.5
    assert not ending.is_seen
    assert STEPS_MIN < 1_000


def test_incomplete_needs_a_proof() -> None:
    naked = next(s.body for s in SAMPLES.values() if s.fmt is Format.JXL and s.body.startswith(b"\xff\x0a"))
    assert not is_whole(Format.JXL, naked)
    assert not is_incomplete(Format.JXL, naked)
    assert is_incomplete(Format.PNG, saved("PNG")[:-1])
    assert not is_incomplete(Format.PNG, saved("PNG"))
