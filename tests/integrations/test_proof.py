"""
The proof: pages of Flask, Django and FastAPI, with temporary links of all kinds, in a real browser. The links expire,
the server behind them is gone, and every image still paints.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from yarl import URL

from tests.support.browser import browsing
from tests.support.framework_examples import COMMANDS, running, visiting
from tests.support.images import make_image
from tests.support.program import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.framework_examples import Visit
    from tests.support.origins import Exchange, FakeOrigin

# Each kind of place has an image of its own, named in braces. A `!` stands before those that nothing in a page with
# scripts shows: icons of a headless browser, what readers of metadata want, and `noscript`.
PAGE = """<!doctype html>
<html lang=en>
<meta charset=utf-8><title>Every kind</title>
<link rel=icon href="{!icon}"><link rel=apple-touch-icon href='{!touch-icon}'>
<link rel=preload as=image href="{img}"><link rel=preload as=image imagesrcset="{preload-srcset} 1x">
<meta property="og:image" content="{!og}"><meta name="twitter:image" content="{!twitter}">
<script type="application/ld+json">{"@type": "Article", "image": ["{!json-ld}"]}</script>
<style>
  .sheet {width: 64px; height: 48px; background: url("{style-url}")}
  .set::before {content: ""; display: block; width: 64px; height: 48px; background-image: image-set("{style-set}" 1x)}
</style>
<body background="{body}">
<img src="{img}"><img src={img-unquoted}><IMG SRC='{img-upper}' alt="a > b">
<img srcset="{srcset} 1x, {!srcset-2x} 2x"><img srcset="{preload-srcset} 1x">
<img data-src="{data-src}"><img data-srcset="{data-srcset} 1x">
<picture><source srcset="{source}"><img src="{!picture-img}"></picture>
<video poster="{poster}"></video>
<form><input type=image src="{input}"></form>
<svg width=64 height=48><image href="{svg-href}" width=64 height=48 /></svg>
<svg width=64 height=48><image xlink:href="{svg-xlink}" width=64 height=48 /></svg>
<table background="{table}"><tr><td background="{td}">cell</table>
<p style="background: url({style-attribute})">text</p>
<p style="background-image: image-set(url('{style-attribute-set}') 1x, url('{!style-attribute-2x}') 2x)">text</p>
<p class=sheet></p><p class=set></p>
<noscript><img src="{!noscript}"></noscript>
<template><img class=cloned src="{template}"></template>
<textarea>not an image: <img src="https://example.com/"></textarea>
<script>
  for (const image of document.querySelectorAll("[data-src]")) image.src = image.dataset.src;
  for (const image of document.querySelectorAll("[data-srcset]")) image.srcset = image.dataset.srcset;
  document.body.append(document.querySelector("template").content.cloneNode(true));
</script>
"""
KINDS = sorted(set(re.findall(r"\{(!?[a-z0-9-]+)\}", PAGE)))
SHOWN = {kind for kind in KINDS if not kind.startswith("!")}

SIZES = """async () => {
  const sizes = {};
  for (const image of document.images) {
    await image.decode();
    sizes[image.currentSrc] = image.naturalWidth;
  }
  for (const other of document.querySelectorAll("input[type=image], video")) {
    sizes[other.src || other.poster] = other.offsetWidth;
  }
  return sizes;
}"""

ARE_BROKEN = "() => [...document.images].every(image => !image.naturalWidth)"

ALL = r"""async () => {
  const text = document.documentElement.outerHTML + document.querySelector("template").innerHTML;
  const links = new Set(text.replaceAll("&amp;", "&").match(/https?:\/\/[^\s"'<>)\\]+\/img\?src=[^\s"'<>)\\]+/g));
  const sizes = {};
  for (const link of links) {
    const image = new Image();
    image.src = link;
    await image.decode();
    sizes[link] = image.naturalWidth;
  }
  return sizes;
}"""


class Service:
    """Hands out images by links that expire, as object stores do."""

    def __init__(self, origin: FakeOrigin) -> None:
        self.has_expired = False
        self._origin = origin
        self._now = datetime.now(UTC)  # noqa: TID251 - imgkeep looks at the same clock

    def link(self, path: str) -> str:
        async def script(exchange: Exchange) -> None:
            if self.has_expired or "X-Amz-Signature" not in exchange.target:
                await exchange.answer(b"Request has expired", status="403 Forbidden")
            else:
                await exchange.answer(make_image(), headers={"Content-Type": "image/png"})

        signed = (
            f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F{self._now:%Y%m%d}%2Fus-east-1%2Fs3%2Faws4_request"
        )
        signed += f"&X-Amz-Date={self._now:%Y%m%dT%H%M%SZ}&X-Amz-Expires=60&X-Amz-SignedHeaders=host"
        return f"{self._origin.on(path, script)}?{signed}&X-Amz-Signature={'5' * 64}"

    def page(self, name: str) -> str:
        """Return the page, with links for an application."""

        def linked(match: re.Match[str]) -> str:
            link = self.link(f"/{name}/{match[1].removeprefix('!')}.png")
            # In style sheets and scripts an `&` stands as it is.
            raw = re.search(r"</?(style|script)[^<]*$", PAGE[: match.start()])
            return link if raw is not None and not raw[0].startswith("</") else escape(link)

        return re.sub(r"\{(!?[a-z0-9-]+)\}", linked, PAGE)


async def expect_all(visit: Visit, imgkeep: str, name: str) -> None:
    """Have every image painted, and nothing complain."""
    sizes: dict[str, Any] = await visit.ask(SIZES)
    assert len(sizes) == 11
    assert set(sizes.values()) == {64}, sizes
    everywhere: dict[str, Any] = await visit.ask(ALL)
    assert {kind_of(url, name) for url in everywhere} == {kind.removeprefix("!") for kind in KINDS}
    assert set(everywhere.values()) == {64}
    images = {url: status for url, status in visit.statuses.items() if "/img?" in url}
    assert all(url.startswith(imgkeep) for url in images)
    assert {kind_of(url, name) for url in images} >= SHOWN
    assert set(images.values()) == {200}
    assert visit.complaints == []


def kind_of(url: str, name: str) -> str:
    found = re.search(rf"%2F{name}%2F([a-z0-9-]+)\.png%3F", url)
    assert found is not None, url
    return found[1]


async def test_every_image_paints_when_its_link_has_long_expired(tmp_path: Path, origin: FakeOrigin) -> None:
    service = Service(origin)
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(browsing())
        program = await stack.enter_async_context(serving(tmp_path / "data"))
        imgkeep = f"http://{program.address}"
        for name in COMMANDS:
            (tmp_path / f"{name}.html").write_text(service.page(name))
        started = [stack.enter_async_context(running(name, tmp_path / f"{name}.html", program)) for name in COMMANDS]
        sites = dict(zip(COMMANDS, await asyncio.gather(*started), strict=True))

        async with visiting(browser) as visit:
            for name, url in sites.items():
                await visit.open(url)
                await expect_all(visit, imgkeep, name)
        async with visiting(browser, java_script_enabled=False) as visit:
            await visit.open(sites["flask"])
            assert "noscript" in {kind_of(url, "flask") for url in visit.statuses if "/img?" in url}

        service.has_expired = True
        async with program.session.get(URL(service.link("/flask/img.png"), encoded=True)) as response:
            assert response.status == 403
        await origin.stop()

        async with visiting(browser) as visit:
            for name, url in sites.items():
                await visit.open(url)
                await expect_all(visit, imgkeep, name)
            await visit.open((tmp_path / "flask.html").as_uri())
            assert await visit.ask(ARE_BROKEN)
