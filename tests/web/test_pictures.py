"""Derived pictures over HTTP: negotiation, validators, ranges, caches, and one fetch for all who ask."""

from __future__ import annotations

import asyncio
import os
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from multidict import CIMultiDict
from PIL import Image
from yarl import URL

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.signing import signed_images_path, signed_path
from imgkeep.images.object_urls import ObjectUrl
from imgkeep.images.request_context import RedirectToObject, RedirectToSource
from imgkeep.web.request_response import ImageRequest
from imgkeep.web.request_state import RequestLog
from tests.support.clock import FakeClock
from tests.support.concurrent_requests import HeldResponse
from tests.support.fast_path import WITH_AND_WITHOUT_FAST_PATH
from tests.support.image_requests import fast_path_of
from tests.support.images import make_image
from tests.support.picture_program import COMMAND, picture_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aiohttp import ClientResponse

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

IMAGE = make_image()
PLATFORM = Platform(derive_command=COMMAND)
KEY = "0123456789abcdef"
CHROMIUM = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
SAFARI = "image/webp,image/avif;q=0,image/png,*/*;q=0.5"


@pytest.fixture
async def imgkeep(start: Callable[..., Awaitable[Imgkeep]]) -> Imgkeep:
    return await start(platform=PLATFORM)


async def sleep_briefly(seconds: float) -> None:
    await asyncio.sleep(seconds / 10)


async def ask(imgkeep: Imgkeep, url: str, query: str, **how: Any) -> ClientResponse:
    method = how.pop("method", "GET")
    target = URL(f"/img?src={quote(url, safe='')}&{query}", encoded=True)
    return await imgkeep.client.request(method, target, **how)


@WITH_AND_WITHOUT_FAST_PATH
async def test_picture_of_a_cold_image(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    first = await ask(imgkeep, url, "w=40&format=webp")
    assert (first.status, await first.read()) == (200, picture_of("w40", "WEBP"))
    assert first.headers["Content-Type"] == "image/webp"
    assert first.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; stored"
    assert first.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert first.headers["Content-Disposition"].endswith('-w40.webp"')
    assert "Vary" not in first.headers
    assert "Content-DPR" not in first.headers
    original = await imgkeep.img(url)
    assert await original.read() == IMAGE
    assert original.headers["Cache-Status"] == "imgkeep; hit"
    again = await ask(imgkeep, url, "format=webp&w=20&dpr=2")
    assert await again.read() == picture_of("w40", "WEBP")
    assert again.headers["Cache-Status"] == "imgkeep; hit"
    assert again.headers["ETag"] == first.headers["ETag"] != original.headers["ETag"]
    assert origin.asked("/a.png") == 1


@WITH_AND_WITHOUT_FAST_PATH
async def test_picture_of_a_stored_image_says_that_it_was_made(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    await (await imgkeep.img(url)).read()
    statuses = [(await ask(imgkeep, url, "w=40")).headers["Cache-Status"] for _ in range(3)]
    assert statuses == ["imgkeep; hit; detail=derived", "imgkeep; hit", "imgkeep; hit"]


@WITH_AND_WITHOUT_FAST_PATH
async def test_permanent_url_takes_the_same_options(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    picture = await ask(imgkeep, url, "w=40&fit=cover&h=30&format=auto", headers={"Accept": CHROMIUM})
    location = picture.headers["Content-Location"]
    assert location.partition("?")[2] == "w=40&h=30&fit=cover&format=avif"
    named = await imgkeep.client.get(URL(location, encoded=True))
    assert (named.status, named.headers["Content-Type"]) == (200, "image/avif")
    path = location.partition("?")[0]
    assert await (await imgkeep.client.get(path)).read() == IMAGE
    assert await (await imgkeep.client.get(f"{path}?v=2")).read() == IMAGE, "what is no option means nothing"
    missing = await imgkeep.client.get(f"/images/{'0' * 64}.png?w=40")
    assert missing.status == 404
    wrong = await imgkeep.client.get(f"{path}?w=40&colour=red")
    assert (wrong.status, (await wrong.json())["code"]) == (400, "invalid_option")


@WITH_AND_WITHOUT_FAST_PATH
async def test_each_client_gets_the_format_that_it_accepts(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    for _ in range(3):  # made, from the disk or the memory, from the response cache
        for accept, media_type in ((CHROMIUM, "image/avif"), (SAFARI, "image/webp"), ("*/*", "image/png")):
            answer = await ask(imgkeep, url, "w=40&format=auto", headers={"Accept": accept})
            assert (answer.headers["Content-Type"], answer.headers["Vary"]) == (media_type, "Accept")
            assert await answer.read() == picture_of("w40", media_type.removeprefix("image/").upper())


@WITH_AND_WITHOUT_FAST_PATH
async def test_preset_may_be_negotiated(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    imgkeep = await start(platform=PLATFORM, derive={"presets": {"thumb": "w=32&h=32&fit=cover&format=auto"}})
    url = origin.gives("/a.png", IMAGE)
    for _ in range(3):
        for accept, media_type in ((CHROMIUM, "image/avif"), ("image/png", "image/png")):
            answer = await ask(imgkeep, url, "preset=thumb", headers={"Accept": accept})
            assert (answer.headers["Content-Type"], answer.headers["Vary"]) == (media_type, "Accept")


@WITH_AND_WITHOUT_FAST_PATH
async def test_every_response_to_a_negotiated_url_says_so(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    headers = {"Accept": CHROMIUM}
    whole = await ask(imgkeep, url, "w=40&format=auto", headers=headers)
    size, etag = len(await whole.read()), whole.headers["ETag"]
    for extra, status in (
        ({"If-None-Match": etag}, 304),
        ({"Range": "bytes=2-4"}, 206),
        ({"Range": "bytes=900-"}, 416),
        ({"Range": "bytes=2-4", "If-Range": '"other"'}, 200),
    ):
        answer = await ask(imgkeep, url, "w=40&format=auto", headers={**headers, **extra})
        assert (answer.status, answer.headers["Vary"]) == (status, "Accept")
        if status == 206:
            assert await answer.read() == picture_of("w40", "AVIF")[2:5]
            assert answer.headers["Content-Range"] == f"bytes 2-4/{size}"
    head = await ask(imgkeep, url, "w=40&format=auto", headers=headers, method="HEAD")
    assert (head.status, head.headers["Content-Length"], head.headers["ETag"]) == (200, str(size), etag)
    lost = await ask(imgkeep, origin.url("/none.png"), "w=40&format=auto", headers=headers)
    assert lost.status == 404
    assert "Accept" in lost.headers["Vary"]


async def test_entity_tag_of_one_format_is_none_of_another(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    avif = await ask(imgkeep, url, "w=40&format=auto", headers={"Accept": CHROMIUM})
    headers = {"Accept": "image/webp", "If-None-Match": avif.headers["ETag"]}
    answer = await ask(imgkeep, url, "w=40&format=auto", headers=headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/webp")


async def test_defaults_by_name_give_a_picture(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """The original may hold the place where it was taken, and `metadata=strip` is one of the defaults."""
    url = origin.gives("/a.png", IMAGE)
    assert await (await ask(imgkeep, url, "metadata=strip")).read() == picture_of("full", "PNG")
    assert await (await ask(imgkeep, url, "rotate=0")).read() == picture_of("full", "PNG")


async def test_svg_is_served_as_it_is(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    url = origin.gives("/a.svg", body)
    for _ in range(2):
        answer = await ask(imgkeep, url, "w=40&format=auto", headers={"Accept": CHROMIUM})
        assert (await answer.read(), answer.headers["Vary"]) == (body, "Accept")
    named = await ask(imgkeep, url, "w=40&format=png")
    assert (named.status, (await named.json())["code"]) == (501, "not_supported")


@WITH_AND_WITHOUT_FAST_PATH
async def test_concurrent_requests_for_a_cold_picture_fetch_and_derive_once(
    imgkeep: Imgkeep, origin: FakeOrigin
) -> None:
    held = HeldResponse(IMAGE)
    url = origin.on("/a.png", held)
    asked = [asyncio.create_task(ask(imgkeep, url, "w=40&format=webp")) for _ in range(30)]
    await until(lambda: origin.asked("/a.png"))
    held.begin.set()
    held.end.set()
    answers = await asyncio.gather(*asked)
    assert {await answer.read() for answer in answers} == {picture_of("w40", "WEBP")}
    assert origin.asked("/a.png") == 1
    assert derived(imgkeep) == 1


def derived(imgkeep: Imgkeep) -> int:
    """Return how many pictures derive processes have made."""
    assert imgkeep.client.app is not None
    page = imgkeep.client.app[SERVICES].metrics.page().decode()
    lines = [line for line in page.splitlines() if line.startswith("imgkeep_derive_jobs_total{") and '"done"' in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


async def test_removal_of_an_original_removes_its_pictures(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    picture = await ask(imgkeep, url, "w=40")
    location = URL(picture.headers["Content-Location"], encoded=True)
    assert (await imgkeep.client.get(location)).status == 200
    removal = await imgkeep.client.delete("/api/images", params={"src": url})
    assert removal.status == 200
    assert (await ask(imgkeep, url, "w=40")).status == 410
    assert (await imgkeep.client.get(location)).status == 410
    assert not [path for path in (imgkeep.folder / "derived").rglob("*") if path.is_file()]


async def test_lost_original_is_fetched_again_for_another_picture(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    await (await ask(imgkeep, url, "w=40")).read()
    [path] = imgkeep.files("objects")
    path.unlink()
    assert imgkeep.client.app is not None
    imgkeep.client.app[SERVICES].storage.local.disk.memory_cache.evict(str(path.relative_to(imgkeep.folder)))
    answer = await ask(imgkeep, url, "w=41")
    assert (answer.status, await answer.read()) == (200, picture_of("w41", "PNG"))
    assert origin.asked("/a.png") == 2


async def test_target_without_options_has_one_cached_response(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    for accept in (CHROMIUM, SAFARI, "*/*"):
        await (await imgkeep.img(url, headers={"Accept": accept})).read()
    assert len(fast_path_of(imgkeep).response_cache) == 1
    for accept in (CHROMIUM, SAFARI, "*/*", f"{CHROMIUM},text/html"):
        await (await ask(imgkeep, url, "w=40&format=auto", headers={"Accept": accept})).read()
    assert len(fast_path_of(imgkeep).response_cache) == 4


async def test_provisional_original_has_provisional_pictures(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE[:-12])
    original = await imgkeep.img(url)
    picture = await ask(imgkeep, url, "w=40")
    assert picture.headers["Cache-Control"] == original.headers["Cache-Control"] != "no-store"
    assert "immutable" not in picture.headers["Cache-Control"]


async def test_location_that_this_server_refuses_is_not_told(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    presets = {"thumb": "w=32&h=32&fit=cover&format=webp"}
    imgkeep = await start(platform=PLATFORM, derive={"allow": "presets", "widths": [64], "presets": presets})
    url = origin.gives("/a.png", IMAGE)
    assert "Content-Location" not in (await ask(imgkeep, url, "preset=thumb")).headers
    open_to_all = await ask(imgkeep, url, "w=64&format=webp")
    named = await imgkeep.client.get(URL(open_to_all.headers["Content-Location"], encoded=True))
    assert (named.status, await named.read()) == (200, picture_of("w64", "WEBP"))
    refused = await ask(imgkeep, url, "w=65")
    assert (refused.status, (await refused.json())["code"]) == (403, "options_forbidden")


async def test_source_that_is_a_picture_of_this_server_is_that_picture(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    imgkeep = await start(platform=PLATFORM, derive={"allow": "any"}, server={"public_url": "https://images.example"})
    picture = await ask(imgkeep, origin.gives("/a.png", IMAGE), "w=40&format=webp")
    own = picture.headers["Content-Location"]
    assert own.startswith("https://images.example/images/")
    assert await (await imgkeep.img(own)).read() == picture_of("w40", "WEBP")
    assert await (await ask(imgkeep, own, "w=50")).read() == picture_of("w50", "PNG")
    assert await (await imgkeep.img(own.partition("?")[0])).read() == IMAGE


async def test_derive_process_of_this_machine_makes_pictures(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    imgkeep = await start()
    url = origin.gives("/a.jpg", make_image("JPEG"))
    answer = await ask(imgkeep, url, "w=32&format=auto", headers={"Accept": "image/webp"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/webp")
    with Image.open(BytesIO(await answer.read())) as picture:
        assert (picture.format, picture.size) == ("WEBP", (32, 24))


async def test_flood_of_sizes_is_refused_and_others_are_served(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    platform = Platform(derive_command=(*COMMAND, str(gate)), sleep=sleep_briefly)
    imgkeep = await start(platform=platform, derive={"processes": 1, "queue_max": 4})
    url, other = origin.gives("/a.png", IMAGE), origin.gives("/b.png", make_image(seed=2))
    for each in (url, other):
        await (await imgkeep.img(each)).read()
    flood = [asyncio.create_task(ask(imgkeep, url, f"w={width}")) for width in range(1, 61)]
    refused: list[ClientResponse] = []

    def count() -> bool:
        refused[:] = [task.result() for task in flood if task.done()]
        return len(refused) == 55

    await until(count)
    for answer in refused:
        assert (answer.status, (await answer.json())["code"]) == (503, "busy")
        assert int(answer.headers["Retry-After"]) >= 1
    assert (await imgkeep.img(other)).headers["Cache-Status"] == "imgkeep; hit"
    with await asyncio.to_thread(gate.open, "wb"):
        statuses = [answer.status for answer in await asyncio.gather(*flood)]
    assert sorted(statuses) == [200] * 5 + [503] * 55


@WITH_AND_WITHOUT_FAST_PATH
async def test_signature_of_options_ends_for_cached_pictures_too(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    clock = FakeClock()
    platform = Platform(derive_command=COMMAND, clock=clock)
    imgkeep = await start(
        platform=platform, derive={"allow": "signed", "widths": [64]}, security={"signing_keys": [KEY]}
    )
    url, end = origin.gives("/a.png", IMAGE), int(clock.now.timestamp()) + 100
    open_to_all = await ask(imgkeep, url, "w=64")
    assert "immutable" in open_to_all.headers["Cache-Control"]
    path = open_to_all.headers["Content-Location"].partition("?")[0]
    options = (("w", "40"), ("format", "auto"))
    for signed in (
        signed_path(KEY, url, expires=end, options=options),
        signed_images_path(KEY, path, expires=end, options=options),
    ):
        target = URL(signed, encoded=True)
        for _ in range(3):
            answer = await imgkeep.client.get(target)
            assert (answer.status, answer.headers["Cache-Control"]) == (200, "public, max-age=100")
        for changed in (signed.replace("w=40", "w=41"), signed.replace("auto", "webp"), f"{signed}&h=10"):
            refused = await imgkeep.client.get(URL(changed, encoded=True))
            assert (refused.status, (await refused.json())["code"]) == (403, "signature_invalid")
        clock.advance(100)
        assert (await imgkeep.client.get(target)).status == 403
        clock.advance(-100)


async def test_redirect_of_a_negotiated_url_says_so(imgkeep: Imgkeep) -> None:
    responses = fast_path_of(imgkeep).handlers.responses
    request = ImageRequest("/img", "", False, "/img", CIMultiDict(), "", True, RequestLog(), varies=True)
    to = RedirectToObject(ObjectUrl("https://cdn.example/a.avif", 60), '"tag"', None, None)
    assert responses.redirect_to_object(request, to).headers["Vary"] == "Accept"
    assert responses.redirect(request, RedirectToSource("https://origin.test/a.png")).headers["Vary"] == "Accept"
