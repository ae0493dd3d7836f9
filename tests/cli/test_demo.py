"""`demo`: links that die, beside the same links through imgkeep, in a browser and by hand."""

from __future__ import annotations

import re
import signal
from html import unescape
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import pytest
from PIL import Image
from playwright.async_api import expect

from imgkeep.cli.demo_images import HEIGHT, SCENES, WIDTH, draw
from imgkeep.cli.demo_origin import HOST, NAMES, DemoOrigin, connect_only_to
from imgkeep.origin.ssrf_guard import open_socket
from tests.support.browser import browsing
from tests.support.demo import demonstrating
from tests.support.program import run

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Page
    from pytest_aiohttp.plugin import AiohttpClient

    from tests.support.origins import FakeOrigin

WIDTHS = "selector => [...document.querySelectorAll(`${selector} img`)].map(image => image.naturalWidth)"


async def statuses(page: Page) -> list[str]:
    """Return the status that the page has measured for each column.

    A locator waits for them: the page's policy allows the evaluation of a string only in the first step of a wait.
    """
    await expect(page.locator(".status:not(:empty)")).to_have_count(2)
    return await page.locator(".status").all_text_contents()


async def widths(page: Page, column: str) -> list[int]:
    await page.wait_for_load_state("load")  # images are loaded, or known to be none
    shown: list[int] = await page.evaluate(WIDTHS, column)
    return shown


async def test_left_column_dies_and_right_column_stays(tmp_path: Path) -> None:
    async with demonstrating(tmp_path, "--life", "10s") as demo, browsing() as browser:
        page = await browser.new_page()
        refused: list[str] = []
        page.on("pageerror", lambda error: refused.append(str(error)))
        await page.goto(demo.url)
        assert await widths(page, ".direct") == [WIDTH] * len(NAMES)
        assert await widths(page, ".imgkeep") == [WIDTH] * len(NAMES)
        assert await statuses(page) == ["200 OK", "200 OK"]
        assert await page.locator(".clock").is_visible()
        await page.wait_for_selector(".ended")
        assert await widths(page, ".direct") == [0] * len(NAMES)
        assert await widths(page, ".imgkeep") == [WIDTH] * len(NAMES)
        assert await statuses(page) == ["403 Forbidden", "200 OK"]
        await page.get_by_role("link", name="New round").click()
        await page.wait_for_selector(".alive")
        assert await widths(page, ".direct") == [WIDTH] * len(NAMES)
        phone = await browser.new_page(viewport={"width": 360, "height": 700})
        await phone.goto(demo.url)
        assert await phone.evaluate("document.documentElement.scrollWidth") == 360
        assert refused == []
        # The page shows what it measures: without imgkeep, no answer.
        await page.route(f"{demo.imgkeep}/**", lambda route: route.abort())
        await page.goto(demo.url)
        assert await statuses(page) == ["200 OK", "no answer"]


async def test_origin_refuses_forged_and_expired_links(tmp_path: Path) -> None:
    async with demonstrating(tmp_path, "--life", "600s") as demo, aiohttp.ClientSession() as session:
        async with session.get(demo.url) as response:
            page = await response.text()
            policy = response.headers["Content-Security-Policy"]
        assert "'unsafe-inline'" not in policy.partition("script-src")[2]
        link = unescape(re.findall(r'<img src="([^"]+)"', page)[0])
        forged = (
            link.replace("/dawn", "/noon"),
            re.sub(r"expires=\d+", "expires=9999999999999", link),
            link[:-1] + ("0" if link[-1] != "0" else "1"),
            link.partition("?")[0],
            link.replace("expires=", "expires=%00"),
        )
        for url, status in ((link, 200), *((url, 403) for url in forged)):
            async with session.get(url) as response:
                assert response.status == status, url
                assert response.headers["Cache-Control"] == "no-store"
        async with session.get(f"{demo.url}9999999999999") as response:
            assert response.status == 404


async def test_link_expires_with_its_round(aiohttp_client: AiohttpClient) -> None:
    now_ms = 500
    origin = DemoOrigin(1000, lambda: now_ms)
    client = await aiohttp_client(origin.app())
    link = origin.link("", "1000", "dawn")
    response = await client.get(link)
    assert (response.status, response.content_type) == (200, "image/png")
    now_ms = 1000
    assert (await client.get(link)).status == 403


async def test_demo_fetches_from_its_own_origin_only(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", draw("dawn"))
    async with demonstrating(tmp_path) as demo, aiohttp.ClientSession() as session:
        for source in (url, url.replace("127.0.0.1", "localhost"), "http://127.0.0.2/a.png", demo.imgkeep):
            async with session.get(f"{demo.imgkeep}/img?src={quote(source, safe='')}") as response:
                assert response.status >= 400, source
    assert origin.seen == []
    with pytest.raises(PermissionError):
        connect_only_to(1, open_socket)((2, 1, 6, "", ("127.0.0.1", 2)))
    connect_only_to(1, open_socket)((2, 1, 6, "", (HOST, 1))).close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_the_demo_and_removes_its_files(tmp_path: Path, number: signal.Signals) -> None:
    async with demonstrating(tmp_path) as demo:
        assert list(tmp_path.glob("imgkeep-demo-*"))  # noqa: ASYNC240 - quick
        demo.process.send_signal(number)
        out, err = await demo.process.communicate()
        assert (demo.process.returncode, out) == (0, b"")
        assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - quick


async def test_port_in_use_is_named(tmp_path: Path, origin: FakeOrigin) -> None:
    port = origin.url("/").split(":")[2].rstrip("/")
    status, out, err = await run(tmp_path / "data", "demo", "--port", port)
    assert (status, out) == (1, "")
    assert err.startswith(f"imgkeep: --port: cannot listen at 127.0.0.1:{port}: Address already in use; choose")
    assert "Traceback" not in err


@pytest.mark.parametrize("name", SCENES)
def test_images_are_whole_and_differ(name: str) -> None:
    with Image.open(BytesIO(draw(name))) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))
        colors = image.getcolors(WIDTH * HEIGHT)
        assert colors is not None
        assert len(colors) > 100
    assert len({draw(each) for each in (name, *NAMES)}) == len(NAMES)


def test_life_has_bounds() -> None:
    from imgkeep.cli.parser import make_parser  # noqa: PLC0415

    for text in ("0s", "601s", "1w", "", "-1s", "1.5s", "9" * 400):
        with pytest.raises(SystemExit):
            make_parser().parse_args(["demo", "--life", text])
    assert make_parser().parse_args(["demo", "--life", "2m"]).life == 120
