"""Pictures that come with errors: shown where the operator wants it, never stored, and with an honest status."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.cluster.progress import read_fill, write_failure
from imgkeep.core.errors import SourceNotFound
from imgkeep.core.source_url import read_source
from imgkeep.images.fill_checks import ERROR_IMAGE_BYTES_MAX
from imgkeep.images.negative_cache import IMAGES_BYTES_MAX, NegativeCache
from imgkeep.images.peer_fill import FillFailure
from tests.support.browser import browsing
from tests.support.images import make_image, png_of
from tests.support.network import look, nothing_kept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

STATUSES = {
    400: (502, "origin_error"),
    401: (502, "origin_refused"),
    403: (502, "origin_refused"),
    404: (404, "source_not_found"),
    410: (404, "source_not_found"),
    418: (502, "origin_error"),
    429: (502, "origin_error"),
    500: (502, "origin_error"),
    503: (502, "origin_error"),
}


async def showing(start: Start, **fetch: Any) -> Imgkeep:
    return await start(fetch={"show_errors": True, **fetch})


CUT = {
    "by its length": ("Content-Length: 9999", make_image()[:4000]),
    "by its chunks": ("Transfer-Encoding: chunked", b"fa0\r\n" + make_image()[:4000] + b"\r\n"),
    "by its coding": ("Content-Encoding: gzip", gzip.compress(make_image())[:-1000]),
}


@pytest.mark.parametrize(("field", "body"), CUT.values(), ids=CUT.keys())
async def test_broken_error_image_is_not_shown(start: Start, origin: FakeOrigin, field: str, body: bytes) -> None:
    imgkeep = await showing(start)

    async def script(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/1.1 404 Not Found\r\n{field}\r\n\r\n".encode() + body)
        exchange.finish()

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert (seen.status, seen.code) == (404, "source_not_found")


@pytest.mark.parametrize(("status", "told"), STATUSES.items())
async def test_error_image_is_shown_with_own_status_and_not_stored(
    start: Start, origin: FakeOrigin, status: int, told: tuple[int, str]
) -> None:
    imgkeep = await showing(start)
    url = origin.gives("/a.png", make_image(), status=f"{status} No")
    for _ in range(2):
        seen = await look(imgkeep, url)
        assert (seen.status, seen.body, seen.headers["Content-Type"]) == (told[0], make_image(), "image/png")
        assert seen.headers["Cache-Control"] == "no-store"
        assert seen.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in seen.headers["Content-Security-Policy"]
        assert seen.headers["Cache-Status"] == f"imgkeep; fwd=uri-miss; fwd-status={status}"
        assert "ETag" not in seen.headers
        assert "Accept-Ranges" not in seen.headers
    assert origin.asked("/a.png") == 1, "failures are remembered as ever"
    head = await look(imgkeep, url, method="HEAD")
    assert (head.status, head.body) == (told[0], b"")
    await nothing_kept(imgkeep)


@pytest.mark.parametrize(("status", "told"), STATUSES.items())
async def test_error_image_is_a_problem_by_default(
    imgkeep: Imgkeep, origin: FakeOrigin, status: int, told: tuple[int, str]
) -> None:
    seen = await look(imgkeep, origin.gives("/a.png", make_image(), status=f"{status} No"))
    assert (seen.status, seen.code) == told


NO_PICTURES = {
    "a page": b"<!DOCTYPE html><title>404</title>",
    "nothing": b"",
    "the beginning of an image": b"\x89PNG\r\n",
    "more than is held in memory": png_of(ERROR_IMAGE_BYTES_MAX + 1),
}


@pytest.mark.parametrize("body", NO_PICTURES.values(), ids=NO_PICTURES.keys())
async def test_anything_else_is_a_problem(start: Start, origin: FakeOrigin, body: bytes) -> None:
    imgkeep = await showing(start)
    seen = await look(imgkeep, origin.gives("/a.png", body, status="404 Not Found"))
    assert (seen.status, seen.code) == (404, "source_not_found")


async def test_error_image_of_maximum_size_is_shown(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await showing(start)
    body = png_of(ERROR_IMAGE_BYTES_MAX)
    assert (await look(imgkeep, origin.gives("/a.png", body, status="404 Not Found"))).body == body


async def test_error_image_of_too_many_pixels_is_a_problem(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await showing(start, pixels_max=100)
    seen = await look(imgkeep, origin.gives("/a.png", make_image(), status="404 Not Found"))
    assert seen.code == "source_not_found"


async def test_svg_error_image_is_shown_in_its_sandbox(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await showing(start)
    body = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
    seen = await look(imgkeep, origin.gives("/a.svg", body, status="404 Not Found"))
    assert (seen.status, seen.body, seen.headers["Content-Type"]) == (404, body, "image/svg+xml")
    assert "sandbox" in seen.headers["Content-Security-Policy"]


async def test_retries_show_the_last(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await showing(start, retries_max=1)

    async def script(exchange: Any) -> None:
        await exchange.answer(make_image(seed=exchange.number), status="503 Later")

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert (seen.status, seen.body) == (502, make_image(seed=1))


async def test_stored_image_is_shown_instead_of_an_error_image(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await showing(start)
    url = origin.gives("/a.png", make_image(seed=1))
    assert (await look(imgkeep, url)).status == 200
    origin.gives("/a.png", make_image(seed=2), status="404 Not Found")
    assert (await look(imgkeep, url)).body == make_image(seed=1)
    assert len(imgkeep.files("objects")) == 1


async def test_api_reports_a_problem(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await showing(start)
    url = origin.gives("/a.png", make_image(), status="404 Not Found")
    response = await imgkeep.client.post("/api/save-image", json={"url": url})
    assert (response.status, (await response.json())["code"]) == (404, "source_not_found")
    await nothing_kept(imgkeep)


async def test_other_worker_receives_the_error_image() -> None:
    error = SourceNotFound("the origin says 404", origin_status=404)
    for image_ in (("image/png", make_image()), None):
        error.image = image_
        error.refusal = b"words of the origin"
        message = write_failure(FillFailure(b"link", error))
        assert b"words of the origin" not in message
        stream = asyncio.StreamReader()
        stream.feed_data(message)
        told = await read_fill(stream)  # type: ignore[arg-type]  # as aiohttp's, as far as it is used
        assert isinstance(told, FillFailure)
        assert isinstance(told.error, SourceNotFound)
        assert (told.error.image, told.error.origin_status, told.link) == (image_, 404, b"link")


def test_negative_cache_bounds_its_error_images() -> None:
    failures = NegativeCache(lambda: 0.0)
    sources = [read_source(f"https://example.com/{n}.png") for n in range(20)]
    for source in sources:
        error = SourceNotFound("the origin says 404", origin_status=404)
        error.image = ("image/png", bytes(1_000_000))
        failures.add(source, error)
        assert error.image, "the one that was raised keeps its own"
    found = [failures.find(source) for source in sources]
    assert all(isinstance(error, SourceNotFound) for error in found)
    images = [error.image for error in found if isinstance(error, SourceNotFound) and error.image]
    assert sum(len(body) for _, body in images) <= IMAGES_BYTES_MAX
    assert len(images) == 16
    failures.add(sources[-1], SourceNotFound("the origin says 404", origin_status=404))
    last = failures.find(sources[-1])
    assert isinstance(last, SourceNotFound)
    assert last.image is None


async def test_browser_shows_an_error_image(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await showing(start)
    url = origin.gives("/a.png", make_image(), status="404 Not Found")
    async with browsing() as browser:
        page = await browser.new_page()
        await page.goto(str(imgkeep.client.make_url("/healthz")))
        width = await page.evaluate(
            """src => new Promise(resolve => {
                const image = new Image();
                image.onload = () => resolve(image.naturalWidth);
                image.onerror = () => resolve(0);
                image.src = src;
            })""",
            str(imgkeep.client.make_url(f"/img?src={url}")),
        )
    assert width == 64


# --- what is asked for


@pytest.mark.parametrize("accept", [None, "image/png", ""])
async def test_origins_are_asked_for_what_every_reader_has(
    start: Start, origin: FakeOrigin, accept: str | None
) -> None:
    imgkeep = await start(fetch={} if accept is None else {"accept": accept})
    url = origin.gives("/a.png", make_image())
    assert (await look(imgkeep, url, headers={"Accept": "image/avif"})).status == 200
    sent = origin.seen[0].headers["accept"]
    assert "avif" not in sent
    assert sent == (imgkeep.config.fetch.accept or "*/*")
    if accept is None:
        places = [sent.index(name) for name in ("image/png", "image/jpeg", "image/gif", "image/webp")]
        assert places == sorted(places)
