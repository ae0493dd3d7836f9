"""Options in rewritten links, and the attributes that an `<img>` gets."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.derived.derive_policy import WIDTHS_MAX
from imgkeep.core.derived.options import Fit, PictureOptions
from imgkeep.core.records import PixelSize
from imgkeep.core.rewrite import ImgLinks, PictureSettings, SourceLinks, every, rewrite_html, rewrite_markdown
from imgkeep.core.rewrite.links import ADDED_CHARS_MAX
from imgkeep.core.rewrite.pictures import RULES_MAX, SIZES_CHARS_MAX
from imgkeep.core.signing import Signatures
from imgkeep.core.source_url import read_img_query

if TYPE_CHECKING:
    from imgkeep.core.rewrite import Pictures

LADDER = (64, 320, 640, 1280, 2560)
PRESETS = {"thumb": PictureOptions(160, 120, Fit.COVER), "half": PictureOptions(512)}
SIZES = {"https://h.example/a.png": PixelSize(1024, 768), "https://h.example/small.png": PixelSize(50, 40)}
A, B, SMALL = "https://h.example/a.png", "https://h.example/b.png", "https://h.example/small.png"


def pictures(
    *, rules: str | dict[str, str] = "", widths: object = None, sizes: str = "", lazy: bool = False, known: bool = False
) -> Pictures | None:
    settings = PictureSettings(rules, widths, sizes, is_lazy=lazy)
    return settings.read(LADDER, PRESETS, SIZES.get if known else None)


def rewritten(html: str, settings: Pictures | None, key: str | None = None) -> str:
    linker = ImgLinks(every, key=key, pictures=settings)
    made = rewrite_html(html, linker)
    assert rewrite_html(made, linker) == made
    assert rewrite_html(html.encode(), linker) == made.encode()
    return made


def brief(html: str) -> str:
    """Return HTML with its links in short: the file's name and the options."""

    def shortened(found: re.Match[str]) -> str:
        query = dict(parse_qsl(unescape(found[1])))
        name = query.pop("src").rpartition("/")[2]
        return "?".join(filter(None, [name, "&".join(f"{key}={value}" for key, value in query.items())]))

    return re.sub(r"/img\?([^\s\"]+)", shortened, html)


PAGES = {
    "nothing": ({}, f'<img src="{A}">', '<img src="a.png">'),
    "a preset": ({"rules": "preset=thumb"}, f'<img src="{A}" alt=x>', '<img src="a.png?preset=thumb" alt=x>'),
    "options in the order of their names": (
        {"rules": "w=400&format=auto"},
        f'<img src="{A}">',
        '<img src="a.png?format=auto&w=400">',
    ),
    "a lazy loader": (
        {"rules": "preset=thumb", "widths": "auto"},
        f'<img data-src="{A}">',
        '<img data-src="a.png?preset=thumb">',
    ),
    "links of no <img>": (
        {"rules": "preset=thumb", "widths": "auto", "lazy": True},
        f'<video poster="{A}"></video><link rel=icon href="{A}"><p style="background: url({A})">',
        None,
    ),
    "an old name of <img>": ({"lazy": True}, f'<image src="{A}">', '<image src="a.png" loading="lazy">'),
    "its own srcset": (
        {"rules": "preset=thumb", "widths": "auto", "sizes": "50vw"},
        f'<img srcset="{A} 2x" src="{A}">',
        '<img srcset="a.png 2x" src="a.png?preset=thumb">',
    ),
    "an empty srcset": ({"widths": [1, 2], "sizes": "50vw"}, f'<img srcset src="{A}">', '<img srcset src="a.png">'),
    "widths, sizes": (
        {"widths": [640, 320], "sizes": "50vw"},
        f'<img src="{A}">',
        '<img src="a.png" srcset="a.png?w=320 320w, a.png?w=640 640w" sizes="50vw">',
    ),
    "widths, a format": (
        {"rules": "format=auto", "widths": [320, 640], "sizes": "50vw"},
        f'<img src="{A}">',
        (
            '<img src="a.png?w=640&format=auto" srcset="a.png?w=320&format=auto 320w, a.png?w=640&format=auto 640w" '
            'sizes="50vw">'
        ),
    ),
    "widths, sizes of the page": (
        {"widths": [320, 640], "sizes": "50vw"},
        f'<img sizes="20vw" src="{A}">',
        '<img sizes="20vw" src="a.png" srcset="a.png?w=320 320w, a.png?w=640 640w">',
    ),
    "widths, no size is known": ({"widths": "auto"}, f'<img src="{B}">', '<img src="b.png">'),
    "widths, a width of the page": (
        {"widths": "auto"},
        f'<img width=400 src="{B}">',
        (
            '<img width=400 src="b.png" srcset="b.png?w=320 320w, b.png?w=640 640w, b.png?w=1280 1280w" '
            'sizes="(max-width: 400px) 100vw, 400px">'
        ),
    ),
    "widths, a width in percent": ({"widths": "auto"}, f'<img width="50%" src="{B}">', '<img width="50%" src="b.png">'),
    "widths, a narrow width": (
        {"widths": "auto"},
        f'<img width=40px src="{B}">',
        '<img width=40px src="b.png" srcset="b.png?w=64 64w, b.png?w=320 320w" sizes="(max-width: 40px) 100vw, 40px">',
    ),
    "widths, a known image": (
        {"widths": "auto", "known": True},
        f'<img src="{A}">',
        (
            '<img src="a.png" srcset="a.png?w=320 320w, a.png?w=640 640w, a.png?w=1280 1024w" '
            'sizes="(max-width: 1024px) 100vw, 1024px" width="1024" height="768">'
        ),
    ),
    "a known image beside a <source>": (
        {"known": True},
        (
            f'<picture><source srcset="{B}" media="(max-width: 600px)"><img src="{A}"></picture>'
            f'<picture><img src="{A}"></picture><video><source src="c.mp4"></video><img src="{A}">'
        ),
        (
            '<picture><source srcset="b.png" media="(max-width: 600px)"><img src="a.png"></picture>'
            '<picture><img src="a.png" width="1024" height="768"></picture><video><source src="c.mp4"></video>'
            '<img src="a.png" width="1024" height="768">'
        ),
    ),
    "widths of a list, a known image": (
        {"widths": [64, 2560, 4000], "known": True, "sizes": "9em"},
        f'<img width=5 height=4 src="{A}">',
        '<img width=5 height=4 src="a.png" srcset="a.png?w=64 64w, a.png?w=2560 1024w" sizes="9em">',
    ),
    "widths, a small known image": (
        {"widths": "auto", "known": True},
        f'<img src="{SMALL}">',
        '<img src="small.png" width="50" height="40">',
    ),
    "widths, a preset": (
        {"rules": "preset=thumb", "widths": "auto", "known": True},
        f'<img src="{A}">',
        '<img src="a.png?preset=thumb" width="160" height="120">',
    ),
    "a size that a picture has": (
        {"rules": "preset=half&rotate=90", "known": True},
        f'<img src="{A}">',
        '<img src="a.png?preset=half&rotate=90" width="512" height="683">',
    ),
    "a size in device pixels": (
        {"rules": "preset=half&dpr=2", "known": True},
        f'<img src="{A}">',
        '<img src="a.png?dpr=2&preset=half">',
    ),
    "an unknown image": ({"known": True}, f'<img src="{B}">', '<img src="b.png">'),
    "a width": ({"known": True}, f'<img width=512 src="{A}">', '<img width=512 src="a.png" height="384">'),
    "a height": ({"known": True}, f'<img src="{A}" HEIGHT=1>', '<img src="a.png" width="1" HEIGHT=1>'),
    "both": ({"known": True}, f'<img src="{A}" height=1 width=1>', '<img src="a.png" height=1 width=1>'),
    "a height in percent": ({"known": True}, f'<img src="{A}" height=1%>', '<img src="a.png" height=1%>'),
    "lazy": ({"lazy": True}, f'<img src="{A}"/><img src="{A}">', None),
    "eager": ({"lazy": True}, f'<img loading=eager src="{A}">', '<img loading=eager src="a.png">'),
    "a fragment": (
        {"rules": "w=5", "lazy": True},
        f'<img src="{A}#x">',
        '<img src="a.png?w=5#x">',
    ),
    "a link that stays": ({"lazy": True, "rules": "w=5", "known": True}, '<img src="data:,">', '<img src="data:,">'),
    "no link": ({"lazy": True, "rules": "w=5"}, "<img><img src>", "<img><img src>"),
    "in SVG": ({"lazy": True, "rules": "w=5"}, f'<svg><image href="{A}"/></svg>', None),
    "rules": (
        {"rules": {"h.example/photos/*": "w=5", "*.example": "preset=half", "other.test": "w=6"}},
        '<img src="https://h.example/photos/1.png"><img src="https://h.example/1.png"><img src="https://h.test/1.png">',
        '<img src="1.png?w=5"><img src="1.png?preset=half"><img src="1.png">',
    ),
}


@pytest.mark.parametrize(("settings", "page", "expected"), PAGES.values(), ids=PAGES)
def test_img_gets_options_and_attributes(settings: dict[str, object], page: str, expected: str | None) -> None:
    made = brief(rewritten(page, pictures(**settings)))  # type: ignore[arg-type] # a table
    if expected is None:
        added = ' loading="lazy"' if page.startswith("<img") else ""
        expected = re.sub(r'(src="[^"]*")', rf"\1{added}", page).replace(A, "a.png")
        made = made.replace("a.png)", f"{A})").replace(A, "a.png")
    assert made == expected


def test_new_links_stand_in_any_quotes() -> None:
    settings = pictures(rules="format=auto&q=80", widths=[1, 2], sizes='calc("1")')
    for page in (f"<img src='{A}'>", f"<img src={A}>", f'<img src = "{A}" >', f"<IMG SRC={A}\n>"):
        made = rewritten(page, settings)
        assert '2w" sizes="calc(&quot;1&quot;)"' in made
        assert brief(unescape(made)).count("a.png") == 3


def test_links_to_pictures_are_signed() -> None:
    key = "an-example-key-of-32-characters!"
    made = rewritten(f'<img src="{A}">', pictures(rules="q=80", widths=[100, 200], sizes="1em"), key)
    links = re.findall(r'/img\?([^\s",]+)', unescape(made))
    assert len(links) == 3
    for link in links:
        query = read_img_query(link)
        assert query.text == A
        assert dict(query.picture)["q"] == "80"
        Signatures([key]).judge(query.text, dict(query.options), 0)


def test_page_of_many_images_grows_by_a_bounded_length() -> None:
    linker = ImgLinks(every, key="an-example-key-of-32-characters!", pictures=pictures(widths="auto", sizes="1em"))
    page = f"<img src=//a?{'%' * 2000}>" * 200
    made = rewrite_html(page, linker, url="https://h.example/")
    added = len(made) - len(rewrite_html(page, ImgLinks(every, key=linker.key), url="https://h.example/"))
    assert ADDED_CHARS_MAX <= added < ADDED_CHARS_MAX * 1.5
    assert made.count("<img") == 200
    assert 10 < made.count("srcset") < 100


def test_attributes_come_in_any_encoding() -> None:
    settings = pictures(lazy=True)
    page = f'\u00fc<img alt="\u00fc" src="{A}">'
    for codec in ("utf-16", "latin-1", "utf-8", "windows-1250"):
        made = rewrite_html(page.encode(codec), ImgLinks(every, pictures=settings), charset=codec)
        assert made.decode(codec).endswith(f'src="/img?src={quote(A, safe="")}" loading="lazy">')


def test_markdown_gets_options_and_html_in_it_attributes() -> None:
    linker = ImgLinks(every, pictures=pictures(rules="w=5", lazy=True, known=True))
    text = (
        f'![a]({A}) ![b][b]\n\n> 1. <img\n>    src="{A}"\n>    alt=x>\n\n<div>\n<img src="{A}">\n</div>\n\n[b]: <{B}>\n'
    )
    made = rewrite_markdown(text, linker)
    assert brief(made.replace(")", '")').replace(">\n", '">\n')).count("?w=5") == 4
    attributes = ' width="5" height="4" loading="lazy"'
    assert made.count(attributes) == 2
    assert re.sub(r"/img\?src=[^\s\")>]*", "L", made.replace("&amp;", "&")).replace(attributes, "") == (
        text.replace(A, "L").replace(B, "L")
    )


def test_settings_that_ask_for_nothing_are_none() -> None:
    assert PictureSettings().read(LADDER) is None
    assert pictures() is None


def test_settings_have_an_example_of_each_kind_of_link() -> None:
    settings = pictures(rules={"a.example": "preset=half", "*": "format=auto"}, widths=[5, 6])
    assert settings is not None
    assert list(settings.examples()) == [
        (("preset", "half"),),
        (("w", "6"), ("format", "auto")),
        (("w", "5"),),
        (("w", "5"), ("format", "auto")),
        (("w", "6"),),
        (("w", "6"), ("format", "auto")),
    ]


def test_widths_can_be_those_of_another_server() -> None:
    settings = pictures(rules="format=auto", widths="auto")
    assert settings is not None
    other = settings.with_widths([300, 200])
    assert (other.widths, other.fits, other.options_of(A)) == ((200, 300), True, (("format", "auto"),))


def test_presets_of_an_unknown_server_are_believed() -> None:
    settings = PictureSettings({"*": "preset=any&dpr=2", "a.example": "preset=any&gravity=north"}).read(LADDER)
    assert settings is not None
    assert settings.options_of(A) == (("dpr", "2"), ("preset", "any"))
    assert settings.options_of("ftp://a") == ()
    unknown = PictureSettings("preset=any", is_lazy=True).read(LADDER, None, SIZES.get)
    assert brief(rewritten(f'<img src="{A}">', unknown)) == '<img src="a.png?preset=any" loading="lazy">'


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PictureSettings("w=0"), "rules: w: expected a whole number"),
        (PictureSettings({"*": ""}), "rules: there are no options"),
        (PictureSettings({"https://a": "w=1"}), "rules: 'https://a' can match no"),
        (PictureSettings({"a/../b": "w=1"}), "rules: 'a/../b' can match no path"),
        (PictureSettings({"a" * 1001: "w=1"}), "rules: a pattern, or its options, is longer than 1000"),
        (PictureSettings("w=1" + "&" * 1000), "rules: a pattern, or its options, is longer than 1000"),
        (PictureSettings("preset=x&preset=y"), "rules: preset: is given twice"),
        (PictureSettings({f"h{n}": "w=1" for n in range(RULES_MAX + 1)}), "rules: expected 100 at most"),
        (PictureSettings(widths="all"), "widths: expected auto, or 1 to 64 widths from 1 to 16383"),
        (PictureSettings(widths=[]), "widths: expected auto"),
        (PictureSettings(widths=[0]), "widths: expected auto"),
        (PictureSettings(widths=[True]), "widths: expected auto"),
        (PictureSettings(widths=["1"]), "widths: expected auto"),
        (PictureSettings(widths=list(range(1, WIDTHS_MAX + 2))), "widths: expected auto"),
        (PictureSettings(sizes="x" * (SIZES_CHARS_MAX + 1)), "sizes: expected 1000 printable ASCII"),
        (PictureSettings(sizes="\u00fc"), "sizes: expected"),
        (PictureSettings(sizes="a\nb"), "sizes: expected"),
    ],
)
def test_malformed_settings_are_named(settings: PictureSettings, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        settings.read(LADDER)
    with pytest.raises(ValueError, match=r"^rules: preset: there is no preset"):
        PictureSettings("preset=any").read(LADDER, PRESETS)


@pytest.mark.parametrize(
    ("page", "sizes"),
    [
        (f'<img src="{A}?b&amp;c" alt=x>', "1em"),
        (f"<img src='{A}' width=500>", "1em"),
        (f"<img src={A} sizes=9em>", "1em"),
        (f"<img src={A} width=500>", ""),
    ],
)
def test_undo_removes_what_was_added(page: str, sizes: str) -> None:
    made = rewritten(page, pictures(rules="format=auto", widths="auto", sizes=sizes))
    assert "srcset" in made
    assert rewrite_html(made, SourceLinks()) == page


@pytest.mark.parametrize(
    "srcset",
    [
        ' srcset="/img?src={a} 1w, {b} 2w"',
        " srcset='/img?src={a} 1w'",
        ' alt="" srcset="/img?src={a} 1w"',
        ' srcset=""',
    ],
)
def test_undo_leaves_a_srcset_of_the_page(srcset: str) -> None:
    encoded = quote(A, safe="")
    page = f'<img src="/img?src={encoded}"{srcset.format(a=encoded, b=B)} sizes="1em">'
    assert rewrite_html(page, SourceLinks()) == page.replace(f"/img?src={encoded}", A)


PIECES = ["<img ", "<p>", f'src="{A}" ', f"src={B} ", "width=40 ", 'height="x" ', "sizes=1em ", "loading ", "/>", ">"]
pages = st.lists(st.sampled_from([*PIECES, "<svg>", "</svg>", "srcset='' ", "<!--", "-->", "\u00fc "])).map("".join)


@given(pages, st.booleans())
def test_nothing_else_changes(page: str, known: bool) -> None:  # noqa: FBT001 - Hypothesis
    plain = rewrite_html(page, ImgLinks(every))
    off = rewrite_html(page, ImgLinks(every, pictures=pictures()))
    assert off == plain
    full = pictures(rules="format=auto", widths="auto", lazy=True, known=known)
    made = rewrite_html(page, ImgLinks(every, pictures=full))
    assert rewrite_html(made, ImgLinks(every, pictures=full)) == made
    added = r' srcset="/img[^"]*"| sizes="\(max[^"]*"| width="\d+"| height="\d+"| loading="lazy"'
    without = re.sub(added, "", made).replace("&amp;w=2560&amp;format=auto", "").replace("&amp;w&#61;2560", "")
    assert without.replace("&amp;format&#61;auto", "") == plain
    # A linker that chooses nothing leaves every byte.
    assert rewrite_html(page, ImgLinks(lambda _: False, pictures=full)) == page


@given(st.text(), st.text())
def test_any_value_of_a_dimension_is_read_or_left(width: str, height: str) -> None:
    page = f'<img src="{A}" width="{quote(width)}" height="{quote(height)}">'
    made = rewritten(page, pictures(widths="auto", known=True, lazy=True))
    assert made.count("width=") == made.count("height=") == 1
