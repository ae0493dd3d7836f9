"""What people see in Chromium: the page under `/`, failures in a tab, images in the place of images."""

from __future__ import annotations

from base64 import b64encode
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from imgkeep.web.auth import AUTH
from imgkeep.web.login_tickets import make_log_in_link
from tests.support.browser import browsing
from tests.support.image_requests import store_image
from tests.support.images import make_image
from tests.support.origins import FakeOrigin
from tests.support.raw_http import ask, port_of, target_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from playwright.async_api import Browser, Page

    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

EXTENT = "64 \N{MULTIPLICATION SIGN} 48"
EVIL = "<img src=x onerror=\"document.title='evil'\">"
PROVIDER = {"name": EVIL, "hosts": ["localhost"], "signed_by": {"evil_sig": "hex64"}, "like": "Bunny token"}

CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  return [...document.body.querySelectorAll("*")]
    .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((element) => element.checkVisibility() && element.tagName !== "SCRIPT")
    .map((element) => {
      const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 60)];
    })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.fixture
async def site() -> AsyncIterator[FakeOrigin]:
    """Another site."""
    fake = FakeOrigin()
    await fake.start()
    yield fake
    await fake.stop()


class Errors(list[str]):
    """What Chromium complains about in a page, but for answers that failed."""

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("console", lambda said: self._note(said.type, said.text))

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and "Failed to load resource" not in text:
            self.append(text)


@asynccontextmanager
async def tab(browser: Browser, errors: Errors, **how: Any) -> AsyncGenerator[Page]:
    context = await browser.new_context(**how)
    page = await context.new_page()
    errors.watch(page)
    yield page
    await context.close()


def url_of(imgkeep: Imgkeep, path: str = "/") -> str:
    return f"http://127.0.0.1:{port_of(imgkeep)}{path}"


def log_in_link(imgkeep: Imgkeep) -> str:
    assert imgkeep.client.app is not None
    token = imgkeep.client.app[AUTH].local_token
    assert token is not None
    return make_log_in_link(token, "127.0.0.1", port_of(imgkeep), datetime.now(UTC))  # noqa: TID251 - the server's clock


async def facts_of(page: Page) -> dict[str, str]:
    await page.locator("#told:not(.busy):not(:empty)").wait_for()
    terms = await page.locator("#facts dt").all_inner_texts()
    return dict(zip(terms, await page.locator("#facts dd").all_inner_texts(), strict=True))


async def paste(page: Page, text: str) -> dict[str, str]:
    """Paste a link as a keyboard does it, and return what the page tells."""
    await page.get_by_label("Paste the link of an image").fill(text)
    await page.keyboard.press("Enter")
    return await facts_of(page)


async def painted(page: Page, selector: str) -> bool:
    script = "(all) => all.length > 0 && all.every((image) => image.complete && image.naturalWidth > 0)"
    return bool(await page.eval_on_selector_all(selector, script))


async def test_pasted_link_shows_its_image_and_permanent_url(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(sources={"allow": ["*"], "providers": [PROVIDER]})
    link = origin.gives("/a%20b%3Ci%3E.png", make_image()) + "?evil_sig=" + "a" * 64
    link = link.replace("127.0.0.1", "localhost")
    errors = Errors()
    async with browsing() as browser:
        async with tab(browser, errors) as page:  # of a person who has not logged in
            await page.goto(url_of(imgkeep))
            facts = await paste(page, f"  {link} ")
            assert await painted(page, "#figure img")
            permanent = await page.locator("#permanent").get_attribute("href")
            assert permanent == (await ask(imgkeep, target_of(link))).headers["content-location"].replace(
                "/images", url_of(imgkeep, "/images")
            )
            assert EXTENT in facts["Picture"]
            assert facts.keys() == {"Picture", "Permanent URL"}
            assert await page.get_by_text("Log in to see them").is_visible()
            assert f"{url_of(imgkeep)}img?src=" in await page.locator("#html").inner_text()
            facts = await paste(page, str(permanent))
            assert await page.locator("#permanent").get_attribute("href") == permanent
        async with tab(browser, errors) as page:
            await page.goto(log_in_link(imgkeep))
            assert page.url == url_of(imgkeep)
            await page.wait_for_selector("#pictures img")
            assert await page.locator("#pictures .from").inner_text() == EVIL
            assert not await page.get_by_text("Log in to see them").is_visible()
            facts = await paste(page, link)
            assert (facts["Service"], facts["Key"]) == (EVIL, facts["Key"])
            assert len(facts["Key"]) == 64
            assert await painted(page, "#figure img")
            assert await painted(page, "#pictures img")
            assert await page.title() == "imgkeep"
    assert errors == []


async def test_page_finds_its_session_behind_a_link(start: Start, origin: FakeOrigin, site: FakeOrigin) -> None:
    imgkeep = await start()
    await store_image(imgkeep, origin.gives("/a.png", make_image()))
    links = f'<a href="{log_in_link(imgkeep)}">log in</a> <a href="{url_of(imgkeep)}">page</a>'
    site.gives("/page", links.encode(), headers={"Content-Type": "text/html"})
    async with browsing() as browser, tab(browser, Errors()) as page:
        answers: list[tuple[int, str]] = []
        page.on("response", lambda response: answers.append((response.status, response.url)))
        await page.goto(url_of(imgkeep))
        await page.goto(site.url("/page"))
        async with page.expect_response(lambda response: response.request.resource_type == "fetch") as looked:
            await page.get_by_text("page").click()
        await (await looked.value).finished()
        assert await page.get_by_text("Log in to see them").is_visible()
        for name in ("log in", "page"):  # browsers leave the cookie out of both
            await page.goto(site.url("/page"))
            await page.get_by_text(name).click()
            await page.wait_for_selector("#pictures img")
            assert not await page.get_by_text("Log in to see them").is_visible()
        assert [each for each in answers if each[0] >= 400 and "favicon" not in each[1]] == []


async def test_failing_link_is_explained(start: Start, origin: FakeOrigin, tmp_path: Path) -> None:
    (tmp_path / "sorry.png").write_bytes(make_image("PNG"))
    errors = Errors()
    async with browsing() as browser:
        for delivery in ({}, {"placeholder": str(tmp_path / "sorry.png")}):
            imgkeep = await start(folder=tmp_path / str(len(delivery)), delivery=delivery)
            missing = origin.gives("/missing.png", b"", status="404 Not Found")
            async with tab(browser, errors) as page:
                await page.goto(url_of(imgkeep))
                for link in (
                    missing,
                    EVIL,
                    "javascript:alert(1)",
                    "x" * 9000,
                    "\ud800".encode("utf-8", "replace").decode(),
                ):
                    facts = await paste(page, link)
                    assert facts.keys() == {"What happened", "Status"}
                    assert facts["Status"].startswith(("404 source_not_found", "400 invalid_source"))
                    assert await page.locator("#figure img").count() == 0
                assert await page.title() == "imgkeep"
    assert errors == []


async def test_image_behind_a_redirect_is_shown(start: Start, origin: FakeOrigin) -> None:
    """The other server knows no CORS, so a script cannot read what it says; the image is shown all the same."""
    imgkeep = await start(sources={"allow": ["*"], "permanent": "redirect"})
    errors = Errors()
    async with browsing() as browser, tab(browser, errors) as page:
        await page.goto(url_of(imgkeep))
        facts = await paste(page, origin.gives("/a.png", make_image()))
        assert await painted(page, "#figure img")
        assert facts["Picture"] == EXTENT
        assert facts["Permanent URL"].startswith("not known here")
    assert not [error for error in errors if "CORS" not in error]


async def test_form_needs_no_script(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    link = origin.gives("/a.png", make_image()) + "?sig=a,b&x='(1)'"
    errors = Errors()
    async with browsing() as browser, tab(browser, errors, java_script_enabled=False) as page:
        await page.goto(url_of(imgkeep))
        await page.get_by_label("Paste the link of an image").fill(link)
        async with page.expect_navigation() as navigation:
            await page.get_by_role("button", name="Show").click()
        response = await navigation.value
        assert response is not None
        assert (response.status, response.headers["content-type"]) == (200, "image/png")
    assert (errors, origin.asked("/a.png")) == ([], 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_reads_well_in_each_scheme(imgkeep: Imgkeep, origin: FakeOrigin, scheme: Any) -> None:
    """Dark and light, as wide as a phone, and with enough contrast (WCAG 2, 1.4.3)."""
    link = origin.gives("/a.png", make_image())
    missing = origin.gives("/missing.png", b"", status="404 Not Found")
    errors, papers = Errors(), set()
    async with browsing() as browser:
        for width in (320, 390, 1200):
            how = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "reduced_motion": "reduce"}
            async with tab(browser, errors, **how) as page:
                await page.goto(log_in_link(imgkeep))
                await paste(page, link)
                await page.wait_for_selector("#pictures img")
                for place in (url_of(imgkeep), url_of(imgkeep, target_of(missing))):
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width
                    assert await page.evaluate(CONTRASTS) == []
                    papers.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
                    await page.goto(place)
                assert await page.evaluate("document.getAnimations().length") == 0
    assert (len(papers), errors) == (1, [])
    [paper] = papers
    assert (sum(map(int, paper[4:-1].split(","))) > 380) == (scheme == "light")


async def test_failure_in_a_tab_is_a_page(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    missing = origin.gives("/missing.png", b"", status="404 Not Found") + "?sig=topsecret"
    errors = Errors()
    async with browsing() as browser, tab(browser, errors) as page:
        for path, status, code in (
            (target_of(missing), 404, "source_not_found"),
            ("/api/images", 401, "unauthorized"),
            ("/nowhere", 404, "not_found"),
        ):
            response = await page.goto(url_of(imgkeep, path))
            assert response is not None
            assert response.status == status
            text = await page.locator("main").inner_text()
            assert f"{status} {code}" in text
            assert "topsecret" not in text
            assert await page.locator("h1").is_visible()
    assert errors == []


async def test_img_of_another_site_shows_the_placeholder(
    start: Start, origin: FakeOrigin, site: FakeOrigin, tmp_path: Path
) -> None:
    (tmp_path / "sorry.png").write_bytes(make_image("PNG", width=33, height=22))
    imgkeep = await start(delivery={"placeholder": str(tmp_path / "sorry.png")})
    gone = url_of(imgkeep, target_of(origin.gives("/gone.png", b"", status="410 Gone")))
    site.gives("/page", f'<img src="{gone}"><div>'.encode(), headers={"Content-Type": "text/html"})
    errors = Errors()
    async with browsing() as browser, tab(browser, errors) as page:
        statuses = []
        page.on("response", lambda response: statuses.append(response.status) if response.url == gone else None)
        await page.goto(site.url("/page"))
        assert await page.evaluate("document.images[0].naturalWidth") == 33
        assert statuses == [404]
        code = await page.evaluate("(url) => fetch(url).then((answer) => answer.json()).then(({ code }) => code)", gone)
        assert code == "source_not_found"
    assert errors == []


async def test_svg_shows_its_embedded_images(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    inner = b64encode(make_image("PNG", width=20, height=20)).decode()
    vector = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"><style>text{fill:red}</style>'
        f'<image width="20" height="20" href="data:image/png;base64,{inner}"/>'
        f'<image width="20" height="20" href="{origin.gives("/outer.png", make_image())}"/>'
        "<script>document.documentElement.id = 'evil'</script></svg>"
    )
    target = target_of(origin.gives("/a.svg", vector.encode()))
    async with browsing() as browser, tab(browser, Errors()) as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        for _ in range(3):  # a miss, a hit, and a hit that was prepared
            await page.goto(url_of(imgkeep, target))
            shot = Image.open(BytesIO(await page.screenshot(clip={"x": 2, "y": 2, "width": 16, "height": 16})))
            assert len(shot.convert("RGB").getcolors() or ()) > 50, "noise, as it is in the image"
            assert await page.evaluate("document.documentElement.id") == ""
        assert not [text for text in said if "data:image" in text]
        assert [text for text in said if "outer.png" in text], "and nothing else"
    assert origin.asked("/outer.png") == 0


async def test_scripts_of_another_site_read_images_with_any_field(
    imgkeep: Imgkeep, origin: FakeOrigin, site: FakeOrigin
) -> None:
    url = url_of(imgkeep, target_of(origin.gives("/a.png", make_image())))
    site.gives("/page", b"<p>", headers={"Content-Type": "text/html"})
    errors = Errors()
    async with browsing() as browser, tab(browser, errors) as page:
        await page.goto(site.url("/page"))
        script = """async (url) => {
          await (await fetch(url)).blob();
          const headers = { "X-Anything": "x", "Cache-Control": "no-cache", Range: "bytes=0-9, 20-29" };
          const answer = await fetch(url, { headers });
          return [answer.status, answer.headers.get("Content-Location"), answer.headers.get("Cache-Status")];
        }"""
        status, place, how = await page.evaluate(script, url)
        assert (status, how) == (200, "imgkeep; hit")
        assert place.endswith(".png")
    assert errors == []


async def test_no_site_frames_the_page(imgkeep: Imgkeep, site: FakeOrigin) -> None:
    site.gives("/page", f'<iframe src="{url_of(imgkeep)}"></iframe>'.encode(), headers={"Content-Type": "text/html"})
    async with browsing() as browser, tab(browser, Errors()) as page:
        await page.goto(site.url("/page"))
        [frame] = page.frames[1:]
        assert "Pictures stay" not in await frame.content()
