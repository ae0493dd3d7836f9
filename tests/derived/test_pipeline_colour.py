"""Colours of derived pictures, by Pillow and by the `vips` program."""

from __future__ import annotations

import subprocess
from functools import cache
from math import dist
from typing import TYPE_CHECKING, Any

import pytest
import pyvips
from PIL import Image

from tests.support.derive import encoded, facts_of, open_picture
from tests.support.installed import require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLOURS = ((200, 30, 40), (40, 180, 60), (30, 60, 210), (240, 220, 30), (128, 128, 128), (250, 250, 250), (5, 5, 5))
STRIPE = 8


def stripes(mode: str = "RGB") -> Image.Image:
    """Return an image of stripes of single colours."""
    image = Image.new("RGB", (STRIPE * len(COLOURS), 16))
    for number, colour in enumerate(COLOURS):
        image.paste(colour, (number * STRIPE, 0, (number + 1) * STRIPE, 16))
    return image.convert(mode)


def middles(image: Image.Image) -> list[tuple[int, ...]]:
    """Return the colour in the middle of each stripe."""
    rgb = image.convert("RGB")
    width = rgb.width / len(COLOURS)
    found = [rgb.getpixel((int((number + 0.5) * width), rgb.height // 2)) for number in range(len(COLOURS))]
    return [pixel for pixel in found if isinstance(pixel, tuple)]


def delta_e(one: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]) -> float:
    """Return the largest distance of two colours of the same number (CIE 1976)."""
    return max(dist(lab(left), lab(right)) for left, right in zip(one, other, strict=True))


def lab(colour: tuple[int, ...]) -> tuple[float, float, float]:
    """Return a colour of sRGB in CIE L*a*b* (IEC 61966-2-1)."""
    red, green, blue = (
        each / 255 / 12.92 if each <= 10 else ((each / 255 + 0.055) / 1.055) ** 2.4 for each in colour[:3]
    )
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    x, y, z = (each ** (1 / 3) if each > 0.008856 else 7.787 * each + 16 / 116 for each in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@cache
def wide_gamut_profile() -> bytes:
    """Return the profile Display P3, which Apple's devices embed."""
    return bytes(pyvips.Operation.call("profile_load", "p3"))


def test_distance_of_colours_is_that_of_the_eye() -> None:
    assert delta_e([(200, 30, 40)], [(200, 30, 40)]) == 0
    assert delta_e([(200, 30, 40)], [(30, 200, 40)]) > 50


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "JPEG", "AVIF"])
def test_display_p3_becomes_srgb(format_: str, tmp_path: Path) -> None:
    original = encoded(stripes(), "PNG", icc_profile=wide_gamut_profile())
    expected = by_vips(original, ".png", tmp_path)
    picture = open_picture(original, "PNG", "w560-contain", format_)
    assert delta_e(middles(picture), expected) < 3
    assert delta_e(middles(stripes()), expected) > 3, "the profile has an effect"
    assert "icc_profile" not in picture.info


def test_colours_without_profile_are_srgb() -> None:
    original = encoded(stripes(), "PNG")
    picture = open_picture(original, "PNG", "w560-contain")
    assert delta_e(middles(picture), middles(stripes())) < 0.5


def test_cmyk_becomes_srgb_as_vips_does_it(tmp_path: Path) -> None:
    original = encoded(stripes("CMYK"), "JPEG", quality=98, subsampling=0)
    picture = open_picture(original, "JPEG", "w560-contain")
    assert picture.mode == "RGB"
    assert delta_e(middles(picture), by_vips(original, ".jpg", tmp_path, "cmyk")) < 4


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("profile", [False, True])
def test_sixteen_bits_become_eight(tmp_path: Path, *, alpha: bool, profile: bool) -> None:
    image = pyvips.Image.new_from_memory(stripes().tobytes(), STRIPE * len(COLOURS), 16, 3, "uchar")
    image = (image.cast("ushort") * 257).cast("ushort").copy(interpretation="rgb16")
    if alpha:
        image = image.bandjoin((image[0] * 0 + 52_428).cast("ushort"))
    if profile:
        image = image.copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", wide_gamut_profile())
    original = bytes(image.pngsave_buffer())
    picture = open_picture(original, "PNG", "w560-contain")
    assert picture.mode == ("RGBA" if alpha else "RGB")
    expected = by_vips(original, ".png", tmp_path) if profile else COLOURS
    assert delta_e(middles(picture), expected) < 2
    if alpha:
        assert picture.getpixel((40, 10))[3] == 204  # type: ignore[index]


def test_sixteen_bits_of_grey_become_eight() -> None:
    picture = open_picture(encoded(Image.new("I;16", (40, 30), 0x8080), "PNG"), "PNG", "w20")
    assert picture.convert("L").getpixel((3, 3)) == pytest.approx(128, abs=1)


def test_palette_keeps_its_transparency() -> None:
    image = Image.new("P", (40, 30), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 20, 30))
    picture = open_picture(encoded(image, "PNG", transparency=0), "PNG", "w20")
    assert picture.convert("RGBA").getpixel((3, 3))[3] == 0  # type: ignore[index]
    assert picture.convert("RGBA").getpixel((16, 3)) == (255, 0, 0, 255)


def test_alpha_is_kept() -> None:
    for format_ in ("PNG", "WEBP", "AVIF"):
        original = encoded(Image.new("RGBA", (40, 30), (10, 200, 30, 99)), "PNG")
        pixel = open_picture(original, "PNG", "w20", format_).convert("RGBA").getpixel((5, 5))
        assert isinstance(pixel, tuple)
        assert pixel == pytest.approx((10, 200, 30, 99), abs=6)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        pytest.param("RGB", b"no profile at all", id="nonsense"),
        pytest.param("RGB", b"\xff" * 200_000, id="long nonsense"),
        pytest.param("L", wide_gamut_profile, id="colours of a grey image"),
        pytest.param("RGB", lambda: wide_gamut_profile()[:200], id="cut off"),
        pytest.param("RGB", lambda: wide_gamut_profile().replace(b"RGB ", b"CMYK"), id="CMYK of an RGB image"),
        pytest.param("CMYK", wide_gamut_profile, id="RGB of a CMYK image"),
        pytest.param("RGB", lambda: b"\xff\xff\xff\xff" + wide_gamut_profile()[4:], id="a size of gigabytes"),
    ],
)
def test_profile_that_lies_is_ignored(mode: str, profile: Any) -> None:
    format_ = "JPEG" if mode == "CMYK" else "PNG"
    original = encoded(stripes(mode), format_, icc_profile=profile if isinstance(profile, bytes) else profile())
    picture = open_picture(original, format_, "w560-contain")
    without = open_picture(encoded(stripes(mode), format_), format_, "w560-contain")
    assert delta_e(middles(picture), middles(without)) < 1


def test_facts_have_the_colours_of_the_profile() -> None:
    plain, wide = (
        facts_of(encoded(Image.new("RGB", (30, 20), (40, 180, 60)), "PNG", **options), "PNG")
        for options in ({}, {"icc_profile": wide_gamut_profile()})
    )
    assert plain != wide


def by_vips(original: bytes, extension: str, folder: Path, fallback: str = "srgb") -> list[tuple[int, ...]]:
    """Return the colours of an image as the `vips` program brings it to sRGB."""
    vips = require("vips")
    source, target = folder / f"original{extension}", folder / "picture.png"
    source.write_bytes(original)
    done = subprocess.run(
        [vips, "icc_transform", source, target, "srgb", "--embedded", "--input-profile", fallback, "--depth", "8"],
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return middles(Image.open(target))
