"""An origin that sends half an image with a fitting length: clients cache it briefly, and strangers do not decide."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.platform import Platform
from tests.support.image_requests import fills_done
from tests.support.images import make_image, png_of
from tests.support.s3.remote import sleep_briefly
from tests.support.signed_links import BRIEF, FOREVER, IMAGE, UNCERTAIN, SignedOrigin, good, invented, show

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

HALF = IMAGE[: len(IMAGE) // 2]
DAY_S = 86_400


@dataclass
class Time:
    """The clock and the timer of a server, moved by hand."""

    now: datetime = field(default_factory=lambda: datetime(2026, 11, 22, 10, tzinfo=UTC))
    seconds: float = 1000

    def platform(self, **others: Any) -> Platform:
        return Platform(clock=lambda: self.now, timer=lambda: self.seconds, **others)

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.seconds += seconds


@pytest.fixture
def time() -> Time:
    return Time()


async def test_half_image_with_fitting_length_is_replaced(start: Start, origin: FakeOrigin, time: Time) -> None:
    imgkeep = await start(platform=time.platform())
    url = origin.gives("/a.png", HALF)
    first = await show(imgkeep, url)
    assert (first.body, first.caching, first.outcome) == (HALF, BRIEF, "fwd=uri-miss; stored")
    later = await show(imgkeep, url)
    assert (later.body, later.caching, later.outcome) == (HALF, BRIEF, "hit")
    origin.gives("/a.png", IMAGE)
    time.wait(59)
    assert (await show(imgkeep, url)).body == HALF
    assert origin.asked("/a.png") == 1
    time.wait(1)
    assert (await show(imgkeep, url)).body == HALF, "the client does not wait"
    assert origin.asked("/a.png") == 2
    whole = await show(imgkeep, url)
    assert (whole.body, whole.caching, whole.outcome) == (IMAGE, FOREVER, "hit")
    time.wait(DAY_S)
    await show(imgkeep, url)
    assert origin.asked("/a.png") == 2


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(IMAGE[:-12], id="png without its end"),
        pytest.param(make_image("JPEG")[:-2], id="jpeg without eoi"),
        pytest.param(make_image("GIF")[:-1], id="gif without its trailer"),
        pytest.param(make_image("WEBP")[:-2], id="webp"),
        pytest.param(make_image("BMP")[:-3], id="bmp"),
        pytest.param(make_image("ICO")[:-20], id="ico"),
        pytest.param(make_image("TIFF")[: len(make_image("TIFF")) // 2], id="tiff"),
        pytest.param(make_image("AVIF")[:-30], id="avif"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0h9"/>', id="svg"),
        pytest.param(png_of(300_000)[:-100_000], id="large, in pieces"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_cut_image_of_each_format_is_cached_for_a_minute(
    start: Start,
    origin: FakeOrigin,
    body: bytes,
    chunked: bool,  # noqa: FBT001 - a table
) -> None:
    imgkeep = await start()
    url = origin.gives("/a", body)
    if chunked:

        async def in_chunks(exchange: Any) -> None:
            await exchange.send_head("Transfer-Encoding: chunked")
            await exchange.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

        url = origin.on("/a", in_chunks)
    for _ in range(2):
        shown = await show(imgkeep, url)
        assert (shown.body, shown.caching, shown.status) == (body, BRIEF, 200)
    (record,) = [json.loads(path.read_bytes()) for path in imgkeep.files("records")]
    assert "incomplete" in record["doubts"]


async def test_equal_file_over_a_day_is_confirmed(start: Start, origin: FakeOrigin, time: Time) -> None:
    imgkeep = await start(platform=time.platform())
    body = make_image("JPEG")[:-2]
    url = origin.gives("/a.jpg", body)
    hour = 0
    while (await show(imgkeep, url)).caching != FOREVER and hour < 48:
        hour += 1
        if hour == 20:
            imgkeep = await start(platform=time.platform())  # the state survives a restart
        time.wait(3600)
    assert 24 <= hour < 48
    assert origin.asked("/a.jpg") <= 9
    assert (await show(imgkeep, url)).body == body
    page = await (await imgkeep.client.get("/metrics")).text()
    assert 'imgkeep_incomplete_refetches_total{outcome="confirmed"} 1.0' in page


async def test_api_shows_why_image_is_provisional(start: Start, origin: FakeOrigin, time: Time) -> None:
    imgkeep = await start(platform=time.platform())
    url = origin.gives("/a.png", HALF)
    saved = [await imgkeep.client.post("/api/save-image", json={"url": url}) for _ in range(2)]
    assert [answer.status for answer in saved] == [201, 200]
    facts = await saved[1].json()
    assert facts["standing"] == "provisional"
    assert "incomplete" in facts["doubts"]
    (listed,) = (await (await imgkeep.client.get("/api/images")).json())["images"]
    assert "incomplete" in listed["doubts"]
    origin.gives("/a.png", IMAGE)
    refetched = await imgkeep.client.post(f"/api/images/{facts['key']}/refetch", json={"url": url})
    assert (await refetched.json())["replaced"] is True
    assert (await show(imgkeep, url)).caching == FOREVER


async def test_cut_upload_is_refused(imgkeep: Imgkeep) -> None:
    for body in (HALF, make_image("JPEG")[:-2], make_image("GIF")[:-1]):
        answer = await imgkeep.client.post("/api/save-image", data={"file": BytesIO(body)})
        problem = await answer.json()
        assert (answer.status, problem["code"]) == (422, "not_an_image")
        assert "incomplete" in problem["detail"]
    assert imgkeep.files("records") == []


async def test_stranger_cannot_replace_or_confirm_half_image(start: Start, origin: FakeOrigin, time: Time) -> None:
    imgkeep = await start(platform=time.platform(), sources={"providers": [UNCERTAIN]})
    signed = SignedOrigin(origin, image=HALF)
    assert (await show(imgkeep, signed.url(good()))).body == HALF
    before = imgkeep.files("records")[0].read_bytes()
    for number in range(30):
        time.wait(3600)
        assert (await show(imgkeep, signed.url(invented(number % 3)))).caching == BRIEF
    records = [json.loads(path.read_bytes()) for path in imgkeep.files("records")]
    (shared,) = [record for record in records if "#link=" not in record["identity"]]
    assert shared["digest"] == json.loads(before)["digest"]
    assert "incomplete" in shared["doubts"]
    assert "refetches" not in shared, "an unverified link does not use up the interval"
    signed.image = IMAGE
    assert (await show(imgkeep, signed.url(good()))).body == HALF
    whole = await show(imgkeep, signed.url(good()))
    assert whole.body == IMAGE


async def test_failing_origin_leaves_stored_image(start: Start, origin: FakeOrigin, time: Time) -> None:
    imgkeep = await start(platform=time.platform())
    url = origin.gives("/a.png", HALF)
    await show(imgkeep, url)
    for status in ("403 Forbidden", "404 Not Found", "410 Gone", "500 Broken", "200 OK"):
        origin.gives("/a.png", b"<html>", status=status)
        time.wait(DAY_S)
        for _ in range(3):
            shown = await show(imgkeep, url)
            assert (shown.status, shown.body) == (200, HALF)
    assert origin.asked("/a.png") == 6, "once in an interval, whatever it answers"


async def test_redirect_to_half_image_is_cached_briefly(remote: Remote, origin: FakeOrigin, time: Time) -> None:
    platform = time.platform(sleep=sleep_briefly)
    node = await remote.node(mode="redirect", platform=platform, delivery={"base_url": "http://127.0.0.1:9/"})
    url = origin.gives("/a.png", HALF)
    first = await node.img(url, allow_redirects=False)
    assert (first.status, first.headers["Cache-Control"], await first.read()) == (200, BRIEF, HALF)
    await fills_done(node)
    before = await node.img(url, allow_redirects=False)
    assert (before.status, before.headers["Cache-Control"]) == (302, BRIEF)
    origin.gives("/a.png", IMAGE)
    time.wait(60)
    during = await node.img(url, allow_redirects=False)
    assert during.headers["Location"] == before.headers["Location"]
    await fills_done(node)
    after = await node.img(url, allow_redirects=False)
    assert after.headers["Location"] != before.headers["Location"]
    assert after.headers["Cache-Control"] != BRIEF
    assert origin.asked("/a.png") == 2
    another = await remote.node("b", mode="redirect", platform=platform, delivery={"base_url": "http://127.0.0.1:9/"})
    elsewhere = await another.img(url, allow_redirects=False)
    assert elsewhere.headers["Location"] == after.headers["Location"]
