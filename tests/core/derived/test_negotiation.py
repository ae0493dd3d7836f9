"""The format of a picture: what browsers and programs really send, and what an original can become."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.derived.names import FORMATS
from imgkeep.core.derived.negotiation import (
    FIELD_CHARS_MAX,
    Abilities,
    ChosenFormat,
    Original,
    choose_format,
    choose_formats,
    read_accept,
    varies,
)
from imgkeep.core.derived.options import PictureFormat, PictureOptions
from imgkeep.core.errors import NotSupported
from imgkeep.core.records import Format
from tests.support.accept_fields import FIREFOX_TAB, IMG, TAB

ACCEPTS = {
    "no field": (None, ""),
    "an empty field": ("", ""),
    "Chromium's <img>": (IMG, "avif,webp"),
    "Chromium's tab": (TAB, "avif,webp"),
    "Firefox's <img>": ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "avif,webp"),
    "Firefox's old <img>": ("image/webp,*/*", "webp"),
    "Firefox's tab": (FIREFOX_TAB, ""),
    "Safari's <img>": (
        "image/webp,image/avif,image/jxl,image/heic,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "avif,webp",
    ),
    "curl": ("*/*", ""),
    "any image": ("image/*", ""),
    "any image, in other words": ("image/*,*/*;q=0.8", ""),
    "imgkeep itself": (
        "image/png,image/jpeg,image/gif,image/webp;q=0.8,image/*;q=0.5,*/*;q=0.3",
        "",
    ),
    "WebP alone": ("image/webp", "webp"),
    "AVIF alone": ("image/avif", "avif"),
    "WebP before AVIF": ("image/avif;q=0.5,image/webp;q=0.9", "webp,avif"),
    "AVIF at equal quality": ("image/webp;q=0.5,image/avif;q=0.5", "avif,webp"),
    "a refusal": ("image/avif;q=0,image/webp", "webp"),
    "two refusals": ("image/avif;q=0.0, image/webp;q=0.000, */*", ""),
    "any, without AVIF": ("image/*, image/avif;q=0", ""),
    "WebP below a wildcard": ("image/webp;q=0.5, */*;q=0.9", ""),
    "WebP as good as a wildcard": ("image/webp;q=0.5, */*;q=0.5", "webp"),
    "WebP below PNG": ("image/webp;q=0.5, image/png", ""),
    "case and space": ("IMAGE/WebP ; Q=0.9 ,\tImage/AVIF", "avif,webp"),
    "a parameter": ("image/avif;profile=x;q=0.9", "avif"),
    "a malformed quality": ("image/avif;q=2, image/webp;q=-1, image/webp;q=NaN", ""),
    "a quality of four digits": ("image/webp;q=0.1234", ""),
    "nonsense": (",;=,image/webp/x,image/webp x", ""),
    "another type that begins so": ("image/webp2, image/avif-sequence", ""),
}


@pytest.mark.parametrize(("field", "key"), ACCEPTS.values(), ids=ACCEPTS)
def test_accept_has_five_meanings(field: str | None, key: str) -> None:
    accepted = read_accept(field)
    assert accepted.key == key
    assert ",".join(each.extension for each in accepted.formats) == key
    assert read_accept(field) is accepted


@given(st.text())
def test_any_field_has_a_meaning(field: str) -> None:
    assert read_accept(field).key in {"", "avif", "webp", "avif,webp", "webp,avif"}


@pytest.mark.parametrize("piece", [",", ";", "image/avif;q=0.1,", "image/webp;q=0.", " ", "q="])
def test_long_field_costs_linear_time_and_is_not_remembered(piece: str) -> None:
    field = piece * (32_768 // len(piece))
    start = time.thread_time()
    read_accept(field)
    assert time.thread_time() - start < 0.5
    long = f"image/webp,{'x' * FIELD_CHARS_MAX}"
    assert read_accept(long) is read_accept("image/webp")


ALL = Abilities(frozenset(FORMATS), draws_svg=True)
USUAL = Abilities(frozenset(FORMATS) - {Format.JXL})
OLD = Abilities(frozenset({Format.JPEG, Format.PNG}))
AUTO = PictureOptions(400, format=PictureFormat.AUTO)
PLAIN = PictureOptions(400)
BOTH = "image/avif,image/webp"

CHOICES = {
    "PNG, no format": (PLAIN, Original(Format.PNG), BOTH, USUAL, "PNG"),
    "JPEG, no format": (PLAIN, Original(Format.JPEG), BOTH, USUAL, "JPEG"),
    "GIF, no format": (PLAIN, Original(Format.GIF), BOTH, USUAL, "GIF"),
    "APNG, no format": (PLAIN, Original(Format.APNG), BOTH, USUAL, "PNG"),
    "HEIC, no format": (PLAIN, Original(Format.HEIC), BOTH, USUAL, "JPEG"),
    "HEIC with alpha, no format": (PLAIN, Original(Format.HEIC, has_alpha=True), BOTH, USUAL, "PNG"),
    "TIFF, no format": (PLAIN, Original(Format.TIFF, has_alpha=False), BOTH, USUAL, "JPEG"),
    "TIFF, no format, a library that writes TIFF": (
        PLAIN,
        Original(Format.TIFF),
        BOTH,
        Abilities(frozenset(Format)),
        "JPEG",
    ),
    "icon, no format": (PLAIN, Original(Format.ICO), BOTH, USUAL, "PNG"),
    "JXL, no format": (PLAIN, Original(Format.JXL), BOTH, USUAL, "JPEG"),
    "JXL, no format, a library that writes it": (PLAIN, Original(Format.JXL), BOTH, ALL, "JXL"),
    "GIF, no format, a library that does not write it": (PLAIN, Original(Format.GIF), BOTH, OLD, "PNG"),
    "AVIF, no format, a library that does not write it": (PLAIN, Original(Format.AVIF), BOTH, OLD, "JPEG"),
    "PNG, auto": (AUTO, Original(Format.PNG), BOTH, USUAL, "AVIF negotiated"),
    "PNG, auto, WebP before AVIF": (
        AUTO,
        Original(Format.PNG),
        "image/webp,image/avif;q=0.9",
        USUAL,
        "WEBP negotiated",
    ),
    "PNG, auto, an old library": (AUTO, Original(Format.PNG), BOTH, OLD, "PNG"),
    "PNG, auto, any": (AUTO, Original(Format.PNG), "*/*", USUAL, "PNG"),
    "HEIC, auto, any": (AUTO, Original(Format.HEIC), "*/*", USUAL, "JPEG"),
    "HEIC, auto": (AUTO, Original(Format.HEIC), "image/webp", USUAL, "WEBP negotiated"),
    "AVIF, auto": (AUTO, Original(Format.AVIF), BOTH, USUAL, "AVIF"),
    "AVIF, auto, WebP alone": (AUTO, Original(Format.AVIF), "image/webp", USUAL, "WEBP negotiated"),
    "WebP, auto, WebP alone": (AUTO, Original(Format.WEBP), "image/webp", USUAL, "WEBP"),
    "WebP that may move, auto": (AUTO, Original(Format.WEBP), BOTH, USUAL, "AVIF negotiated"),
    "WebP that does not, auto": (AUTO, Original(Format.WEBP, is_animated=False), BOTH, USUAL, "AVIF negotiated"),
    "WebP that does, auto": (AUTO, Original(Format.WEBP, is_animated=True), BOTH, USUAL, "WEBP"),
    "WebP that does, auto, one frame": (
        PictureOptions(format=PictureFormat.AUTO, page=0),
        Original(Format.WEBP, is_animated=True),
        BOTH,
        USUAL,
        "AVIF negotiated",
    ),
    "GIF that may move, auto": (AUTO, Original(Format.GIF), BOTH, USUAL, "AVIF negotiated"),
    "GIF that does, auto": (AUTO, Original(Format.GIF, is_animated=True), BOTH, USUAL, "WEBP negotiated"),
    "GIF that does, auto, AVIF alone": (AUTO, Original(Format.GIF, is_animated=True), "image/avif", USUAL, "GIF"),
    "GIF that does not move, auto": (AUTO, Original(Format.GIF, is_animated=False), BOTH, USUAL, "AVIF negotiated"),
    "SVG, no format": (PLAIN, Original(Format.SVG), BOTH, USUAL, "SVG"),
    "SVG, auto": (AUTO, Original(Format.SVG), BOTH, USUAL, "SVG"),
    "SVG that is drawn, no format": (PLAIN, Original(Format.SVG), BOTH, ALL, "PNG"),
    "SVG that is drawn, auto": (AUTO, Original(Format.SVG), "image/webp", ALL, "WEBP negotiated"),
    "WebP by name": (PictureOptions(format=PictureFormat.WEBP), Original(Format.PNG), None, USUAL, "WEBP"),
    "JPEG by name": (PictureOptions(format=PictureFormat.JPEG), Original(Format.GIF), BOTH, USUAL, "JPEG"),
    "JXL by name": (PictureOptions(format=PictureFormat.JXL), Original(Format.PNG), BOTH, ALL, "JXL"),
}


@pytest.mark.parametrize(("options", "original", "accept", "abilities", "chosen"), CHOICES.values(), ids=CHOICES)
def test_format_is_chosen(
    options: PictureOptions, original: Original, accept: str | None, abilities: Abilities, chosen: str
) -> None:
    name, _, negotiated = chosen.partition(" ")
    expected = ChosenFormat(Format[name], negotiated=bool(negotiated))
    assert choose_format(options, original, read_accept(accept), abilities) == expected


def test_format_that_is_not_written_is_told() -> None:
    with pytest.raises(NotSupported, match=r"does not write JXL; it writes avif, gif, jpeg, png, webp$"):
        choose_format(PictureOptions(format=PictureFormat.JXL), Original(Format.PNG), read_accept(None), USUAL)
    with pytest.raises(NotSupported, match=r"derive\.svg is false"):
        choose_format(PictureOptions(format=PictureFormat.PNG), Original(Format.SVG), read_accept(None), USUAL)


@given(
    st.sampled_from([PLAIN, AUTO, PictureOptions(page=0), PictureOptions(format=PictureFormat.AUTO, page=1)]),
    st.builds(Original, st.sampled_from(Format), st.sampled_from([None, False, True]), st.sampled_from([None, True])),
    st.sampled_from([None, *(field for field, _ in ACCEPTS.values())]),
    st.sampled_from([ALL, USUAL, OLD]),
)
def test_picture_is_in_a_format_that_is_written(
    options: PictureOptions, original: Original, accept: str | None, abilities: Abilities
) -> None:
    chosen = choose_format(options, original, read_accept(accept), abilities)
    assert chosen.format in abilities.writable or chosen == ChosenFormat(Format.SVG)
    if chosen.negotiated:
        assert varies(options)
        assert chosen.format in read_accept(accept).formats
    else:
        assert chosen == choose_format(options, original, read_accept(None), abilities)


@pytest.mark.parametrize(
    ("options", "original", "accept", "expected"),
    [
        (AUTO, Format.PNG, BOTH, ["AVIF negotiated", "PNG"]),
        (AUTO, Format.PNG, "*/*", ["PNG"]),
        (AUTO, Format.WEBP, BOTH, ["AVIF negotiated", "WEBP"]),
        (AUTO, Format.WEBP, "image/webp", ["WEBP"]),
        (AUTO, Format.GIF, BOTH, ["AVIF negotiated", "WEBP negotiated", "GIF"]),
        (AUTO, Format.GIF, "image/avif", ["AVIF negotiated", "GIF"]),
        (AUTO, Format.GIF, "image/webp,image/avif;q=0.5", ["WEBP negotiated", "GIF"]),
        (PLAIN, Format.GIF, BOTH, ["GIF"]),
        (AUTO, Format.APNG, BOTH, ["AVIF negotiated", "PNG"]),
        (AUTO, Format.SVG, BOTH, ["SVG"]),
    ],
)
def test_formats_follow_each_other(options: PictureOptions, original: Format, accept: str, expected: list[str]) -> None:
    chosen = choose_formats(options, original, read_accept(accept), USUAL)
    assert [each.format.name + (" negotiated" if each.negotiated else "") for each in chosen] == expected
