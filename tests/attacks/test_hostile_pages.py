"""
Pages and texts that are made to be slow: visitors of a site wrote them, or a client sends them to be rewritten.

The tests count the lines of Python that run. The patterns of `re` in between are linear by construction
(`proxy/imgkeep/core/rewrite/patterns.py`). Each input is the worst that is known for its parser; a parser without one
fails.
"""

from __future__ import annotations

import asyncio
import pkgutil
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import imgkeep.core.rewrite
from imgkeep.core.errors import InvalidRequest
from imgkeep.core.rewrite import ImgLinks, every, rewrite_html, rewrite_markdown
from imgkeep.core.rewrite.markdown import steps_max
from imgkeep.core.rewrite.pictures import PictureSettings
from imgkeep.integrations.asgi import Imgkeep
from imgkeep.integrations.links import FRAGMENT_STEPS_MAX, LinkRewriter
from imgkeep.integrations.response_body import HEAVY_CHARS, STEP_BYTES
from imgkeep.page_rewriting import rewrite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, MutableMapping
    from types import FrameType

    from tests.support.server import Imgkeep as Server

    Maker = Callable[[int], str]

LINES_PER_BYTE_MAX = 100
"""Of the worst input of HTML, an end tag that ends none of the elements that are open."""
LINES_PER_TURN_MAX = (STEP_BYTES + HEAVY_CHARS) * LINES_PER_BYTE_MAX
LINES_PER_STEP_MAX = 64
"""Of Markdown, over a whole text."""

LINKER = ImgLinks(every, "https://k.example")


def flood(unit: str, before: str = "", after: str = "") -> Maker:
    return lambda size: before + unit * (size // len(unit)) + after


def numbered(unit: str, before: str = "", after: str = "") -> Maker:
    """Return what makes a flood whose parts all differ."""
    return lambda size: before + "".join(unit.format(n) for n in range(size // (len(unit) + 2))) + after


def nested(opening: str, closing: str, before: str = "", after: str = "") -> Maker:
    def make(size: int) -> str:
        depth = size // (len(opening) + len(closing))
        return before + opening * depth + closing * depth + after

    return make


LD = "<script type=application/ld+json>"

PAGES: dict[str, dict[str, Maker]] = {
    "html": {
        "brackets": flood("<"),
        "tags": flood("<a"),
        "declarations": flood("<!"),
        "comments": flood("<!--"),
        "comments that nearly end": flood("<!-- --"),
        "templates": flood("<template>"),
        "noscript": flood("<noscript>"),
        "noscript, whole": flood("<noscript></noscript>"),
        "noscript with images": flood("<img src=http://a.co/b>", "<noscript>", "</noscript>"),
        "bases": flood("<base href='http://a.co'>"),
    },
    "tags": {
        "images": flood("<img>"),
        "attributes": numbered(" a{}=1", "<img"),
        "attributes of an image": numbered(" a{}=1", "<img", " src='http://a.co/b'>"),
        "quotes that are not closed": flood("<a b='c\""),
        "equals signs": flood("=", "<img "),
        "a long name": flood("a", "<"),
        "slashes": flood("/ ", "<img", ">"),
    },
    "foreign_content": {
        "drawings": flood("<svg>"),
        "groups": flood("<g>", "<svg>"),
        "end tags that end nothing": flood("</x>", "<math>" + "<a>" * 127),
        "end tags in an integration point": flood("</x>", "<svg><x><foreignObject>" + "<p>" * 124),
        "fonts": flood("<font>", "<svg>"),
        "sections": flood("<![CDATA[", "<svg>"),
    },
    "raw_text": {
        "styles": flood("<style>"),
        "titles": flood("<title></title>"),
        "scripts in scripts": flood("<script><!--", "<script>"),
        "comments in a script": flood("<!--", "<script>"),
    },
    "character_references": {
        "ampersands": flood("&", "<img src='", "'>"),
        "names": flood("&notin", "<img src='", "'>"),
        "names that are none": flood("&CounterClockwiseContourIntegra", "<img src='", "'>"),
        "numbers": flood("&#x41;", "<img src='", "'>"),
    },
    "srcset": {
        "commas": flood(",", "<img srcset='", "'>"),
        "candidates": flood("a,", "<img srcset='", "'>"),
        "parentheses": flood("a (", "<img srcset='", "'>"),
        "links": flood("http://a.co ,", "<img srcset='", "'>"),
    },
    "css": {
        "url": flood("url(", "<style>", "</style>"),
        "links": flood("url(http://a.co);", "<style>", "</style>"),
        "parentheses": flood("(", "<style>url(a)", "</style>"),
        "escapes": flood("\\", "<style>", "</style>"),
        "quotes": flood("\"'", "<style>url(a)", "</style>"),
        "braces": flood("{}", "<style>url(a)", "</style>"),
        "comments": flood("/*", "<style>url(a)", "</style>"),
        "attributes": flood("<a style='b:url(http://a.co)'>"),
    },
    "svg_style": {
        "styles": flood("<style>", "<svg>"),
        "whole ones": flood("<style></style>", "<svg>"),
        "comments": flood("<!---->", "<svg><style>", "</style>"),
        "sections": flood("<![CDATA[a]]>", "<svg><style>", "</style>"),
        "sections that do not end": flood("<style><![CDATA[", "<svg>"),
    },
    "json_ld": {
        "lists": nested("[", "]", LD, "</script>"),
        "objects": nested('{"image":', "}", LD, "</script>"),
        "links": flood('"http://a.co",', LD + '{"image":[', "1]}</script>"),
        "links that are told late": flood('{"url":"a"},', LD + "[", "1]</script>"),
        "names": flood('"image":1,', LD + "{", '"a":1}</script>'),
    },
    "resolve_link": {
        "dots": flood("/.", "<img src='http://a.co", "'>"),
        "parents": flood("/..", "<img src='http://a.co", "'>"),
        "backslashes": flood("\\", "<img src='http:", "'>"),
        "white space": flood("\t", "<img src='http://a.co/", "b'>"),
    },
    "charset": {
        "labels": flood("charset=", "<meta http-equiv=content-type content='", "'>"),
        "metas": flood("<meta charset=x>"),
        "comments": flood("<!-->"),
    },
    "html_attributes": {
        "relations": flood("a ", "<link rel='", "'>"),
        "links": flood("<link rel='preload icon' as=image href=http://a.co>"),
        "metas": flood("<meta name=og:image content=http://a.co>"),
        "inputs": flood("<input type=image src=http://a.co>"),
    },
}  # fmt: skip

TEXTS: dict[str, Maker] = {
    "images that do not end": flood("!["),
    "links that do not end": flood("[", "!["),
    "links with images": flood("[!["),
    "images in images": nested("![", "](a)"),
    "destinations": flood("![]("),
    "destinations in brackets": flood("![](<"),
    "titles": flood('![a](b "'),
    "images": flood("![](http://a.co)"),
    "references": flood("![a]", "[a]: http://b\n\n"),
    "references in references": nested("![", "]", "[a]: http://b\n\n"),
    "definitions": numbered("[a{}]: b\n", "![\n\n"),
    "definitions that are none": flood("[a]:\n", "![\n\n"),
    "a definition in many lines": flood("[a\n", "![\n\n"),
    "quotations": flood(">", "![\n\n"),
    "lines of quotations": flood("a\n", "![\n\n" + "> " * 20 + "a\n"),
    "lists": flood("- ", "![\n\n"),
    "lists of lists": lambda size: "![\n\n" + "\n".join("  " * (n % 40) + "- a" for n in range(size // 44)),
    "items": flood("- a\n", "![\n\n"),
    "emphasis": flood("*a **a ", "!["),
    "emphasis that ends": flood("a**b", "![", "c*" * 400),
    "backticks": lambda size: "![" + " ".join("`" * n for n in range(1, int((2 * size) ** 0.5))),
    "brackets": flood("<"),
    "tags": flood("<b>"),
    "blocks of HTML": flood("<b>\n\n"),
    "tags that do not end": flood("<a b='"),
    "comments": flood("<!--"),
    "addresses": flood("<http:"),
    "escapes": flood("\\", "!["),
    "entities": flood("&#x", "!["),
    "headings": flood("# a\n", "![\n\n"),
    "underlines": flood("a\n=\n", "![\n\n"),
    "fences": flood("```\n\n", "![\n\n"),
    "blank lines": flood("\n", "![a](b)"),
    "elements in MathML": flood("</x>", "<div><math>" + "<a>" * 127),
}

NO_PARSERS = {"attribute_values", "budget", "links", "patterns", "pictures", "stream"}
"""Modules that read nothing by themselves."""

OF_MARKDOWN = {"commonmark", "markdown"}

HTML = [pytest.param(make, id=f"{module}: {name}") for module, makers in PAGES.items() for name, make in makers.items()]
MARKDOWN = [pytest.param(make, id=name) for name, make in TEXTS.items()]


class Lines:
    """Counts the lines of Python that run in this thread."""

    def __init__(self) -> None:
        self.count = 0

    def trace(self, _frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == "line":
            self.count += 1
        return self.trace


@contextmanager
def counting() -> Iterator[Lines]:
    lines, before = Lines(), sys.gettrace()
    sys.settrace(lines.trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def lines_of(work: Callable[[], object]) -> int:
    with counting() as lines:
        work()
    return lines.count


def test_every_parser_is_attacked() -> None:
    modules = {module.name for module in pkgutil.iter_modules(imgkeep.core.rewrite.__path__)}
    assert modules == PAGES.keys() | OF_MARKDOWN | NO_PARSERS


@pytest.mark.parametrize("make", HTML)
def test_html_is_linear(make: Maker) -> None:
    short, long = make(1000), make(4000)
    of_short = lines_of(lambda: rewrite_html(short.encode(), LINKER, charset="utf-8"))
    of_long = lines_of(lambda: rewrite_html(long.encode(), LINKER, charset="utf-8"))
    assert of_long < 4.5 * of_short + 2000
    assert of_long < LINES_PER_BYTE_MAX * len(long)


def test_pictures_in_a_page_are_linear() -> None:
    """An image of some 30 characters gets the links of a whole ladder of widths."""
    settings = PictureSettings("q=80", "auto", "50vw", is_lazy=True).read(range(1, 65), {}, None)
    linker = ImgLinks(every, "https://k.example", pictures=settings)
    make = numbered("<img width={} src=http://a.co/b>")
    of_short, of_long = (lines_of(partial(rewrite_html, make(size), linker)) for size in (1000, 4000))
    assert of_long < 4.5 * of_short + 2000


@pytest.mark.parametrize("make", MARKDOWN)
def test_markdown_is_linear_and_stops(make: Maker) -> None:
    short, long = make(1000), make(4000)
    of_short = lines_of(lambda: rewrite_markdown(short, LINKER))
    of_long = lines_of(lambda: rewrite_markdown(long, LINKER))
    # A short text may take as many steps as a longer one, so what stops at once may grow faster up to there.
    assert of_long < max(4.5 * of_short, LINES_PER_STEP_MAX * steps_max(len(long)))


def test_too_costly_text_is_an_error_and_stays() -> None:
    text = "![" * 32_768
    assert rewrite_markdown(text, LINKER) == text
    with pytest.raises(InvalidRequest, match="more steps than its length allows"):
        rewrite(text.encode(), "markdown", LINKER)


async def test_too_costly_text_is_a_400(imgkeep: Server) -> None:
    async with imgkeep.client.post(
        "/api/rewrite", data=b"![" * 32_768, headers={"Content-Type": "text/markdown"}
    ) as answer:
        assert answer.status == 400
        assert (await answer.json())["code"] == "invalid_request"


class Turns:
    """
    Takes part in the event loop while something else does.

    Attributes:
        longest: How many lines others ran at most between two of its own turns.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.longest = self.count = 0

    async def take(self) -> None:
        while True:
            before = self._lines.count
            await asyncio.sleep(0)
            self.count += 1
            self.longest = max(self.longest, self._lines.count - before)


async def never() -> MutableMapping[str, Any]:
    """Be the `receive` of a server whose client waits."""
    await asyncio.Event().wait()
    raise AssertionError


async def page_of(body: bytes, pieces: int = 1, *, before: Callable[[], object] = lambda: None) -> bytes:
    """Return what the visitor of an application gets that answers with `body`."""
    sent: list[bytes] = []

    async def app(_scope: Any, _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        before()
        size = -(-len(body) // pieces)
        for at in range(0, len(body), size):
            more = at + size < len(body)
            await send({"type": "http.response.body", "body": body[at : at + size], "more_body": more})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    await Imgkeep(app, public_url="https://k.example", which="all", allow=["*"])(scope, never, send)
    return b"".join(sent)


@pytest.mark.parametrize("make", HTML)
async def test_no_page_holds_the_event_loop(make: Maker) -> None:
    page = make(3 * (STEP_BYTES + HEAVY_CHARS)).encode()
    with counting() as lines:
        turns = Turns(lines)
        taking = asyncio.get_running_loop().create_task(turns.take())
        await asyncio.sleep(0)
        came = await page_of(page)
        taking.cancel()
    assert turns.longest < LINES_PER_TURN_MAX
    assert turns.count >= 3
    # The same page as in one go; and nothing is lost.
    assert came == rewrite_html(page, LINKER)


@pytest.mark.parametrize("pieces", [1, 7])
async def test_long_token_is_read_off_the_event_loop(pieces: int) -> None:
    page = b"<style>" + b"a{b:url(http://a.co/c)}" * 30_000 + b"</style>"
    with counting() as lines:
        came = await page_of(page, pieces)
    assert came.count(b"https://k.example/img?src=") == 30_000
    assert lines.count < 30_000


async def test_failing_application_blocks_the_loop_for_no_long() -> None:
    held = b"<style>" + b"a{b:url(http://a.co/c)}" * 20_000
    sent: list[bytes] = []

    async def app(_scope: Any, _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": held, "more_body": True})
        raise ZeroDivisionError

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    with counting() as lines, pytest.raises(ZeroDivisionError):
        await Imgkeep(app, public_url="https://k.example", which="all", allow=["*"])(scope, never, send)
    assert b"".join(sent).count(b"https://k.example/img?src=") == 20_000
    assert lines.count < 20_000


def test_filter_reads_a_bounded_part_and_leaves_the_rest() -> None:
    image = "<img src='http://a.co/b'>"
    html = image * 50_000
    made = LinkRewriter(public_url="https://k.example", which="all", allow=["*"]).rewrite(html)
    changed = made.count("https://k.example/img?src=")
    assert 0 < changed <= FRAGMENT_STEPS_MAX
    assert made.endswith(image * (50_000 - changed))
    new = "<img src='https://k.example/img?src=http%3A%2F%2Fa.co%2Fb'>"
    assert made == new * changed + image * (50_000 - changed)


@pytest.mark.parametrize("make", HTML)
def test_filter_stops_at_its_budget(make: Maker) -> None:
    """What a filter is given is ten times what it reads, and what it reads is bounded."""
    site = LinkRewriter(public_url="https://k.example", which="all", allow=["*"])
    lines = lines_of(lambda: site.rewrite(make(FRAGMENT_STEPS_MAX)))
    assert lines < FRAGMENT_STEPS_MAX * LINES_PER_BYTE_MAX
