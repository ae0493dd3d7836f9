"""Links of ours lead back to the source URLs that they hold."""

from __future__ import annotations

import pytest

from imgkeep.core.errors import InvalidSource
from imgkeep.core.rewrite import ImgLinks, SourceLinks, every, rewrite_html, rewrite_markdown

BASE = "https://i.example/kept"
KEY = "k" * 20
H = "https://h.example/a.png?x=1&y=2"

HTML = {
    "attribute": '<img src="https://h.example/a.png?x=1&amp;y=2">',
    "srcset": '<img srcset="https://h.example/a,b.png 1x, https://h.example/b.png?a=1&amp;b=2 2x">',
    "style": '<p style="background:url(https://h.example/a.png?x=1&amp;y=2)">',
    "JSON-LD": '<script type="application/ld+json">{"image":"https://h.example/a.png?x=1&y=2"}</script>',
    "fragment": '<svg><image href="https://h.example/a.svg#part" /></svg>',
}
WAYS = pytest.mark.parametrize(("base", "key"), [("", None), (BASE, None), (BASE, KEY)])


@WAYS
@pytest.mark.parametrize("page", HTML.values(), ids=HTML)
def test_page_is_unchanged_but_for_links(page: str, base: str, key: str | None) -> None:
    rewritten = rewrite_html(page, ImgLinks(every, base, key))
    assert rewritten != page
    assert rewrite_html(rewritten, SourceLinks(base)) == page


@WAYS
def test_markdown_is_unchanged_but_for_links(base: str, key: str | None) -> None:
    text = "# A\n![b](https://h.example/a.png?x=1&y=2)\n"
    rewritten = rewrite_markdown(text, ImgLinks(every, base, key))
    assert rewritten != text
    assert rewrite_markdown(rewritten, SourceLinks(base)) == text


@pytest.mark.parametrize(
    "link",
    [
        H,
        "/images/0a.png",
        "/img?source=https%3A%2F%2Fh.example%2Fa.png",
        "/img?src=nonsense",
        "/imgs?src=https%3A%2F%2Fh.example%2Fa.png",
        "https://other.example/img?src=https%3A%2F%2Fh.example%2Fa.png",
        f"{BASE}/images/0a.png",
        "https://user:word@i.example/kept/img?src=https%3A%2F%2Fh.example%2Fa.png",
        "relative.png",
    ],
)
def test_other_links_stay(link: str) -> None:
    for undo in (SourceLinks(), SourceLinks(BASE)):
        assert undo(link) is None
        page = f'<img src="{link}">'
        assert rewrite_html(page, undo) == page


def test_link_that_was_not_encoded_is_understood() -> None:
    assert SourceLinks(BASE)(f"{BASE}/img?src={H}") == H


def test_public_url_has_to_be_one() -> None:
    with pytest.raises(InvalidSource):
        SourceLinks("i.example")
