"""Originals that are made to hurt: they are refused by their headers, quickly, and without memory."""

from __future__ import annotations

import struct
import time
import zlib
from typing import TYPE_CHECKING

import pytest
import pyvips
from PIL import Image

from imgkeep.derived.messages import Derived, Facts, Refused
from imgkeep.derived.process.deadline import Deadline, refused_by
from imgkeep.derived.process.refusals import Refusal
from tests.support.derive import encoded, facts_of, make, quarters, refused
from tests.support.image_files import ico, png_chunk, svg

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = 20_000
"""A side of a bomb: 400 megapixels."""
SECONDS_MAX = 2
"""Far above what a refusal takes, and far below what decoding would."""


def png_bomb() -> bytes:
    """Return a PNG of 50 kilobytes that holds 400 megapixels of one bit."""
    row = b"\0" + bytes(LARGE // 8)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(row * 1000) for _ in range(LARGE // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", LARGE, LARGE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND")


def gif_of(frames: int, side: int = 16, screen: int | None = None) -> bytes:
    """Return a GIF of so many small frames on a screen of its own size."""
    frame = (
        b"\x21\xf9\x04\0\x0a\0\0\0"
        + struct.pack("<BHHHHB", 0x2C, 0, 0, screen or 1, screen or 1, 0)
        + b"\x02\x02D\x01\0"
    )
    head = b"GIF89a" + struct.pack("<HHBBB", screen or side, screen or side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + frame * frames + b";"


def webp_of(frames: int, side: int = 16) -> bytes:
    """Return an animated WebP of so many small frames on a canvas of its own size."""
    still = encoded(Image.new("RGB", (16, 16), "red"), "WEBP", lossless=True)[12:]
    frame = bytes(6) + (15).to_bytes(3, "little") * 2 + (100).to_bytes(3, "little") + b"\0" + still
    chunks = b"VP8X" + struct.pack("<II", 10, 0x02) + (side - 1).to_bytes(3, "little") * 2
    chunks += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    chunks += (b"ANMF" + struct.pack("<I", len(frame)) + frame) * frames
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def with_size(original: bytes, at: int, form: str, *sides: int) -> bytes:
    """Return a file whose header states another size."""
    size = struct.pack(form, *sides)
    return original[:at] + size + original[at + len(size) :]


def jpeg_bomb() -> bytes:
    original = encoded(quarters(), "JPEG")
    return with_size(original, original.index(b"\xff\xc0") + 5, ">HH", LARGE, LARGE)


def avif_bomb() -> bytes:
    original = encoded(quarters(), "AVIF")
    return with_size(original, original.index(b"ispe") + 8, ">II", LARGE, LARGE)


def tiff_bomb() -> bytes:
    """Return a TIFF that states gigapixels in strips which are not there."""
    image = encoded(quarters(), "TIFF")
    width, height = (struct.pack("<HHI", tag, 4, 1) for tag in (256, 257))
    at = image.index(width)
    image = with_size(image, at + 8, "<I", LARGE)
    return with_size(image, image.index(height) + 8, "<I", LARGE)


def bmp_bomb() -> bytes:
    return with_size(encoded(quarters(), "BMP"), 18, "<ii", LARGE, LARGE)


def ico_bomb() -> bytes:
    return ico((0, 0, png_bomb()))


def svg_bomb() -> bytes:
    return svg(f'width="{LARGE}" height="{LARGE}"').encode()


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG": png_bomb,
    "JPEG": jpeg_bomb,
    "AVIF": avif_bomb,
    "TIFF": tiff_bomb,
    "BMP": bmp_bomb,
    "ICO": ico_bomb,
    "SVG": svg_bomb,
    "GIF": lambda: gif_of(1, screen=LARGE),
    "WEBP": lambda: webp_of(400, 16_384),
}


@pytest.mark.parametrize("format_", BOMBS)
def test_bomb_is_refused_by_its_header(format_: str) -> None:
    bomb = BOMBS[format_]()
    begun = time.monotonic()
    answers = [
        refused(bomb, format_, "w100", "WEBP", rasterise_svg=True),
        facts_of(bomb, format_, rasterise_svg=True),
    ]
    assert time.monotonic() - begun < SECONDS_MAX
    assert all(isinstance(answer, Refused) for answer in answers)
    assert {answer.reason for answer in answers if isinstance(answer, Refused)} <= {"too_large", "unreadable"}


@pytest.mark.parametrize(("format_", "make_frames"), [("GIF", gif_of), ("WEBP", webp_of)])
def test_hundred_thousand_frames_are_refused(format_: str, make_frames: Callable[[int], bytes]) -> None:
    bomb = make_frames(100_000)
    begun = time.monotonic()
    answer = refused(bomb, format_, "w10", "WEBP")
    assert (answer.reason, "derive.frames_max" in answer.detail) == ("too_large", True)
    assert refused(bomb, format_, "w10", "WEBP", frames_max=1_000_000).reason == "too_large"
    assert refused(bomb, format_, "w10-p99999", "WEBP").reason in ("too_large", "no_such_page")
    assert isinstance(facts_of(bomb, format_), Facts)
    assert time.monotonic() - begun < SECONDS_MAX


@pytest.mark.parametrize(("format_", "make_frames"), [("GIF", gif_of), ("WEBP", webp_of)])
@pytest.mark.parametrize(("stem", "to"), [("w10-p0", "WEBP"), ("w10-p1", "GIF"), ("w10", "PNG"), ("w10", "AVIF")])
def test_one_frame_counts_as_one(format_: str, make_frames: Callable[[int], bytes], stem: str, to: str) -> None:
    limits = {"frames_max": 2, "pixels_max": 16 * 16}
    answer, _ = make(make_frames(200), format_, stem, to, **limits)
    assert isinstance(answer, Derived)
    assert (answer.width, answer.height, answer.frames) == (10, 10, 1)
    facts = facts_of(make_frames(200), format_, **limits)
    assert isinstance(facts, Facts)
    assert facts.frames == 200


@pytest.mark.parametrize(("format_", "make_frames"), [("GIF", gif_of), ("WEBP", webp_of)])
def test_frames_up_to_the_page_count(format_: str, make_frames: Callable[[int], bytes]) -> None:
    assert refused(make_frames(9), format_, "w10-p3", "PNG", frames_max=3).reason == "too_large"
    assert refused(make_frames(9), format_, "w10-p9", "PNG", frames_max=9).reason == "no_such_page"


def test_frames_below_the_limit_are_read_in_time() -> None:
    begun = time.monotonic()
    answer, _ = make(webp_of(500), "WEBP", "w10-p499", "WEBP")
    assert isinstance(answer, Derived)
    assert time.monotonic() - begun < SECONDS_MAX


def test_frames_are_counted_with_their_pixels() -> None:
    assert isinstance(make(gif_of(8), "GIF", "w10", "WEBP", pixels_max=16 * 16 * 8)[0], Derived)
    answer = refused(gif_of(8), "GIF", "w10", "WEBP", pixels_max=16 * 16 * 8 - 1)
    assert "8 frames" in answer.detail


def test_picture_may_not_have_more_pixels_than_an_original() -> None:
    answer = refused(encoded(quarters(), "PNG"), "PNG", "w8000-h8000-cover", "WEBP", pixels_max=1_000_000)
    assert answer.reason == "too_large"
    assert refused(gif_of(8), "GIF", "w200-h200-cover", "GIF", pixels_max=200_000).reason == "too_large"


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP"])
def test_truncated_original_is_refused(format_: str, part: float) -> None:
    noise = Image.effect_noise((200, 200), 60).convert("RGB")
    original = encoded(noise, format_, **({"compression": "tiff_lzw"} if format_ == "TIFF" else {}))
    answer, _ = make(original[: int(len(original) * part)], format_, "w50", "PNG")
    assert isinstance(answer, Refused)
    assert answer.reason == "unreadable"
    assert answer.detail


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "ICO", "SVG", "HEIC", "CUR"])
@pytest.mark.parametrize("original", [b"", b"\0", b"hello" * 100, bytes(5000), b"\xff" * 5000])
def test_nonsense_is_refused(format_: str, original: bytes) -> None:
    assert refused(original, format_, "w50", "PNG", rasterise_svg=True).reason in ("unreadable", "unsupported")


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("out of memory --- size == 3000MB\n", "too_large", "derive.memory_bytes_max"),
        (
            "heif: Encoder plugin generated an error: Undefined AOM error (8.5002)\n",
            "too_large",
            "derive.memory_bytes_max",
        ),
        (
            "heif: Memory allocation error: Failed to allocate image (6.0)\nwbuffer_write: write failed\n",
            "too_large",
            "derive.memory_bytes_max",
        ),
        ("heif: Security limit exceeded: Image size exceeds the maximum\n", "too_large", "larger than libvips reads"),
        ("heif: Unsupported feature: Unsupported codec (4.3000)\n", "unsupported", "Unsupported codec"),
        ("heif: Error while loading plugin: Support for this has not been built in\n", "unsupported", "built in"),
        (
            "source: bad seek to 9\npngload: bad\x1b[31m header\npngload: again\n",
            "unreadable",
            "pngload: bad?[31m header",
        ),
        ("target: write error\nsystem error: No space left on device\n", "too_large", "no room"),
        ("source: bad seek to 9\n", "unreadable", "it does not say why"),
    ],
)
def test_errors_of_libvips_become_reasons(text: str, reason: str, detail: str) -> None:
    with pytest.raises(Refusal) as caught, refused_by(Deadline(60)):
        raise pyvips.Error("unable to call", text)
    assert caught.value.answer.reason == reason
    assert detail in caught.value.answer.detail


def test_memory_that_python_lacks_is_a_reason() -> None:
    with pytest.raises(Refusal, match=r"derive\.memory_bytes_max"), refused_by(Deadline(60)):
        raise MemoryError


def test_job_gives_up_before_it_is_killed() -> None:
    noise = encoded(Image.effect_noise((600, 600), 60), "PNG")
    begun = time.monotonic()
    answer = refused(noise, "PNG", "w4000-contain", "WEBP", timeout_s=0.01)
    assert time.monotonic() - begun < SECONDS_MAX
    assert (answer.reason, "derive.timeout_s" in answer.detail) == ("too_slow", True)


@pytest.mark.parametrize(
    "name",
    ["pages of a fax", "loop of directories", "an interlaced image", "a text bomb"],
)
def test_strange_but_valid_files_end(name: str) -> None:
    begun = time.monotonic()
    answer, _ = make(*STRANGE[name](), "w50", "WEBP")
    assert time.monotonic() - begun < SECONDS_MAX
    assert isinstance(answer, Derived | Refused)


def loop_of_directories() -> tuple[bytes, str]:
    image = bytearray(encoded(quarters(), "TIFF"))
    start = int.from_bytes(image[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(image[start : start + 2], "little")
    image[end : end + 4] = image[4:8]
    return bytes(image), "TIFF"


def text_bomb() -> tuple[bytes, str]:
    original = encoded(quarters(), "PNG")
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    return original[:33] + text * 20 + original[33:], "PNG"


STRANGE: dict[str, Callable[[], tuple[bytes, str]]] = {
    "pages of a fax": lambda: (
        encoded(quarters(), "TIFF", save_all=True, append_images=[quarters()] * 200),
        "TIFF",
    ),
    "loop of directories": loop_of_directories,
    "an interlaced image": lambda: (encoded(Image.effect_noise((900, 900), 9), "JPEG", progressive=True), "JPEG"),
    "a text bomb": text_bomb,
}


def test_format_that_is_not_stored_reaches_no_loader() -> None:
    """A matrix of numbers is an image for libvips."""
    assert pyvips.type_find("VipsOperation", "matrixload_source")
    assert "something else" not in refused(b"1 1\n5\n", "PNG").detail, "its loader has opened the file"
