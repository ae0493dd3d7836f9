"""The options of a picture: what a request may say, and the one form in which it is kept."""

from __future__ import annotations

from dataclasses import fields, replace
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgkeep.core.derived.options import (
    DEFAULT_QUALITIES,
    FULL_SIZE,
    OPTION_NAMES,
    SIDE_MAX,
    VALUE_CHARS_MAX,
    Fit,
    Gravity,
    PictureFormat,
    PictureOptions,
    read_options,
    read_preset,
    read_stem,
    stem_of,
)
from imgkeep.core.errors import InvalidOption

PRESETS = {
    "thumb": PictureOptions(320, 320, Fit.COVER, format=PictureFormat.AUTO, quality=70),
    "Top": PictureOptions(320, 200, Fit.COVER, Gravity.NORTH),
}


def read(text: str) -> PictureOptions:
    return read_options(parse_qsl(text, keep_blank_values=True), PRESETS)


CASES = {
    "": PictureOptions(),
    "w=400": PictureOptions(400),
    "h=400": PictureOptions(height=400),
    f"w=1&h={SIDE_MAX}": PictureOptions(1, SIDE_MAX),
    "w=200&dpr=2": PictureOptions(400),
    "w=333&dpr=1.5": PictureOptions(500),
    "w=1&dpr=1.333": PictureOptions(1),
    "w=100&h=50&dpr=4&blur=2.5": PictureOptions(400, 200, blur=10),
    "w=100&dpr=4&blur=200": PictureOptions(400, blur=250),
    "w=100&dpr=1.333&blur=0.3": PictureOptions(133, blur=0.4),
    "w=100&dpr=1.000": PictureOptions(100),
    "w=300&dpr=1.3333333730697632": PictureOptions(400),
    "w=100&dpr=1.0001": PictureOptions(100),
    "w=9&blur=0.50049": PictureOptions(9, blur=0.5),
    "w=9&format=webp&q=78": PictureOptions(9, format=PictureFormat.WEBP),
    "w=9&format=jpeg&q=80": PictureOptions(9, format=PictureFormat.JPEG),
    "w=9&format=avif&q=78": PictureOptions(9, format=PictureFormat.AVIF, quality=78),
    "w=9&format=auto&q=78": PictureOptions(9, format=PictureFormat.AUTO, quality=78),
    "dpr=1": FULL_SIZE,
    "w=4&fit=inside": PictureOptions(4),
    "w=4&fit=contain": PictureOptions(4, fit=Fit.CONTAIN),
    "w=4&h=5&fit=COVER": PictureOptions(4, 5, Fit.COVER),
    "w=4&h=5&fit=cover&gravity=Attention": PictureOptions(4, 5, Fit.COVER, Gravity.ATTENTION),
    "w=4&h=5&fit=contain&gravity=southwest": PictureOptions(4, 5, Fit.CONTAIN, Gravity.SOUTHWEST),
    "gravity=center": FULL_SIZE,
    "format=auto": PictureOptions(format=PictureFormat.AUTO),
    "format=JPG": PictureOptions(format=PictureFormat.JPEG),
    "format=jxl&q=100": PictureOptions(format=PictureFormat.JXL, quality=100),
    "q=1": PictureOptions(quality=1),
    "bg=FfF": PictureOptions(background="ffffff"),
    "bg=ABCDEF": PictureOptions(background="abcdef"),
    "bg=123456FF": PictureOptions(background="123456"),
    "bg=12345600": PictureOptions(background="12345600"),
    "rotate=0": FULL_SIZE,
    "rotate=270": PictureOptions(rotate=270),
    "blur=0": FULL_SIZE,
    "blur=0.3": PictureOptions(blur=0.3),
    "blur=250": PictureOptions(blur=250),
    "blur=1.50": PictureOptions(blur=1.5),
    "page=0": PictureOptions(page=0),
    "page=99999": PictureOptions(page=99_999),
    "metadata=keep": PictureOptions(keep_metadata=True),
    "metadata=strip": FULL_SIZE,
    "preset=thumb": PRESETS["thumb"],
    "preset=thumb&dpr=2": replace(PRESETS["thumb"], width=640, height=640),
    "preset=thumb&format=webp": replace(PRESETS["thumb"], format=PictureFormat.WEBP),
    "preset=thumb&format=png": replace(PRESETS["thumb"], format=PictureFormat.PNG, quality=None),
    "preset=thumb&w=100&fit=inside": replace(PRESETS["thumb"], width=100, fit=Fit.INSIDE),
    "preset=thumb&metadata=keep": replace(PRESETS["thumb"], keep_metadata=True),
    "preset=Top": PRESETS["Top"],
}


@pytest.mark.parametrize(("text", "options"), CASES.items())
def test_options_are_read_in_their_canonical_form(text: str, options: PictureOptions) -> None:
    assert read(text) == options


WHOLE = "expected a whole number from"
MISTAKES = {
    "w=": f"w: {WHOLE} 1 to 16383",
    "w=0": f"w: {WHOLE} 1",
    "w=-1": f"w: {WHOLE} 1",
    "w=16384": f"w: {WHOLE} 1",
    "w=1e9": f"w: {WHOLE} 1",
    "w=NaN": f"w: {WHOLE} 1",
    "w=inf": f"w: {WHOLE} 1",
    "w=4.0": f"w: {WHOLE} 1",
    "w=+4": f"w: {WHOLE} 1",
    "w=%2B4": f"w: {WHOLE} 1",
    "w= 4": f"w: {WHOLE} 1",
    "w=4 ": f"w: {WHOLE} 1",
    "w=4%0A": f"w: {WHOLE} 1",
    "w=04": f"w: {WHOLE} 1",
    "w=0x4": f"w: {WHOLE} 1",
    "w=4_0": f"w: {WHOLE} 1",
    "w=4%00": f"w: {WHOLE} 1",
    "w=%2534": f"w: {WHOLE} 1",
    "w=400px": f"w: {WHOLE} 1",
    "w=40%": f"w: {WHOLE} 1",
    "w=auto": f"w: {WHOLE} 1",
    f"w={'9' * VALUE_CHARS_MAX}": f"w: {WHOLE} 1",
    f"w={'0' * 30_000}1": "w: expected 64 ASCII characters",
    "w=\u0664\u0660\u0660": "w: expected 64 ASCII characters",
    "w=\uff14\uff10\uff10": "w: expected 64 ASCII characters",
    "w=\u00b2": "w: expected 64 ASCII characters",
    "metadata=\u212aeep": "metadata: expected 64 ASCII characters",
    "w=\ud800": "w: expected 64 ASCII characters",
    "w=1&w=1": "w: is given twice",
    "w=1&h=2&w=3": "w: is given twice",
    "h=99999999999": f"h: {WHOLE} 1",
    "dpr=2": "dpr: needs w or h",
    "w=1&dpr=0": "dpr: expected a number from 1 to 4",
    "w=1&dpr=0.5": "dpr: expected a number from 1 to 4",
    "w=1&dpr=4.001": "dpr: expected a number from 1 to 4",
    "w=1&dpr=nan": "dpr: expected a number from 1 to 4",
    "w=1&dpr=1e0": "dpr: expected a number from 1 to 4",
    "w=1&dpr=2.": "dpr: expected a number from 1 to 4",
    "w=1&dpr=.5": "dpr: expected a number from 1 to 4",
    "w=1&dpr=4.0001": "dpr: expected a number from 1 to 4",
    f"w=1&dpr=1.{'3' * 21}": "dpr: expected a number from 1 to 4",
    "w=8192&dpr=2": "w: is above 16383 pixels after its multiplication by dpr",
    "w=1&h=16383&dpr=1.1": "h: is above 16383 pixels",
    "fit=fill": "fit: expected one of inside, contain, cover",
    "w=1&fit=": "fit: expected one of",
    "fit=inside": "fit: inside needs w or h",
    "fit=contain": "fit: contain needs w or h",
    "w=1&fit=cover": "fit: cover needs w and h",
    "h=1&fit=cover": "fit: cover needs w and h",
    "w=1&h=1&gravity=north": "gravity: needs w, h, and fit=cover or fit=contain",
    "w=1&fit=contain&gravity=north": "gravity: needs w, h",
    "w=1&h=1&fit=contain&gravity=attention": "gravity: attention needs fit=cover",
    "gravity=attention": "gravity: attention needs fit=cover",
    "gravity=up": "gravity: expected one of center, north",
    "format=gif": "format: expected one of auto, jpeg, png, webp, avif, jxl",
    "format=image/webp": "format: expected one of",
    "format=": "format: expected one of",
    "q=0": f"q: {WHOLE} 1 to 100",
    "q=101": f"q: {WHOLE} 1 to 100",
    "format=png&q=80": "q: has no effect on png",
    "preset=thumb&format=png&q=80": "q: has no effect on png",
    "bg=red": "bg: expected a colour as rgb, rrggbb or rrggbbaa",
    "bg=%23ffffff": "bg: expected a colour",
    "bg=ffff": "bg: expected a colour",
    "bg=": "bg: expected a colour",
    "rotate=45": "rotate: expected one of 0, 90, 180, 270",
    "rotate=-90": "rotate: expected one of",
    "rotate=360": "rotate: expected one of",
    "blur=0.1": "blur: expected a number from 0.3 to 250",
    "blur=250.1": "blur: expected a number from 0.3 to 250",
    "blur=1e3": "blur: expected a number",
    "page=-1": f"page: {WHOLE} 0 to 99999",
    "page=100000": f"page: {WHOLE} 0",
    "metadata=all": "metadata: expected one of strip, keep",
    "preset=": "preset: there is no preset of this name in [derive.presets]; there are Top, thumb",
    "preset=THUMB": "preset: there is no preset of this name",
    "preset=thumb&preset=thumb": "preset: is given twice",
    "preset=thumb&w=8000&dpr=4": "w: is above 16383",
    "preset=Top&fit=inside": "gravity: needs",
    "width=1": "width is not an option of a picture; there are w, h, dpr,",
    "W=1": "W is not an option",
    "=1": " is not an option",
    f"{'x' * 9999}=1": f"{'x' * 40} is not an option",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=lambda text: ascii(text)[:60])
def test_mistake_is_told_by_its_name(text: str, message: str) -> None:
    parameters = [
        (name, value.replace("%0A", "\n").replace("%00", "\0").replace("%2B", "+").replace("%23", "#"))
        for name, _, value in (part.partition("=") for part in text.split("&"))
    ]
    with pytest.raises(InvalidOption) as raised:
        read_options(parameters, PRESETS)
    assert str(raised.value).startswith(message)
    assert len(str(raised.value)) < 200


def test_every_option_can_be_named() -> None:
    named = {name for text in CASES for name, _ in parse_qsl(text)}
    assert named == set(OPTION_NAMES)
    with pytest.raises(InvalidOption, match="there are none"):
        read_options([("preset", "thumb")])


def test_preset_is_read() -> None:
    assert read_preset("w=320&h=320&fit=cover&format=auto") == PictureOptions(
        320, 320, Fit.COVER, format=PictureFormat.AUTO
    )
    assert read_preset(" w = 160 & dpr = 2 ") == PictureOptions(320)
    for text, message in (
        ("", "names no options"),
        ("=1", " is not an option"),
        ("preset=thumb", "preset: a preset names options, and no other preset"),
        ("w=320,h=320", "w: expected a whole number"),
    ):
        with pytest.raises(InvalidOption, match=message):
            read_preset(text)


sides = st.one_of(st.none(), st.integers(1, SIDE_MAX))


@st.composite
def options(draw: st.DrawFn) -> PictureOptions:
    """Draw the options of some request."""
    width, height = draw(sides), draw(sides)
    number = (width is not None) + (height is not None)
    fit = draw(st.sampled_from([Fit.INSIDE, Fit.CONTAIN, Fit.COVER][: number + 1]))
    gravities = list(Gravity) if fit is Fit.COVER else list(Gravity)[:-1]
    format_ = draw(st.sampled_from([None, *PictureFormat]))
    colours = st.text("0123456789abcdef", min_size=6, max_size=6)
    return PictureOptions(
        width,
        height,
        fit,
        Gravity.CENTER if fit is Fit.INSIDE or number < 2 else draw(st.sampled_from(gravities)),
        format_,
        None if format_ is PictureFormat.PNG else draw(st.one_of(st.none(), qualities_but(format_))),
        draw(st.one_of(st.none(), colours, colours.map(lambda text: f"{text}7f"))),
        draw(st.sampled_from([0, 90, 180, 270])),
        draw(st.one_of(st.just(0), st.integers(300, 250_000).map(lambda number: number / 1000))),
        draw(st.one_of(st.none(), st.integers(0, 99_999))),
        draw(st.booleans()),
    )


def qualities_but(format_: PictureFormat | None) -> st.SearchStrategy[int]:
    """Return qualities without the default of a format, which says no more than none."""
    return st.integers(1, 100).filter(lambda quality: quality != DEFAULT_QUALITIES.get(format_))


def parameters_of(options: PictureOptions) -> list[tuple[str, str]]:
    """Return parameters that ask for these options, without defaults."""
    values = {
        "w": options.width,
        "h": options.height,
        "fit": options.fit.value if options.fit is not Fit.INSIDE else None,
        "gravity": options.gravity.value if options.gravity is not Gravity.CENTER else None,
        "format": options.format and options.format.value,
        "q": options.quality,
        "bg": options.background,
        "rotate": options.rotate or None,
        "blur": options.blur or None,
        "page": options.page,
        "metadata": "keep" if options.keep_metadata else None,
    }
    assert len(values) == len(fields(PictureOptions))
    return [
        (name, f"{value:g}" if name == "blur" else str(value)) for name, value in values.items() if value is not None
    ]


@settings(max_examples=50)
@given(options(), st.data())
def test_equal_requests_have_equal_options(options: PictureOptions, data: st.DataObject) -> None:
    parameters = parameters_of(options)
    assert read_options(parameters) == options
    shuffled = data.draw(st.permutations(parameters))
    assert read_options([(name, value.upper()) for name, value in shuffled]) == options
    defaults = [("rotate", "0"), ("blur", "0"), ("gravity", "center"), ("dpr", "1"), ("metadata", "strip")]
    assert read_options([*parameters, *(each for each in defaults if each[0] not in dict(parameters))]) == options


@settings(max_examples=50)
@given(options())
@example(FULL_SIZE)
def test_stem_leads_back_to_the_options(options: PictureOptions) -> None:
    stem = stem_of(options)
    assert read_stem(stem) == replace(options, format=None)
    assert len(stem) <= 100
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


@settings(max_examples=50)
@given(options(), options())
def test_different_options_have_different_stems(one: PictureOptions, other: PictureOptions) -> None:
    assert (stem_of(one) == stem_of(other)) == (replace(one, format=None) == replace(other, format=None))


def test_stem_is_as_documented() -> None:
    assert stem_of(FULL_SIZE) == "full"
    assert stem_of(read("w=400&format=webp")) == "w400"
    text = "metadata=keep&page=0&blur=1.5&rotate=90&bg=fff&q=80&gravity=north&fit=cover&h=200&w=400"
    assert stem_of(read(text)) == "w400-h200-cover-north-q80-bgffffff-r90-b1.5-p0-keep"


@pytest.mark.parametrize(
    "stem",
    [
        *("", "-", "w", "w0", "w16384", "w99999999999", "w-400", "w400-", "-w400", "w400--h2", "h2-w400", "w400-w400"),
        *("W400", "w400-inside", "w400-center", "w400-cover", "q0", "q101", "bgfff", "bg000000ff", "r0", "r45", "b0"),
        *("b0.1", "b1.50", "b251", "p100000", "p01", "strip", "full-w400", "w400-full", "keep-w400", "w\u0664", "w4.5"),
        *("auto", "w400-auto", "w400.webp", "../w400", "north", "-".join(["w400"] * 99), f"w{'4' * 99_999}"),
    ],
    ids=lambda stem: ascii(stem)[:30],
)
def test_other_text_is_no_stem(stem: str) -> None:
    assert read_stem(stem) is None


@given(st.text())
def test_any_text_is_a_stem_or_none(text: str) -> None:
    options = read_stem(text)
    assert options is None or stem_of(options) == text


@given(st.lists(st.tuples(st.sampled_from(OPTION_NAMES), st.text(max_size=70))))
def test_any_values_are_read_or_refused(parameters: list[tuple[str, str]]) -> None:
    try:
        options = read_options(parameters, PRESETS)
    except InvalidOption:
        return
    assert read_stem(stem_of(options)) == replace(options, format=None)
