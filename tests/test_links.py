"""Links between the pages of the documentation: each leads to a file that exists, and to a heading in it."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from tests.support.program import ROOT
from tests.support.tables import table

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
)
MARKDOWN = MarkdownIt("commonmark").enable("table")


def links_of(text: str) -> list[str]:
    """Return the targets of links and images of a page, also in HTML."""
    links = []
    for block in MARKDOWN.parse(text):
        for token in (block, *(block.children or ())):
            if token.type in {"link_open", "image"}:
                links.append(str(token.attrs.get("href") or token.attrs.get("src") or ""))
            elif token.type in {"html_block", "html_inline"}:
                links += re.findall(r'(?:href|src|srcset)="([^"]*)"', token.content)
    return links


def slug_of(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def anchors_of(path: Path) -> set[str]:
    tokens = MARKDOWN.parse(path.read_text("utf-8"))
    anchors: set[str] = set()
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            text = "".join(child.content for child in inline.children or () if child.type in {"text", "code_inline"})
            slug, number = slug_of(text), 0
            while (anchor := f"{slug}-{number}" if number else slug) in anchors:
                number += 1
            anchors.add(anchor)
    return anchors


def test_all_pages_are_read() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/api.md", "examples/README.md"} <= set(PAGES)
    assert links_of('[a](b.md#c) ![d](e.png)\n\n| f |\n|---|\n| [g](h) |\n\n<img src="i">') == [
        "b.md#c",
        "e.png",
        "h",
        "i",
    ]
    assert slug_of("The page under `/`") == "the-page-under-"


@table("page", PAGES)
def test_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in links_of((ROOT / page).read_text("utf-8")):
        if re.match(r"(?:https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


@table("page", [page for page in PAGES if page.startswith("docs/")])
def test_readme_leads_to_every_page(page: str) -> None:
    assert page in links_of((ROOT / "README.md").read_text("utf-8"))
