"""Which links of Markdown change, and that nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkeep.core.rewrite import ImgLinks, every, markdown, rewrite_markdown
from imgkeep.core.rewrite.budget import Budget
from imgkeep.core.rewrite.commonmark import PARSER
from tests.support.tables import table
from tests.support.tag_soup import move

HERE, THERE = "https://h.example/a.png", "https://k.example/a.png"

# `§` is a link that is rewritten, `¤` one that some rule leaves alone.
CASES = {
    "inline": "a ![b](§) c ![](§ 'title') ![d]( § \"title\" ) ![e](§\n'title')",
    "in brackets": "![a](<§> 'b') ![a](<§>)",
    "escapes": "![a](https\\://h.example/a.png) \\![a](¤) !\\[a](¤)",
    "links": "[a](¤) <¤> [![a](§)](¤) ¤",
    "description": "![a ![b](§) `c](¤)` ![d *e* [f](¤) ![g](¤)](§)",
    "description that is cut otherwise": f"abc ¤ ![![]({'x' * len(HERE)})](§)",
    "code": "`![a](¤)` ``` ![a](¤) ```\n\n    ![a](¤)\n\n```\n![a](¤)\n```\n~~~ html\n<img src=¤>\n~~~\n![a](§)",
    "headings": "# a ![b](§) ##\n\n- ## ![b](§)\n\nSetext ![b](§)\n![b](§)\n===",
    "quotations": "> a ![b](§)\n> > ![b](§)\nlazy ![b](§)\n>\t![b](§)",
    "lists": "- a\n\n  ![b](§)\n  ![b](§)\n    1. ![b](§)\n\n\t![b](§)\n-\t![c](§)\n",
    "line ends": "a\r\n![b](§)\r![b](§)\n\r\n> ![b](§)\r\n",
    "reference": "![a][b] ![b] ![b][] ![c\\]]\n\n[b]: § 'title'\n[B]: ¤\n[c\\]]:\n  <§>\n[d]: ¤\n[d]",
    "reference in a quotation": "> [a]:\n> §\n> 'title\n> title'\n\n![A]",
    "reference with breaks": "[a\nb]: §\n\n![a b]",
    "reference that is used by a link, too": "[a] ![a]\n\n[a]: §",
    "no reference": "![a] ![a][b]\n\n[a]:\n\n[b]: ¤ 'x' y",
    "html": "a <img src=§> <b><IMG\nsrc='§'></b> <!-- <img src=¤> --> `<img src=¤>` <a href=¤>",
    "html block": "<div>\n<img src=§>\n![a](¤)\n</div>\n\n![a](§)",
    "html block in a list": "- a\n\n  <div>\n  <img src=§\n       srcset='§ 1x,\n   § 2x'>\n  </div>",
    "html block in a quotation": "> <style>\n> p { background: url(§) }\n> </style>",
    "html across a quotation": "> <img srcset='§,\n> §'>",
    "html in the description": "![a <img src=¤>](§)",
    "svg": "<svg><image href=§ /></svg> <svg>\n\n<image href=§ />",
    "table": "| a | b |\n|---|---|\n| ![a](§) | <img src=§> |",
    "not an image": "![a] (¤) ![a](¤ b) !(¤) ![a](<¤) ![a]( ![b]() ![c](<>)",
    "null": "\0 ![a](§)\n\0",
    "tabs": "-\t\t![a](¤)\n\n>\t- ![b](§)",
    "bom": "\ufeff![a](§)",
    "bom and reference": "\ufeff[a]: §\n\n![a]",
    "nothing": "a\nb",
    "raw text in the description": "![a <textarea>](§) ![b](§)",
    "raw text in a link": "[a <textarea> ![b](¤)](¤) ![c](¤) </textarea> ![d](§)",
    "raw text in code": "`<textarea>` \\<textarea> ![a](§)\n\n    <textarea>\n\n![a](§)",
    "raw text that ends in an attribute": "a <textarea> ![a](¤) <a title='</textarea>'> ![a](§)",
    "raw text that is not closed": "a <textarea> b\n\n![a](¤)\n\n- # <img src=¤>\n\n`</textarea>`\n\n<img src=¤>",
    "raw text across blocks": "> a <title>\n\n![a](¤)\n\n<div>\n<img src=¤>\n</title>\n<img src=§>\n</div>\n\n![a](§)",
    "raw text from a block on": "- <textarea>\n\nx ![a](¤) </textarea> ![a](§)",
    "plain text": "a ![a](§) <plaintext> ![a](¤) </plaintext>\n\n![a](¤)",
    "reference in raw text": "x <title>![a]</title> ![b]\n\n[a]: ¤\n[b]: §",
    "reference in raw text and elsewhere": "x ![a] <title>![a]</title> ![a]\n\n[a]: §",
    "comment that is not closed": "> <!-- a\n\n![a](¤) <!-- --> ![a](§)",
    "tag that is not closed": "<div\n\n![a](§)\n\n<div a='\n\n![a](¤)",
    "style": "a <style>p_q{background:url(§)} * [a] {b: url('§')}\n  </style> ![a](§) <style>p{b:url(§)}</style>",
    "style of another type": "a <style type=x>p{background:url(¤)}</style>",
    "style that comes out as other": "a <style>url(¤) *b*</style> <style>url(¤) &</style> <style>url(¤) ![a]()</style>",
    "style that is not closed": "a <style>p{background:url(¤)}",
    "style in svg": "a <svg><style>p{background:url(§)}</style></svg>",
    "json-ld has its quotes escaped": "a <script type='application/ld+json'>{\"image\": \"¤\"}</script> ![a](§)",
    "noscript": "a <noscript>![a](§) *b* <img src=§></noscript> ![a](§)",
    "front": "---\na: b\n---\n![a](§)",
}  # fmt: skip


@table("text", CASES.values(), ids=CASES)
def test_links_to_images_change_and_nothing_else(text: str) -> None:
    wanted = text.replace("§", THERE).replace("https\\://h", "https://k").replace("¤", HERE)
    text = text.replace("§", HERE).replace("¤", HERE)
    assert rewrite_markdown(text, move) == wanted
    assert rewrite_markdown(text.encode(), move) == wanted.encode()
    assert rewrite_markdown(text.encode("utf-16-le"), move, charset="utf-16") == wanted.encode("utf-16-le")


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2003", "\u2028", "\u0085", "\v", "\f", "\x1c"])
def test_line_of_other_white_space_than_spaces_and_tabs_is_text(blank: str) -> None:
    for text in (
        "¤\n![a](§)",
        "¤\n ¤ \n![a](§)\n¤\n![a](§)\n¤",
        "¤\n<img src=§>",
        "a <img style='a:url(§)\n ¤\n;b:url(§)'>",
        "> ¤\n> ![a](§)",
        "> ¤\n![a](§)",
        "- ¤\n  ![a](§)",
        "- > ¤\n  > \t![a](§)\n  >  ¤",
        "¤\n![a](§)\n===",
        "# ¤ ![a](§)¤ ##",
        "| ¤ |\n|---|\n| ![a](§)¤ |",
        "<div>\n¤\n<img src=§>¤\n</div>",
        "[a]: §\n¤\n![a]",
    ):
        before = text.replace("¤", blank).replace("§", HERE)
        assert rewrite_markdown(before, move) == before.replace(HERE, THERE)


@pytest.mark.parametrize(
    "name", ["iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp", "TextArea"]
)
def test_raw_text_stays(name: str) -> None:
    inside = f"![a]({HERE}) <img src={HERE}> ![a][r] <!-- --> *b*"
    before = f"a <{name} b='c'>{inside}</{name}> <img src=§> ![a](§)\n\n[r]: {HERE}"
    assert rewrite_markdown(before.replace("§", HERE), move) == before.replace("§", THERE)


def test_first_base_counts() -> None:
    seen: list[str] = []
    text = "![](a)\n\nb <base href=/x/> ![](b) ![c]\n\n<base href=/y/>\n\n![](d)\n\n[c]: c"
    assert rewrite_markdown(text, seen.append, url="https://h.example/") == text
    assert [url.removeprefix("https://h.example") for url in seen] == ["/a", "/x/b", "/x/c", "/x/d"]


@pytest.mark.parametrize(
    "piece",
    ["a <textarea>", "a <style>x</style>", "<textarea>\n\n", "a <script><!--", "<div a=\n\n![a](b)\n\n", "![r]<b>"],
)
def test_much_of_anything_goes_through(piece: str) -> None:
    text = f"[r]: {HERE}{'x' * 100_000}\n\n" + piece * (100_000 // len(piece))
    assert rewrite_markdown(text, move).replace(THERE, HERE) == text


@table(
    ("destination", "link"),
    [
        ("https://h.example/x\\y.png", "https://h.example/x%5Cy.png"),
        ("<https://h.example/x\\y z.png >", "https://h.example/x%5Cy%20z.png%20"),
        ("<https://h.example/x\ty>", "https://h.example/x%09y"),
        ("https://h.example/[1]|é?[2]", "https://h.example/%5B1%5D%7C%C3%A9?%5B2%5D"),
        ("HTTPS://bücher.example/a", "HTTPS://bücher.example/a"),
        ("https://[2001:db8::1]:8/a", "https://[2001:db8::1]:8/a"),
        ("//h.example/x\\y", "https://h.example/x%5Cy"),
        ("x\\y", "https://h.example/x%5Cy"),
        ("https://h.example\\y", "https://h.example%5Cy"),
        (
            "https://h.example/%5c%C3%A9%?a=%20&b='~!$*+,;:@-._&amp;()",
            "https://h.example/%5c%C3%A9%?a=%20&b='~!$*+,;:@-._&()",
        ),
    ],
)
def test_link_means_the_same_as_in_the_rendered_page(destination: str, link: str) -> None:
    for text in (f"![a]({destination})", f"![a]\n\n[a]: {destination}"):
        seen: list[str] = []
        rewrite_markdown(text, seen.append, url="https://h.example/")
        assert seen == [link]


def test_link_with_bytes_that_are_no_text_stays() -> None:
    text = b"![a](https://h.example/\\x\xff)"
    assert rewrite_markdown(text, move) == text


def test_new_links_are_written_so_that_they_are_read_again() -> None:
    text = f"![a]({HERE}) ![a](<{HERE}>)"
    assert (
        rewrite_markdown(text, lambda _: "/(a) &copy;b&c")
        == "![a](/%28a%29%20&amp;copy;b&c) ![a](</(a)%20&amp;copy;b&c>)"
    )


def test_uncertain_text_stays() -> None:
    assert rewrite_markdown(b"![a](https://h.example/) \xff", move) == b"![a](https://k.example/) \xff"
    for text, charset in ((b"![a](https://h.example/) \0", "utf-16"), (b"![a](https://h.example/)", "iso-2022-jp")):
        assert rewrite_markdown(text, move, charset=charset) == text
    text = b"![a](https://h.example/) \xf9\xf9\xf9\xfe\xa2\xcc"
    assert rewrite_markdown(text, move, charset="big5") == text


def test_too_long_or_too_deep_text_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"![a]({HERE})"
    monkeypatch.setattr(markdown, "MARKDOWN_CHARS_MAX", len(text))
    assert rewrite_markdown(text, move) != text
    assert rewrite_markdown(f" {text}", move) == f" {text}"

    def too_deep(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(PARSER, "parse", too_deep)
    assert rewrite_markdown(text, move) == text


def test_value_whose_lines_do_not_lead_back_stays() -> None:
    text = "<style>\np{b:url('https://h.example/a\\\nb')}\n</style>\n"
    assert rewrite_markdown(text, move) == text
    text = "<img srcset='\0 1x, https://h.example/a.png 2x'>"
    assert rewrite_markdown(text, move) == text
    assert markdown._Markdown("a", markdown._Page(move), Budget(None))._find_column(0, "b") is None


PIECES = st.sampled_from([
    *("![a]", "[a]", "(", ")", f"({HERE})", f"(<{HERE}> 't')", f"[a]: {HERE}\n", "\n", "\n\n"),
    *("> ", "- ", "  ", "\t", "# ", "\\", "*", "|", "\r\n", "\0", "é", "&amp;"),
    *("`", "```\n", "<img src=", f"'{HERE}'>", "<div>", "</div>", "<!--", "-->"),
])  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.lists(PIECES, max_size=20).map("".join))
def test_any_text_is_read_and_nothing_but_links_changes(text: str) -> None:
    after = rewrite_markdown(text, move)
    assert after.replace("//k.", "//h.") == text
    once = rewrite_markdown(text, ImgLinks(every))
    assert rewrite_markdown(once, ImgLinks(every)) == once
