"""Derived pictures by their options, in every format that is written."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from imgkeep.derived.messages import Derived, NotSmaller
from tests.support.derive import corners, encoded, make, open_picture, picture_of, quarters, refused
from tests.support.image_files import dib, ico, svg

QUARTERS = encoded(quarters(), "PNG")
"""80 x 60: red, green; blue, white."""
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
ORIGINALS = {
    "PNG": QUARTERS,
    "JPEG": encoded(quarters(), "JPEG", quality=95),
    "JPEG progressive": encoded(quarters(), "JPEG", quality=95, progressive=True),
    "WEBP": encoded(quarters(), "WEBP", lossless=True),
    "AVIF": encoded(quarters(), "AVIF", quality=95),
    "GIF": encoded(quarters(), "GIF"),
    "TIFF": encoded(quarters(), "TIFF"),
    "BMP": encoded(quarters(), "BMP"),
    "BMP 8 bits": encoded(quarters(mode="P"), "BMP"),
    "BMP 1 bit": encoded(Image.new("1", (80, 60), 1), "BMP"),
    "ICO": encoded(quarters((64, 48), "RGBA"), "ICO", sizes=[(64, 48), (16, 12)]),
    "ICO of bitmaps": encoded(quarters((64, 48), "RGBA"), "ICO", sizes=[(64, 48), (16, 12)], bitmap_format="bmp"),
}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("original", ORIGINALS)
def test_every_format_becomes_every_other(original: str, format_: str) -> None:
    picture = open_picture(ORIGINALS[original], original.split(maxsplit=1)[0], "w40", format_)
    assert (picture.format, picture.size) == (format_, (40, 30))
    assert corners(picture) == ("wwww" if original == "BMP 1 bit" else "rgbw")


@pytest.mark.parametrize(
    ("stem", "size", "colours"),
    [
        ("full", (80, 60), "rgbw"),
        ("w20", (20, 15), "rgbw"),
        ("h20", (27, 20), "rgbw"),
        ("w20-h20", (20, 15), "rgbw"),
        ("w800", (80, 60), "rgbw"),
        ("w160-contain", (160, 120), "rgbw"),
        ("w160-h240-contain", (160, 240), None),
        ("w20-h20-cover", (20, 20), "rgbw"),
        ("w10-h60-cover-west", (10, 60), "rrbb"),
        ("w10-h60-cover-east", (10, 60), "ggww"),
        ("w80-h10-cover-north", (80, 10), "rgrg"),
        ("w80-h10-cover-southwest", (80, 10), "bwbw"),
        ("w400-h20-cover-north", (400, 20), "rgrg"),
        ("w20-h20-cover-attention", (20, 20), None),
        ("w900-h300-cover-attention", (900, 300), None),
        ("r90", (60, 80), "brwg"),
        ("r180", (80, 60), "wbgr"),
        ("w30-r270", (30, 40), "gwrb"),
        ("w30-h10-cover-north-r90", (30, 10), "brbr"),
        ("w300-h100-cover-south-r90", (300, 100), "wgwg"),
        ("b2", (80, 60), "rgbw"),
        ("w160-contain-b40", (160, 120), None),
        ("p0", (80, 60), "rgbw"),
    ],
)
def test_options_have_their_effect(stem: str, size: tuple[int, int], colours: str | None) -> None:
    picture = open_picture(QUARTERS, "PNG", stem)
    assert picture.size == size
    if colours:
        assert corners(picture) == colours


@pytest.mark.parametrize(
    ("stem", "format_", "edge"),
    [
        ("w200-h200-contain", "PNG", (0, 0, 0, 0)),
        ("w200-h200-contain", "JPEG", (255, 255, 255, 255)),
        ("w200-h200-contain-bg0000ff", "PNG", (0, 0, 255, 255)),
        ("w200-h200-contain-bg0000ff", "JPEG", (0, 0, 254, 255)),
        ("w200-h200-contain-bg0000ff80", "PNG", (0, 0, 255, 128)),
        ("w200-h200-contain-bg0000ff80", "JPEG", (127, 127, 255, 255)),
        ("w200-h200-contain-bg00000000", "PNG", (0, 0, 0, 0)),
    ],
)
def test_background_fills_the_rest(stem: str, format_: str, edge: tuple[int, ...]) -> None:
    picture = open_picture(QUARTERS, "PNG", stem, format_).convert("RGBA")
    assert picture.size == (200, 200)
    pixel = picture.getpixel((100, 2))
    assert isinstance(pixel, tuple)
    assert all(abs(found - expected) <= 2 for found, expected in zip(pixel, edge, strict=True))


def test_gravity_places_the_picture_in_the_background() -> None:
    picture = open_picture(QUARTERS, "PNG", "w200-h300-contain-south")
    assert corners(picture)[:2] == "--"
    assert [picture.getpixel((50, y)) for y in (160, 297)] == [(255, 0, 0, 255), (0, 0, 255, 255)]


def test_background_fills_what_is_transparent() -> None:
    glass = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")
    assert open_picture(glass, "PNG", "bg00ff00").convert("RGBA").getpixel((4, 4)) == (0, 255, 0, 255)
    assert open_picture(glass, "PNG", "full", "JPEG").getpixel((4, 4)) == (255, 255, 255)


def test_size_is_near_that_of_pillow() -> None:
    noise = Image.effect_noise((301, 200), 80).convert("RGB")
    ours = open_picture(encoded(noise, "PNG"), "PNG", "w100")
    theirs = noise.resize((100, 66), Image.Resampling.LANCZOS)
    assert ours.size == theirs.size
    assert max(ImageStat.Stat(ImageChops.difference(ours.convert("RGB"), theirs)).mean) < 4


def test_transparent_colours_do_not_bleed() -> None:
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    for stem in ("w16", "b3"):
        picture = open_picture(encoded(image, "PNG"), "PNG", stem)
        raw = picture.convert("RGBA").tobytes()
        assert max(green for green, alpha in zip(raw[1::4], raw[3::4], strict=True) if alpha > 8) < 40


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (65_535, 1), (65_535, 3)])
@pytest.mark.parametrize("format_", FORMATS)
def test_extreme_sides_become_pictures(size: tuple[int, int], format_: str) -> None:
    answer, _ = make(encoded(Image.new("RGB", size, "red"), "PNG"), "PNG", "w300-h300", format_)
    assert isinstance(answer, Derived)
    assert (answer.width, answer.height) == (min(size[0], 300), min(size[1], 300) if size[1] > 3 else 1)


def test_picture_without_sizes_fits_into_the_maximum() -> None:
    original = encoded(Image.new("RGB", (65_535, 2), "red"), "PNG")
    answer, picture = make(original, "PNG", format_="WEBP", side_max=8192)
    assert answer == Derived(size=len(picture), width=8192, height=1)


@pytest.mark.parametrize("format_", ["GIF", "WEBP"])
@pytest.mark.parametrize("original", ["GIF", "WEBP"])
@pytest.mark.parametrize("stem", ["w40", "w20-h40-cover", "w90-h90-contain-r90", "w40-b2", "w30-h20-cover-attention"])
def test_frames_stay_where_the_format_has_frames(original: str, format_: str, stem: str) -> None:
    answer, file = make(animation(original), original, stem, format_)
    assert isinstance(answer, Derived)
    picture: Any = Image.open(BytesIO(file))
    assert (picture.n_frames, answer.frames) == (4, 4)
    if stem == "w40":
        assert [colour_of_frame(picture, n) for n in range(4)] == ["r", "g", "b", "w"]
        assert [duration_of_frame(picture, n) for n in range(4)] == [100, 50, 200, 80]


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "AVIF"])
def test_first_frame_stays_where_the_format_has_none(format_: str) -> None:
    answer, file = make(animation("GIF"), "GIF", "w40", format_)
    assert answer == Derived(size=len(file), width=40, height=30)
    assert corners(Image.open(BytesIO(file))) == "rrrr"


@pytest.mark.parametrize("original", ["GIF", "WEBP"])
def test_negotiated_format_that_would_lose_frames_gives_way(original: str) -> None:
    frames = animation(original)
    assert make(frames, original, "w40", "AVIF", smaller_than=len(frames))[0] == NotSmaller()
    assert isinstance(make(frames, original, "w40-p1", "AVIF", smaller_than=len(frames))[0], Derived)
    still = ORIGINALS[original]
    assert isinstance(make(still, original, "w40", "AVIF", smaller_than=len(still))[0], Derived)


@pytest.mark.parametrize(("page", "colour"), [(0, "r"), (2, "b"), (3, "w")])
@pytest.mark.parametrize("original", ["GIF", "WEBP"])
def test_page_is_the_only_frame(original: str, page: int, colour: str) -> None:
    picture: Any = open_picture(animation(original), original, f"p{page}", original)
    assert picture.n_frames == 1
    assert corners(picture) == colour * 4


@pytest.mark.parametrize(("original", "pages"), [("GIF", 4), ("PNG", 1)])
def test_page_behind_the_last_is_refused(original: str, pages: int) -> None:
    answer = refused(animation("GIF") if original == "GIF" else QUARTERS, original, f"p{pages}")
    assert answer.reason == "no_such_page"
    assert str(pages) in answer.detail


def test_animated_png_becomes_its_first_frame() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime")]
    original = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    for format_ in ("PNG", "WEBP"):
        assert corners(open_picture(original, "APNG", "w20", format_)) == "rrrr"


def test_quality_decides_the_size() -> None:
    noise = encoded(Image.effect_noise((64, 64), 80), "PNG")
    for format_ in ("JPEG", "WEBP", "AVIF"):
        low, high = (len(picture_of(noise, "PNG", f"q{quality}", format_)) for quality in (10, 95))
        assert low < high


def test_grey_stays_grey() -> None:
    grey = encoded(Image.new("L", (40, 30), 100), "PNG")
    assert open_picture(grey, "PNG", "w20", "JPEG").mode == "L"
    assert open_picture(grey, "PNG", "w20").mode == "L"
    assert open_picture(grey, "PNG", "w40-h40-contain-bgff0000").mode == "RGB"


def test_icon_without_alpha_is_transparent_by_its_mask() -> None:
    image = dib(24)
    rows = bytearray(image[40 : 40 + 60 * 12])
    mask = b"\xff\xff\xf0\0" * 6 + bytes(4 * 6)  # rows go upwards: the lower half is transparent
    assert corners(open_picture(ico((20, 12, image[:40] + rows + mask)), "ICO")) == "ww--"


def test_icon_may_do_without_a_mask() -> None:
    image = dib(32, mask=False)
    rows = b"\0\0\xff\0" * 240
    assert corners(open_picture(ico((20, 12, image[:40] + rows)), "ICO")) == "rrrr"


def test_svg_is_drawn_only_when_allowed() -> None:
    drawing = svg('width="20" height="10"', content='<rect width="20" height="10" fill="red"/>').encode()
    assert "derive.svg" in refused(drawing, "SVG").detail
    picture = Image.open(BytesIO(picture_of(drawing, "SVG", "w400-contain", rasterise_svg=True)))
    assert picture.size == (400, 200)
    assert corners(picture) == "rrrr"
    assert refused(drawing, "SVG").reason == "unsupported"


def test_svg_reaches_no_other_file(tmp_path: Any) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(QUARTERS)
    for address in (secret.as_uri(), str(secret), "file:secret.png", "http://127.0.0.1:1/a.png"):
        drawing = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="20" height="10">'
            f'<image xlink:href="{address}" width="20" height="10"/></svg>'
        )
        picture = Image.open(BytesIO(picture_of(drawing.encode(), "SVG", rasterise_svg=True)))
        assert corners(picture) == "----"


def test_unknown_options_are_refused() -> None:
    assert refused(QUARTERS, "PNG", "w400-unheard-of").reason == "unsupported"


def test_format_that_libvips_lacks_is_refused() -> None:
    assert refused(QUARTERS, "PNG", "w20", "JXL").reason == "unsupported"
    assert refused(b"\xff\x0a" + bytes(30), "JXL").reason == "unsupported"


def test_wrong_format_is_refused() -> None:
    assert "no JPEG" in refused(QUARTERS, "JPEG").detail


def animation(format_: str) -> bytes:
    frames = [Image.new("RGB", (80, 60), colour) for colour in ("red", "lime", "blue", "white")]
    return encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=[100, 50, 200, 80], loop=0)


def colour_of_frame(picture: Any, number: int) -> str:
    picture.seek(number)
    return corners(picture)[0]


def duration_of_frame(picture: Any, number: int) -> int:
    picture.seek(number)
    picture.load()
    return int(picture.info["duration"])
