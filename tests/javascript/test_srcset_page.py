"""A page with `srcset` and `sizes` in Chromium: the size fits the screen, the format is AVIF or WebP, and it paints."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from playwright.async_api import ViewportSize

from tests.support.browser import browsing
from tests.support.origins import FakeOrigin
from tests.support.program import cannot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from playwright.async_api import Browser, Page, Response

    from tests.support.server import Imgkeep

PAGE = """<!doctype html><meta charset="utf-8"><title>A page</title><link rel="icon" href="data:,">
<img id="written" sizes="SIZES" SRCSET src="IMGKEEP/img?src=ORIGIN/photo.png&w=80&format=auto">
<script type="module">
import { imgUrl, srcset } from "IMGKEEP/imgkeep.js";
const [link, options] = ["ORIGIN/photo.png", { publicUrl: "IMGKEEP" }];
const image = document.createElement("img");
image.id = "inserted";
image.sizes = "SIZES";
image.srcset = srcset(link, [80, 160, 320], options);
image.src = imgUrl(link, { w: 80, ...options });
document.body.append(image);
</script>"""
SIZES = "(min-width: 600px) 160px, 80px"
PAINTED = "() => document.images.length === 2 && [...document.images].every((image) => image.naturalWidth > 0)"
SEEN = "() => [...document.images].map((image) => [image.naturalWidth, image.width])"


def make_photo() -> bytes:
    """Return a PNG of 400x300 pixels that a lossy format makes smaller."""
    photo = Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    photo.paste(Image.effect_noise((200, 150), 40).convert("RGB"), (100, 75))
    file = BytesIO()
    photo.save(file, "PNG")
    return file.getvalue()


@asynccontextmanager
async def showing(
    browser: Browser, url: str, *, width: int, scale: float, accept: str | None = None
) -> AsyncGenerator[tuple[Page, list[Response]]]:
    """Show the page in a window; yield it with the responses to its images when they are painted."""
    fields = {} if accept is None else {"Accept": accept}
    viewport = ViewportSize(width=width, height=400)
    window = await browser.new_context(viewport=viewport, device_scale_factor=scale, extra_http_headers=fields)
    page = await window.new_page()
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response) if "/img?" in response.url else None)
    await page.goto(url)
    await page.wait_for_function(PAINTED)
    yield page, responses
    await window.close()


@pytest.fixture
async def site() -> AsyncIterator[FakeOrigin]:
    """The server of the page: its own images would stay as they are."""
    site = FakeOrigin()
    await site.start()
    yield site
    await site.stop()


async def test_browser_picks_size_and_format(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin, site: FakeOrigin
) -> None:
    if find_spec("pyvips") is None:
        cannot("pyvips is not installed (pip install 'imgkeep[derive]')")
    address = str((await start()).client.make_url("")).rstrip("/")
    link = origin.gives("/photo.png", make_photo())
    candidates = ", ".join(f"{address}/img?src={link}&w={w}&format=auto {w}w" for w in (80, 160, 320))
    text = PAGE.replace("SRCSET", f'srcset="{candidates}"').replace("SIZES", SIZES)
    text = text.replace("IMGKEEP", address).replace("ORIGIN", link.removesuffix("/photo.png"))
    url = site.gives("/page", text.encode(), headers={"Content-Type": "text/html"})
    async with browsing() as browser:
        for width, scale, chosen, shown in ((500, 1, 80, 80), (500, 2, 160, 80), (800, 2, 320, 160)):
            async with showing(browser, url, width=width, scale=scale) as (page, responses):
                assert await page.evaluate(SEEN) == [[shown, shown]] * 2
                for response in responses:
                    assert (response.headers["content-type"], response.headers["vary"]) == ("image/avif", "Accept")
                    assert Image.open(BytesIO(await response.body())).size == (chosen, chosen * 3 // 4)
        async with showing(browser, url, width=500, scale=2, accept="image/webp,*/*") as (page, responses):
            assert await page.evaluate(SEEN) == [[80, 80]] * 2
            assert {response.headers["content-type"] for response in responses} == {"image/webp"}
    assert origin.asked("/photo.png") == 1
