"""Pages in Chromium whose scripts insert links that expire: they ask us, and paint when the origin is gone."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import browsing
from tests.support.images import make_image
from tests.support.origins import FakeOrigin
from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from playwright.async_api import Browser, Page

    from tests.support.origins import Exchange
    from tests.support.server import Imgkeep

PAGE = """<!doctype html><meta charset="utf-8"><title>A page</title><base href="/"><link rel="icon" href="data:,">
<img src="{origin}/there.png"><img src="own.png"><div id="room"></div>
<script type="module" nonce="n">
import {{ observe }} from "{imgkeep}/imgkeep.js";
window.observe = observe;
window.link = "{origin}/made.png";
window.options = {{ publicUrl: "{imgkeep}" }};
window.stop = observe(document, options);
document.documentElement.id = "ready";
</script>"""

INSERT = """
(origin) => {
  const link = (name) => `${origin}/${name}.png?sig=a,b&x='(1)'`;
  const XLINK = "http://www.w3.org/1999/xlink", SVG = "http://www.w3.org/2000/svg";
  const make = (name, namespace) => {
    const element = document.createElementNS(namespace ?? "http://www.w3.org/1999/xhtml", name);
    room.append(element);
    return element;
  };
  const image = new Image();
  image.src = link("made");
  room.append(image);
  make("img").src = link("later");
  make("img").srcset = `${link("set")} 1x, ${link("unused")} 2x`;
  make("p").innerHTML = `<b><img alt="" src="${link("markup")}"></b>
    <picture><source srcset="${link("source")}"><img src="${link("fallback")}"></picture>
    <video poster="${link("poster")}"></video>
    <input type="image" src="${link("button")}">
    <svg><image width="64" height="48" href="${link("svg")}"/></svg>
    <i style="color: red; background: url(&quot;${link("style")}&quot;) !important">a</i>`;
  const old = make("image", make("svg", SVG).namespaceURI);
  const svg = make("svg", SVG);
  svg.append(old);
  requestAnimationFrame(() => old.setAttributeNS(XLINK, "href", link("xlink")));
  make("div").style.backgroundImage = `linear-gradient(red, red), url("${link("property")}")`;
  make("div").style.setProperty("--picture", `url( ${link("custom").replace(/['()]/g, "\\\\$&")} )`);
  room.lastChild.style.background = "var(--picture)";
  const input = make("input");
  input.src = link("turned");
  requestAnimationFrame(() => { input.type = "image"; });
}
"""
INSERTED = {
    *("there", "made", "later", "set", "markup", "source", "poster", "button", "svg", "style", "xlink", "property"),
    *("custom", "turned"),
}
IMAGES_PAINT = "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
INPUTS_PAINT = "() => [...document.querySelectorAll('input')].every((input) => input.offsetWidth === 64)"
LINKS = """
() => [...document.querySelectorAll("*")].flatMap((element) =>
  [...element.attributes].filter(({ name }) => !/^(alt|nonce)$/.test(name)).map(({ value }) => value))
"""


@pytest.fixture
async def site() -> AsyncIterator[FakeOrigin]:
    """Where the pages are."""
    fake = FakeOrigin()
    await fake.start()
    yield fake
    await fake.stop()


class Pages:
    """Opens pages of a site that use imgkeep, and notes what goes wrong in them."""

    def __init__(self, browser: Browser, site: FakeOrigin, origin: str, imgkeep: str) -> None:
        self._browser = browser
        self._site = site
        self._names = {"origin": origin, "imgkeep": imgkeep}
        self.errors: list[str] = []
        self.asked: dict[str, int] = {}

    @asynccontextmanager
    async def open(self, text: str = PAGE, headers: dict[str, str] | None = None) -> AsyncGenerator[Page]:
        fields = {"Content-Type": "text/html", **(headers or {})}
        self._site.gives("/page", text.format(**self._names).encode(), headers=fields)
        page = await self._browser.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console",
            lambda said: self.errors.append(f"{said.text} {said.location['url']}") if said.type == "error" else None,
        )
        page.on("response", lambda response: self.asked.update({response.url: response.status}))
        await page.goto(self._site.url("/page"))
        await page.wait_for_selector("#ready", state="attached")
        yield page
        await page.close()

    def strange(self) -> list[str]:
        """Return what went wrong, but for links that a browser asks for before they can be rewritten: those of the
        parser, and of images that are not in the page yet; and for the one that comes to browsers only.
        """
        return [error for error in self.errors if not re.search(r"(/|%2F)(there|made|picky)\.png", error)]


async def insists(page: Page) -> None:
    """Another observer sets a link back whenever it changes: all in one turn of the event loop."""
    link, tries = await page.evaluate("""async () => {
      const image = document.createElement("img");
      let tries = 0;
      new MutationObserver(() => {
        if (image.getAttribute("src") !== link) tries += 1, image.setAttribute("src", link);
      }).observe(image, { attributes: true });
      image.src = link;
      room.append(image);
      await new Promise((resolve) => setTimeout(resolve));
      return [image.getAttribute("src") === link, tries];
    }""")
    assert (link, tries) == (True, 50)


async def sets_again(page: Page) -> None:
    counts = await page.evaluate("""async () => {
      const image = document.createElement("img");
      const turn = () => new Promise((resolve) => setTimeout(resolve));
      room.append(image);
      for (let round = 0; round < 20; round += 1) {
        image.src = link;
        await turn();
        if (!image.getAttribute("src").startsWith(options.publicUrl)) return round;
      }
      return 20;
    }""")
    assert counts == 20


async def is_odd(page: Page) -> None:
    """Names of inputs hide what their form has, those of images what the document has."""
    odd = await page.evaluate("""async () => {
      const names = ["attributes", "style", "localName", "nodeType", "querySelectorAll", "hasAttribute", "children"];
      room.innerHTML = `<form style="background: url(${link})"></form><img id=seen src="${link}">`
        + `<constructor></constructor><image src="data:,"></image><img srcset=", ,"><img src><input type=image>`
        + `<p style="background: url(a b), url(&quot;"></p><svg><image/></svg><math style="x"></math>`;
      for (const name of names) room.firstChild.innerHTML += `<input name="${name}">`;
      for (const name of ["createTreeWalker", "URL", "characterSet", "documentElement"]) {
        room.insertAdjacentHTML("beforeend", `<img name="${name}">`);
      }
      room.append(document.createElementNS("urn:x", "img"), document.createComment("a"), "text");
      room.append(room.firstChild, room.firstChild);
      await new Promise((resolve) => setTimeout(resolve));
      observe(document, options)();
      return seen.getAttribute("src");
    }""")
    assert "/img?src=" in odd


async def forbids_styles(page: Page) -> None:
    image, width = await page.evaluate("""async () => {
      const box = document.createElement("div");
      box.style.width = "7px";
      box.style.backgroundImage = `url(${link})`;
      room.append(box);
      await new Promise((resolve) => setTimeout(resolve));
      const style = getComputedStyle(box);
      return [style.backgroundImage, style.width];
    }""")
    assert "/img?src=" in image
    assert width == "7px"


async def has_a_shadow(page: Page) -> None:
    before, after = await page.evaluate("""async () => {
      const host = document.createElement("p");
      room.append(host);
      const root = host.attachShadow({ mode: "closed" });
      const link = () => root.lastChild.getAttribute("src");
      root.innerHTML = `<img src="${window.link}">`;
      await new Promise((resolve) => setTimeout(resolve));
      const before = link();
      observe(root, options);
      root.innerHTML = `<img src="${window.link}">`;
      await new Promise((resolve) => setTimeout(resolve));
      return [before, link()];
    }""")
    assert "/img?src=" not in before
    assert "/img?src=" in after


async def stops(page: Page) -> None:
    link = await page.evaluate("""async () => {
      stop();
      room.innerHTML = `<img src="data:,">`;
      room.firstChild.srcset = `${options.publicUrl}/img?src=${encodeURIComponent(link)}, x 2x`;
      room.setAttribute("style", "background: url(https://h.example/a.png)");
      room.removeAttribute("style");
      room.firstChild.setAttribute("src", link);
      await new Promise((resolve) => setTimeout(resolve));
      return room.firstChild.getAttribute("src");
    }""")
    assert "/img?src=" not in link


async def misspells(page: Page) -> None:
    told = await page.evaluate("""() => {
      try {
        observe(document, { publicURL: "https://k.example" });
      } catch (error) {
        return String(error);
      }
    }""")
    assert told == "TypeError: publicURL: no option; did you mean publicUrl?"


async def fails(page: Page) -> None:
    """Ours fails, and what worked without us goes on working."""
    links = await page.evaluate("""async () => {
      const lost = `http://localhost:${location.port}/picky.png`;
      room.innerHTML = `<img src="${lost}"><picture><source srcset="${lost} 1x"><img src="${lost}"></picture>`;
      const images = [...room.querySelectorAll("img")];
      const end = Date.now() + 10_000, isWhole = (image) => image.naturalWidth && image.src === lost;
      while (!images.every(isWhole) && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10));
      images[0].src = link;
      await new Promise((resolve) => setTimeout(resolve));
      images[1].src = lost;
      await new Promise((resolve) => setTimeout(resolve));
      return [lost, ...images.map((image) => image.getAttribute("src")), room.querySelector("source").srcset];
    }""")
    lost, changed, again, source = links
    assert "/img?src=" in changed
    assert (again, source) == (lost, f"{lost} 1x")


async def fails_silently(page: Page) -> None:
    """A poster, a button, an image in a drawing and a background fire no event that tells which link failed."""
    links = await page.evaluate("""async () => {
      const lost = (name) => `http://localhost:${location.port}/picky.png?${name}`;
      const svg = `<svg width="9" height="9"><image width="9" height="9" href="${lost("drawing")}"/></svg>`;
      room.innerHTML = `<video poster="${lost("poster")}"></video><input type="image" src="${lost("button")}">${svg}`;
      const style = `background-image: url('${lost("style")}'), url('${link}')`;
      room.insertAdjacentHTML("beforeend", `<p style="${style}">.</p><p hidden style="${style}">.</p>`);
      const read = () => [
        room.querySelector("video").poster, room.querySelector("input").src,
        room.querySelector("image").getAttribute("href"),
        ...[...room.querySelectorAll("p")].map((each) => each.style.backgroundImage),
      ];
      const isBack = (value) => !value.includes("%2Fpicky.png");
      const end = Date.now() + 10_000;
      await new Promise((resolve) => setTimeout(resolve));
      const first = read();
      while (!read().slice(0, 4).every(isBack) && Date.now() < end) await new Promise((go) => setTimeout(go, 10));
      await new Promise((resolve) => setTimeout(resolve, 50));
      return [first, read()];
    }""")
    before, after = links
    assert all("/img?src=" in value for value in before)
    assert [re.sub(r"^.*/picky", "", value) for value in after[:3]] == [".png?poster", ".png?button", ".png?drawing"]
    assert re.match(r'url\("http://localhost:\d+/picky\.png\?style"\), url\("[^"]*/img\?src=', after[3])
    assert after[4].count("/img?src=") == 2, "what is hidden is not asked for"


async def is_refused(page: Page) -> None:
    links = await page.evaluate("""async () => {
      const links = ["https://refused.example/a.png", "https://a.allowed.example:81/a.png", "http://intranet/a.png"];
      room.innerHTML = links.map((each) => `<img src="${each}">`).join("");
      await new Promise((resolve) => setTimeout(resolve));
      return [links, [...room.children].map((image) => image.getAttribute("src"))];
    }""")
    assert links[0] == links[1]


FACTS: dict[str, Callable[[Page], Awaitable[None]]] = {
    "a link that is set again is rewritten again": sets_again,
    "who insists on a link is left it, and the page goes on": insists,
    "odd markup disturbs nothing": is_odd,
    "a shadow is a root of its own": has_a_shadow,
    "an option that there is not is an error": misspells,
    "a picture whose new link fails gets its first one back": fails,
    "so it is in places that tell of no failure": fails_silently,
    "after its end nothing is rewritten": stops,
}


async def test_scripts_insert_what_they_want_and_it_lasts(
    imgkeep: Imgkeep,
    start: Callable[..., Awaitable[Imgkeep]],
    origin: FakeOrigin,
    site: FakeOrigin,
    subtests: pytest.Subtests,
) -> None:
    names = sorted({*INSERTED, "fallback", "unused"})
    there = origin.url("")
    for seed, name in enumerate(names):
        origin.gives(f"/{name}.png", make_image(seed=seed))
    site.gives("/own.png", make_image())
    site.on("/picky.png", to_browsers)
    ours = str(imgkeep.client.make_url("")).rstrip("/")
    async with browsing() as browser:
        pages = Pages(browser, site, there, ours)
        with subtests.test("each place of an image leads to us"):
            async with pages.open() as page:
                await page.evaluate(INSERT, there)
                await everything_came(page, pages, ours)
                values: list[str] = await page.evaluate(LINKS)
                assert not [value for value in values if value.startswith(there)]
                assert "own.png" in values
        with subtests.test("what is kept paints when the origin is gone"):
            await (await imgkeep.img(origin.url("/made.png"))).read()
            await origin.stop()
            pages.asked.clear()
            async with pages.open() as page:
                await page.evaluate(INSERT, there)
                await everything_came(page, pages, ours)
        async with pages.open() as page:
            for fact, check in FACTS.items():
                with subtests.test(fact):
                    await page.evaluate("() => room.replaceChildren()")
                    await check(page)
        with subtests.test("where inline styles are forbidden the others stay"):
            async with pages.open(headers={"Content-Security-Policy": "style-src 'none'"}) as page:
                await forbids_styles(page)
        assert pages.strange() == []
        with subtests.test("what the server would refuse stays as it is"):
            settings = {"sources": {"allow": ("*.allowed.example",)}, "fetch": {"allow_networks": ()}}
            refusing = await start(folder=imgkeep.folder.parent / "other", **settings)
            other = str(refusing.client.make_url("")).rstrip("/")
            async with Pages(browser, site, there, other).open() as page:
                await is_refused(page)
        with subtests.test("the example does what it says"):
            text = (ROOT / "examples" / "javascript" / "page.html").read_text("utf-8")
            text = text.replace("http://127.0.0.1:8080", ours).replace("{", "{{").replace("}", "}}")
            async with pages.open(text.replace("<html", '<html id="ready"')) as page:
                await page.fill("input", there + "/made.png?sig=a,b&x='(1)'")
                await page.click("button")
                await page.wait_for_function(f"() => document.images[0]?.currentSrc.startsWith('{ours}/img?')")
                await page.wait_for_function(IMAGES_PAINT)


async def to_browsers(exchange: Exchange) -> None:
    """Give an image to browsers, and nothing to imgkeep."""
    if "sec-fetch-dest" in {name.lower() for name in exchange.headers}:
        await exchange.answer(make_image(), headers={"Content-Type": "image/png"})
    else:
        await exchange.answer(b"no", status="403 Forbidden")


async def everything_came(page: Page, pages: Pages, ours: str) -> None:
    """Wait until all that was inserted paints, and has been asked of us."""
    await page.wait_for_function(IMAGES_PAINT)
    await page.wait_for_function(INPUTS_PAINT)

    def came() -> set[str]:
        good = [url for url, status in pages.asked.items() if url.startswith(f"{ours}/img?") and status == 200]
        return {url.partition(".png")[0].rpartition("%2F")[2] for url in good}

    while not came() >= INSERTED:
        await page.wait_for_event("response", timeout=5000)
    assert not [url for url in pages.asked if "%5C" in url]
