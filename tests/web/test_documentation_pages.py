"""The documentation under `/docs`: whole, linked, and as harmless as the page under `/`."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgkeep.web.documentation import FILES
from tests.support.accept_fields import TAB
from tests.support.raw_http import ask, port_of, split, talk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

DOCS = Path(__file__).parents[2] / "docs"


async def test_every_file_is_a_page_with_links_that_work(imgkeep: Imgkeep) -> None:
    index = (await ask(imgkeep, "/docs")).body.decode()
    names = set(re.findall(r'href="docs/([a-z0-9-]+)"', index))
    assert names == {path.stem for path in DOCS.glob("*.md")} == set(FILES)
    pages = {name: (await ask(imgkeep, f"/docs/{name}")).body.decode() for name in names}
    anchors = {name: set(re.findall(r' id="([^"]*)"', page)) for name, page in pages.items()}
    for name, page in pages.items():
        assert "<h1" in page
        assert "<img" not in page
        for link in map(unescape, re.findall(r'href="(?!https?://|data:)([^"]*)"', page)):
            target, _, anchor = link.partition("#")
            assert target in {"", "../", "../docs", *names}, (name, link)
            assert not anchor or anchor in anchors[target or name], (name, link)


async def test_home_page_links_to_the_documentation(start: Start) -> None:
    assert 'href="docs"' in (await ask(await start(), "/", f"Accept: {TAB}")).body.decode()
    hidden = await start(server={"welcome": False})
    assert [(await ask(hidden, path)).status for path in ("/docs", "/docs/api")] == [404, 404]


@pytest.mark.parametrize("path", ["/docs", "/docs/api"])
async def test_page_runs_and_loads_nothing(imgkeep: Imgkeep, path: str) -> None:
    answer = await ask(imgkeep, path)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script" not in policy
    assert b"<script" not in answer.body
    head = f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert split(await talk(port_of(imgkeep), head.encode())).status == 403


@pytest.mark.parametrize("name", ["nothing", "..%2FREADME", "%2e%2e", "api.md", "images", "API", "%00", "a" * 3000])
async def test_no_other_file_is_shown(imgkeep: Imgkeep, name: str) -> None:
    assert (await ask(imgkeep, f"/docs/{name}")).status in {400, 404}
