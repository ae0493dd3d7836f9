"""
`GET /docs` and below: the documentation of this version, as pages.

Rules:
- A page loads nothing and runs nothing: a description replaces each picture.
- The text of a link replaces the link, if it leads to a file that is not among these pages.
- Where only this machine can reach the server, pages answer under its own names alone, as `/` does.
"""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web
from markdown_it import MarkdownIt

from imgkeep.web.auth import AUTH
from imgkeep.web.html_pages import CONTENT_TYPE, Markup, Page, read_static

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

INDEX: Final = "/docs"
PATH: Final = "/docs/{name}"

_PACKAGE: Final = Path(__file__).parent.parent
FOLDERS: Final = (_PACKAGE / "docs", _PACKAGE.parent.parent / "docs")
"""Folders of the files: in an installation, and in a checkout."""

HEADERS: Final = {
    "Content-Type": CONTENT_TYPE,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}

_PAGE: Final = Page(
    "$title: imgkeep", read_static("documentation.html"), sources=("img-src data:", "form-action 'none'")
)
_POLICY: Final = _PAGE.policy()
_FILE: Final = re.compile(r"(?:\./)?([a-z0-9-]+)\.md(#.*)?")
_ABSOLUTE_LINK: Final = re.compile(r"https?://|#")


def _find_files() -> dict[str, Path]:
    """Return the files by their names. Blocks; called once, at import."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.md"))} if folder else {}


FILES: Final = _find_files()
"""The files by the names of their pages; empty: this installation has none."""


async def index(request: web.Request) -> web.Response:
    """List the pages."""
    _enter(request)
    body = await asyncio.to_thread(_make_index)
    return web.Response(body=body, headers={**HEADERS, "Content-Security-Policy": _POLICY})


async def page(request: web.Request) -> web.Response:
    """Show one page."""
    _enter(request)
    body = await asyncio.to_thread(_make_page, request.match_info["name"])
    return web.Response(body=body, headers={**HEADERS, "Content-Security-Policy": _POLICY})


def _enter(request: web.Request) -> None:
    request.app[AUTH].require_own_host(request.headers.get("Host"))
    if not FILES:
        raise web.HTTPNotFound(text="this installation has no documentation")


@lru_cache(1)
def _make_index() -> bytes:
    items = (f'<li><a href="docs/{name}">{_read(name)[0]}</a></li>' for name in FILES)
    content = Markup(f"<h1>Documentation</h1><ul>{''.join(items)}</ul>")
    return _PAGE.fill(title="Documentation", home=".", up="docs", content=content)


@lru_cache(64)
def _make_page(name: str) -> bytes:
    title, content = _read(name)
    return _PAGE.fill(title=Markup(title), home="../", up="../docs", content=content)


@lru_cache(64)
def _read(name: str) -> tuple[Markup, Markup]:
    """
    Return the title and the content of a page.

    Raises:
        HTTPNotFound: There is no such page.
    """
    path = FILES.get(name)
    if path is None:
        raise web.HTTPNotFound(text="there is no such page of the documentation; /docs lists them")
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(path.read_text("utf-8"))
    titles = list(_mark_headings(tokens))
    for token in tokens:
        if token.children:
            token.children = list(_keep_links(token.children))
    html = parser.renderer.render(tokens, parser.options, {})
    html = html.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    return Markup(parser.renderInline(titles[0]).replace("<code>", "").replace("</code>", "")), Markup(html)


def _mark_headings(tokens: list[Token]) -> Iterator[str]:
    """Give each heading the identifier that links in the files use (as GitHub does), and return the headings' texts."""
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            text = inline.content.lower().replace(" ", "-")
            token.attrSet("id", re.sub(r"[^\w-]", "", text))
            yield inline.content


def _keep_links(children: list[Token]) -> Iterator[Token]:
    """Return a line with links to other pages as their URLs, without other links, without pictures."""
    is_left_out = False
    for token in children:
        if token.type == "link_open":
            target = str(token.attrGet("href"))
            match = _FILE.fullmatch(target)
            if match is not None and match[1] in FILES:
                token.attrSet("href", f"{match[1]}{match[2] or ''}")
            elif not _ABSOLUTE_LINK.match(target):
                is_left_out = True
                continue
        elif token.type == "link_close" and is_left_out:
            is_left_out = False
            continue
        elif token.type == "image":
            yield from token.children or ()
            continue
        yield token
