"""Which links of a page change, and that nothing else does."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgkeep.core.rewrite import HtmlStream, ImgLinks, every, rewrite_html
from imgkeep.core.rewrite.attribute_values import Values
from imgkeep.core.rewrite.charset import Text
from imgkeep.core.rewrite.html import Html
from imgkeep.core.rewrite.links import Page
from tests.support.rewrite_cases import HTML
from tests.support.tables import table
from tests.support.tag_soup import LINKS, MARKUP, make_page, move

LONG = 64
"""Of a token, for tests of what is too long."""

HELD = "<p>\N{WAVING HAND SIGN}</p><style>a{color:red}</style><img src=https://h.example/first.png>" + "x" * 1100
PAGES = st.lists(
    st.one_of(
        st.sampled_from(MARKUP),
        st.sampled_from([link.format(*["https://h.example/a.png"] * 3) for link in LINKS]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    ),
    max_size=12,
).map("".join)


@table(("page", "wanted"), HTML.values(), ids=HTML)
def test_links_to_images_change_and_nothing_else(page: str, wanted: str) -> None:
    assert rewrite_html(page, move) == wanted
    assert rewrite_html(page.encode(), move) == wanted.encode()
    assert rewrite_html(page.encode("utf-16"), move) == wanted.encode("utf-16")


def cut(page: bytes, random: Random, *, chars_max: int, step_max: int = 9) -> bytes:
    stream = HtmlStream(move, charset="utf-8", token_chars_max=chars_max)
    at, parts = 0, []
    while at < len(page):
        end = at + random.randint(0, step_max)
        parts.append(stream.feed(page[at:end]))
        at = end
    return b"".join((*parts, stream.close()))


@table("name", HTML)
def test_page_may_come_in_any_pieces(name: str) -> None:
    page, wanted = (text.encode() for text in HTML[name])
    assert cut(page, Random(1), chars_max=1 << 20, step_max=1) == wanted
    for seed in range(5):
        assert cut(page, Random(seed), chars_max=1 << 20) == wanted


@settings(deadline=None)
@given(PAGES, st.integers(), st.sampled_from([LONG, 1 << 20]))
@example("<style>" + "x" * 70 + "</style><script type='application/ld+json'>" + "[<!--" * 30, 1, LONG)
@example(
    "<script type=application/ld+json>" + "<!--<script>" * 9 + "</script></script><img src=https://h.example/>", 1, LONG
)
def test_result_does_not_depend_on_pieces(page: str, seed: int, chars_max: int) -> None:
    whole = Html(Values(Page(move), Text()), token_chars_max=chars_max)
    wanted = (whole.feed(page) + whole.close()).encode()
    assert cut(page.encode(), Random(seed), chars_max=chars_max) == wanted


@settings(deadline=None)
@given(PAGES)
def test_rewriting_twice_changes_nothing(page: str) -> None:
    for linker in (ImgLinks(every), ImgLinks(every, public_url="https://img.example.com/", key="k" * 20)):
        once = rewrite_html(page, linker)
        assert rewrite_html(once, linker) == once


@settings(deadline=None)
@given(PAGES)
def test_outside_of_links_every_character_stays(page: str) -> None:
    rewritten = rewrite_html(page, move)
    assert (
        re.sub(r"//[hk]\.example", "", rewritten.replace("&amp;", "&"))
        == re.sub(r"//[hk]\.example", "", page.replace("&amp;", "&"))
        or "notit" in page
    )


@settings(deadline=None)
@given(st.one_of(st.binary(), PAGES.map(str.encode)), st.sampled_from([None, "utf-8", "utf-16", "iso-2022-jp", "x"]))
def test_without_links_any_bytes_come_out_as_they_went_in(page: bytes, charset: str | None) -> None:
    assert rewrite_html(page, lambda _: None, charset=charset) == page


@pytest.mark.parametrize("charset", [None, "utf-8", "iso-2022-jp", "utf-16be", "shift_jis"])
def test_random_bytes_go_through_in_any_pieces(charset: str | None) -> None:
    random = Random(5)
    for _ in range(50):
        page = bytes(
            random.choice((0, 0xD8, 0xDC, 0xFE, 0xFF, 60, 62, 33, 45, 97, 34)) for _ in range(random.randint(0, 99))
        )
        stream = HtmlStream(move, charset=charset)
        parts = [stream.feed(page[at : at + 3]) for at in range(0, len(page), 3)]
        assert b"".join((*parts, stream.close())) == page


@table("charset", [None, "utf-8", "iso-2022-jp", "utf-16be"])
@table("step", [1, 3, 700])
def test_incomplete_tokens_are_held(charset: str | None, step: int) -> None:
    page = HELD.encode("utf-16be" if charset == "utf-16be" else "utf-8")
    stream, given = HtmlStream(lambda _: None, charset=charset), b""
    for at in range(0, len(page), step):
        given += stream.feed(page[at : at + step])
        assert given + stream.held() == page[: at + step]
    assert given + stream.close() == page
    assert stream.held() == b""


@pytest.mark.parametrize("charset", ["utf-8", "utf-16le", None])
@pytest.mark.parametrize("step", [1, 5, 5000])
def test_after_an_exception_the_rest_is_at_hand(charset: str | None, step: int) -> None:
    def fails(url: str) -> None:
        if "second" in url:
            raise LookupError

    page = (HELD + "<img src=https://h.example/second.png>").encode(charset or "utf-8")
    stream, given, at = HtmlStream(fails, charset=charset), b"", 0
    try:
        for at in range(step, len(page) + step, step):
            given += stream.feed(page[at - step : at])
        given += stream.close()
        pytest.fail("nothing was raised")
    except LookupError:
        assert given + stream.held() == page[:at]


# --- what is too long

FILL = "x" * 2 * LONG
LINK = "<img src=https://h.example/a.png>"


@table(
    "page",
    [
        f"<img alt='{FILL}' src=https://h.example/b.png>",
        f"<p title='{FILL}>'{FILL} a=\"{FILL}>\" b={FILL}/ =>",
        f"<a{FILL} x{FILL} = {' ' * 99} y{FILL}/z {' ' * 99}w>",
        f"</p {FILL}>",
        f"<svg a={FILL}><image src=https://h.example/b.png></svg {FILL}>",
        f"<script a={FILL}><img src=https://h.example/b.png></script>",
        f"<title a={FILL}><img src=https://h.example/b.png></title>",
        f"<style>p{{background:url(https://h.example/b.png)}}{FILL}</style>",
        f"<svg><style>p{{background:url(https://h.example/b.png)}}{FILL}</style></svg>",
        f"<noscript><img src=https://h.example/b.png>{FILL}</noscript>",
        f'<script type="application/ld+json">{{"image":"https://h.example/b.png", "a": "{FILL}"}}</script>',
        f'<script type="application/ld+json">"<!--<script>{FILL}</script>{FILL}</script>',
        f"<!-- {FILL} --><!{FILL}><svg><![CDATA[{FILL}]]></svg>",
    ],
)
def test_too_long_text_stays_and_the_next_link_does_not(page: str) -> None:
    html = Html(Values(Page(move), Text()), token_chars_max=LONG)
    assert html.feed(page + LINK) + html.close() == page + LINK.replace("h.ex", "k.ex")
    for seed in range(9):
        assert (
            cut((page + LINK).encode(), Random(seed), chars_max=LONG) == (page + LINK.replace("h.ex", "k.ex")).encode()
        )


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "<",
            "<!--",
            "<!",
            "</",
            "<?",
            "<a b='",
            '<a b="x',
            "<svg>",
            "<svg><g>",
            "<svg><g></p>",
            "<svg></x>",
            "<p>",
            "<a ",
        ),
        *(
            "<script>",
            "<script><!--<script>",
            "<style>",
            "<style>url(",
            "</styl",
            "<noscript>",
            "<![CDATA[",
            " a",
            "=",
            "&",
        ),
        *("<img src='", "<img srcset='a (", "<img a=>", "<title>", "<template>", "<base href=x>"),
        f"<a b='{'x' * 900}'>",
    ],
)
def test_held_bytes_are_bounded_and_read_a_bounded_number_of_times(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    html = Html(Values(Page(move), Text()), token_chars_max=1000)
    read = 0
    go = html._go

    def counted(text: str) -> int:
        nonlocal read
        read += len(text)
        assert len(text) < 5000
        return go(text)

    monkeypatch.setattr(html, "_go", counted)
    page = (piece * 20_000)[:100_000]
    assert "".join([*(html.feed(page[at : at + 7]) for at in range(0, len(page), 7)), html.close()]) == page
    assert read < 20 * len(page)


def test_thousands_of_anything_go_through() -> None:
    for piece in MARKUP:
        page = "<svg>" + piece * 3_000
        assert rewrite_html(page, move) == page
        assert rewrite_html(page[5:], move) == page[5:]


def test_pages_of_soup_have_links_that_move() -> None:
    random = Random(3)
    pages = [make_page(random, number) for number in range(200)]
    assert sum(rewrite_html(page, move) != page for page in pages) > 100


# --- base


def test_first_base_counts() -> None:
    page = (
        "<img src=a><template><base href=https://n.example/></template><svg><base href=/n/></svg><base target=x>"
        "<noscript><base href=/n/></noscript><base href=/x/><base href=/y/><img src=a>"
    )
    page = f"<svg><desc><template><base href=/n/></template></desc></svg><template><svg></template>{page}"
    seen: list[str] = []
    rewrite_html(page, seen.append, url="https://p.example/d/e?q#f")
    assert seen == ["https://p.example/d/a", "https://p.example/x/a"]
