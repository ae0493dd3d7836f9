"""Metadata, orientation and the size of derived pictures; exiftool tells what is left of the metadata."""

from __future__ import annotations

import json
import subprocess
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import pytest
import pyvips
from PIL import Image, ImageChops, ImageOps, PngImagePlugin

from imgkeep.derived.messages import Derived, Facts, NotSmaller
from tests.support.derive import corners, encoded, facts_of, make, open_picture, picture_of, quarters
from tests.support.image_files import png_chunk
from tests.support.installed import require

if TYPE_CHECKING:
    from pathlib import Path

ORIENTATION: Final = 0x0112
GPS: Final = 0x8825
XMP: Final = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    b' tiff:Orientation="6" dc:source="a secret of xmp"/></rdf:RDF></x:xmpmeta>'
)
STRUCTURE: Final = (
    "SourceFile",
    "ExifTool",
    "File",
    "Composite",
    "PNG",
    "RIFF",
    "QuickTime",
    "Meta",
    "GIF",
    "JFIF",
    "APP14",
)
"""Groups of exiftool that tell how a file is built."""
FORMATS: Final = ("JPEG", "PNG", "WEBP", "AVIF")


def exif(orientation: int = 1) -> Any:
    """Return EXIF with a place, an artist and an orientation."""
    made = Image.Exif()
    made[ORIENTATION] = orientation
    made[0x013B] = "a secret of exif"
    made.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    return made


def tagged(format_: str, orientation: int = 1, size: tuple[int, int] = (80, 60)) -> bytes:
    """Return an image with EXIF, XMP and a comment, as far as the format has them."""
    options: dict[str, Any] = {"exif": exif(orientation)}
    if format_ == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Comment", "a secret of a chunk")
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options["pnginfo"] = texts
    else:
        options["xmp"] = XMP
    if format_ == "JPEG":
        options |= {"comment": b"a secret of a comment", "quality": 95}
    return encoded(quarters(size), format_, **options)


def tags(folder: Path, *pictures: bytes) -> list[dict[str, Any]]:
    """Return what exiftool finds in each file besides its structure."""
    files = [folder / str(number) for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(picture)
    done = subprocess.run(
        [require("exiftool"), "-json", "-G0", "-a", "-u", "-n", *files], check=True, capture_output=True
    )
    return [
        {name: value for name, value in found.items() if name.partition(":")[0] not in STRUCTURE}
        for found in json.loads(done.stdout)
    ]


@pytest.mark.parametrize("original", FORMATS)
def test_picture_has_no_metadata(original: str, tmp_path: Path) -> None:
    source = tagged(original)
    pictures = [picture_of(source, original, "w40", format_) for format_ in FORMATS]
    before, *after = tags(tmp_path, source, *pictures)
    assert (before["EXIF:GPSLatitude"], before["XMP:Source"]) == (pytest.approx(52.52), "a secret of xmp")
    assert after == [{}] * len(FORMATS)
    assert b"secret" not in b"".join(pictures)


def test_kept_metadata_stays_and_is_true(tmp_path: Path) -> None:
    original = tagged("JPEG", 6)
    for found in tags(tmp_path, *(picture_of(original, "JPEG", "w30-keep", format_) for format_ in FORMATS)):
        assert found["EXIF:Artist"] == "a secret of exif"
        assert found["EXIF:GPSLatitude"] == pytest.approx(52.52)
        assert found["XMP:Source"] == "a secret of xmp"
        assert found.get("EXIF:Orientation", 1) == found.get("XMP:Orientation", 1) == 1
        assert not [name for name in found if name.startswith("ICC")]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("original", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied(original: str, orientation: int) -> None:
    source = tagged(original, orientation)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(source)))
    picture = open_picture(source, original)
    assert picture.size == expected.size
    assert corners(picture) == corners(expected)
    assert picture.getexif().get(ORIENTATION, 1) == 1
    turned = open_picture(source, original, "w30-r90")
    assert corners(turned) == corners(expected.rotate(-90, expand=True))
    facts = facts_of(source, original)
    assert isinstance(facts, Facts)
    assert ((facts.width, facts.height), facts.orientation) == (expected.size, orientation)


def test_sizes_are_of_the_picture_as_people_see_it() -> None:
    assert open_picture(tagged("JPEG", 6), "JPEG", "w30").size == (30, 40)
    assert open_picture(tagged("JPEG", 6), "JPEG", "w40-h10-cover").size == (40, 10)


def smaller_original(format_: str, orientation: int = 1) -> bytes:
    """Return a picture that no encoder of ours makes smaller, with metadata."""
    if format_ == "PNG":
        image = Image.effect_noise((90, 64), 90).quantize(4)
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Comment", "a secret")
        return encoded(image, "PNG", optimize=True, pnginfo=texts, exif=exif(orientation), transparency=0)
    noise = Image.effect_noise((90, 64), 90).convert("RGB")
    options = {"comment": b"a secret"} if format_ == "JPEG" else {}
    return encoded(noise, format_, quality=12, exif=exif(orientation), xmp=XMP, **options)


@pytest.mark.parametrize(("format_", "orientation"), [("JPEG", 1), ("JPEG", 6), ("PNG", 1), ("PNG", 6), ("WEBP", 1)])
def test_original_without_metadata_takes_the_place_of_a_larger_picture(
    format_: str, orientation: int, tmp_path: Path
) -> None:
    original = smaller_original(format_, orientation)
    answer, picture = make(original, format_, "full", format_, smaller_than=len(original))
    assert isinstance(answer, Derived)
    assert answer.size == len(picture) < len(original)
    assert (answer.width, answer.height) == ((90, 64) if orientation == 1 else (64, 90))
    assert b"secret" not in picture
    left = tags(tmp_path, picture)[0]
    assert left.pop("EXIF:Orientation", 1) == orientation
    assert set(left) <= {"EXIF:ExifByteOrder"}
    before, after = (ImageOps.exif_transpose(Image.open(BytesIO(each))).convert("RGBA") for each in (original, picture))
    assert ImageChops.difference(before, after).getbbox(alpha_only=False) is None
    read = pyvips.Image.pngload_buffer if format_ == "PNG" else pyvips.Image.jpegload_buffer
    if format_ != "WEBP":
        assert read(picture, fail_on="warning").avg() > 0


def test_turned_webp_is_no_picture_as_it_is() -> None:
    """Some browsers ignore the orientation of a WebP, and would show it on its side."""
    original = smaller_original("WEBP", 6)
    for stem in ("full", "q100", "keep"):
        answer, picture = make(original, "WEBP", stem, "WEBP", smaller_than=len(original))
        assert isinstance(answer, Derived)
        assert Image.open(BytesIO(picture)).size == (answer.width, answer.height) == (64, 90)


def test_progressive_original_keeps_all_its_scans(tmp_path: Path) -> None:
    noise = Image.effect_noise((90, 64), 90).convert("RGB")
    original = encoded(noise, "JPEG", quality=12, progressive=True, exif=exif()) + b"a secret behind the end"
    _, picture = make(original, "JPEG", "full", "JPEG", smaller_than=len(original))
    assert b"secret" not in picture
    assert tags(tmp_path, picture)[0] == {}
    before, after = (Image.open(BytesIO(each)) for each in (original, picture))
    assert ImageChops.difference(before, after).getbbox() is None


def test_colour_profile_stays_with_the_original(tmp_path: Path) -> None:
    profile = bytes(pyvips.Operation.call("profile_load", "p3"))
    noise = Image.effect_noise((90, 64), 90).convert("RGB")
    original = encoded(noise, "JPEG", quality=12, exif=exif(), icc_profile=profile)
    _, picture = make(original, "JPEG", "full", "JPEG", smaller_than=len(original))
    assert Image.open(BytesIO(picture)).info["icc_profile"] == profile
    assert not [name for name in tags(tmp_path, picture)[0] if not name.startswith("ICC_Profile")]


def test_animation_keeps_its_frames_without_its_comment() -> None:
    frames = [Image.effect_noise((40, 30), 5).quantize(4) for _ in range(3)]
    options: dict[str, Any] = {"duration": [100, 50, 60], "loop": 2, "comment": b"a secret"}
    original = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], **options)
    answer, picture = make(original, "GIF", "full", "GIF", smaller_than=len(original))
    assert isinstance(answer, Derived)
    assert answer.frames == 3
    assert b"secret" not in picture
    shown: Any = Image.open(BytesIO(picture))
    assert (shown.n_frames, shown.info["loop"]) == (3, 2)
    assert len(picture) < len(original)


def test_avif_keeps_its_structure_and_no_metadata(tmp_path: Path) -> None:
    noise = Image.effect_noise((90, 64), 90).convert("RGB")
    plain = encoded(noise, "AVIF", quality=8)
    assert make(plain, "AVIF", "q100", "AVIF", smaller_than=len(plain))[1] == plain
    private = encoded(noise, "AVIF", quality=8, exif=exif(), xmp=XMP)
    answer, picture = make(private, "AVIF", "q100", "AVIF", smaller_than=len(private))
    assert isinstance(answer, Derived)
    assert answer.size == len(picture) <= len(private)
    assert b"secret" not in picture
    assert set(tags(tmp_path, picture)[0]) <= {"EXIF:Orientation", "EXIF:ExifByteOrder"}
    before, after = (Image.open(BytesIO(each)) for each in (private, picture))
    assert ImageChops.difference(before, after).getbbox() is None


def test_kept_metadata_makes_the_original_the_picture() -> None:
    original = smaller_original("JPEG")
    assert make(original, "JPEG", "keep", "JPEG", smaller_than=len(original))[1] == original


def test_another_format_is_not_smaller() -> None:
    original = smaller_original("PNG")
    assert make(original, "PNG", "full", "JPEG", smaller_than=len(original))[0] == NotSmaller()


@pytest.mark.parametrize("stem", ["w45", "r180", "b1", "bg00ff00"])
def test_picture_that_shows_something_else_may_be_larger(stem: str) -> None:
    answer, _ = make(smaller_original("PNG"), "PNG", stem, "WEBP", smaller_than=1)
    assert isinstance(answer, Derived)
    assert answer.size > 1


def test_one_frame_is_no_animation() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime")]
    original = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    answer, _ = make(original, "GIF", "p0", "AVIF", smaller_than=1)
    assert isinstance(answer, Derived)


def test_smaller_picture_is_taken() -> None:
    original = encoded(Image.effect_noise((90, 64), 90), "PNG")
    answer, picture = make(original, "PNG", "w5000", "JPEG", smaller_than=len(original))
    assert answer == Derived(size=len(picture), width=90, height=64)


def test_damaged_chunks_behind_the_image_are_left_out() -> None:
    original = smaller_original("PNG")
    original = original[:-12] + png_chunk(b"tEXt", b"a secret\0x" * 9) + png_chunk(b"IEND")
    _, picture = make(original, "PNG", "full", "PNG", smaller_than=len(original))
    assert b"secret" not in picture


@pytest.mark.parametrize(
    ("image", "alpha", "frames"),
    [
        (encoded(quarters(), "PNG"), False, 1),
        (encoded(quarters(mode="RGBA"), "PNG"), False, 1),
        (encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 254)), "PNG"), True, 1),
    ],
)
def test_facts_tell_alpha(image: bytes, *, alpha: bool, frames: int) -> None:
    facts = facts_of(image, "PNG")
    assert isinstance(facts, Facts)
    assert (facts.has_alpha, facts.frames) == (alpha, frames)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_facts_count_frames(format_: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    original = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    facts = facts_of(original, "APNG" if format_ == "PNG" else format_)
    assert isinstance(facts, Facts)
    assert (facts.frames, facts.colour) == (3, "ff0000" if format_ != "WEBP" else facts.colour)
