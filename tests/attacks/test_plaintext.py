"""An attacker between imgkeep and an origin, who answers plain http: his answers must not count for https links."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.images.source_order import PLAIN_HTTP_TTL_S
from tests.support.images import make_image
from tests.support.network import PUBLIC, Dials, Names, Timer, client_context, server_context
from tests.support.origins import FakeOrigin
from tests.support.signed_links import BRIEF, FOREVER, IMAGE, PLACEHOLDER, show

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

HTTP, HTTPS = "http://img.example.com/a.png", "https://img.example.com/a.png"


class Internet:
    """A host with a genuine image by https, or none, and the answers of an attacker on the way by http."""

    def __init__(self, start: Start, plain: FakeOrigin, tls: FakeOrigin) -> None:
        self._start = start
        self.plain, self.tls = plain, tls
        self.dials = Dials(plain, tls)
        self.timer = Timer()
        plain.gives("/a.png", PLACEHOLDER)
        tls.gives("/a.png", IMAGE)

    async def imgkeep(self) -> Imgkeep:
        platform = Platform(
            resolver=lambda: Names(default=[PUBLIC]),
            open_socket=self.dials,
            ssl_context=client_context(),
            timer=self.timer,
        )
        return await self._start(platform=platform, fetch={"allow_networks": []})

    def cut_https(self) -> None:
        self.dials.tls = None

    def mend_https(self) -> None:
        self.dials.tls = self.tls

    @property
    def asked(self) -> tuple[int, int]:
        """How often was asked by http, and by https."""
        return self.plain.asked("/a.png"), self.tls.asked("/a.png")


@pytest.fixture
async def internet(start: Start, origin: FakeOrigin) -> AsyncIterator[Internet]:
    tls = FakeOrigin(ssl=server_context("img.example.com"))
    await tls.start()
    yield Internet(start, origin, tls)
    await tls.stop()


async def test_https_is_asked_first_whatever_the_link_says(internet: Internet) -> None:
    imgkeep = await internet.imgkeep()
    for url in (HTTP, HTTPS, HTTP):
        shown = await show(imgkeep, url)
        assert (shown.body, shown.caching) == (IMAGE, FOREVER)
    assert internet.asked == (0, 1)


async def test_image_of_plain_http_does_not_answer_an_https_link(internet: Internet) -> None:
    imgkeep = await internet.imgkeep()
    internet.cut_https()
    shown = await show(imgkeep, HTTP)
    assert (shown.body, shown.caching) == (PLACEHOLDER, BRIEF)
    internet.mend_https()
    shown = await show(imgkeep, HTTPS)
    assert (shown.body, shown.caching) == (IMAGE, FOREVER)
    shown = await show(imgkeep, HTTP)
    assert (shown.body, shown.caching, shown.outcome) == (IMAGE, FOREVER, "hit")
    assert internet.asked == (1, 1)


async def test_https_link_is_never_fetched_by_http(internet: Internet) -> None:
    imgkeep = await internet.imgkeep()
    internet.cut_https()
    assert (await show(imgkeep, HTTPS)).status == 502
    await show(imgkeep, HTTP)
    shown = await show(imgkeep, HTTPS)
    assert (shown.body, shown.caching, shown.status) == (PLACEHOLDER, BRIEF, 200), "there is nothing else"
    assert internet.asked == (1, 0)


async def test_host_without_https_costs_one_connect_in_minutes(internet: Internet) -> None:
    imgkeep = await internet.imgkeep()
    internet.cut_https()
    urls = [f"http://img.example.com/{number}.png" for number in range(4)]
    for number, url in enumerate(urls):
        internet.plain.gives(f"/{number}.png", make_image(seed=number))
        assert (await show(imgkeep, url)).body == make_image(seed=number)
    ports = [port for _, port in internet.dials.made]
    assert ports.count(443) == 1
    for _ in range(3):
        await show(imgkeep, urls[0])
    assert [port for _, port in internet.dials.made].count(443) == 1
    internet.timer.seconds += PLAIN_HTTP_TTL_S + 1_000
    await show(imgkeep, urls[0])
    assert [port for _, port in internet.dials.made].count(443) == 2


async def test_http_link_is_fetched_by_https_where_possible(internet: Internet) -> None:
    imgkeep = await internet.imgkeep()
    internet.cut_https()
    assert (await show(imgkeep, HTTP)).body == PLACEHOLDER
    internet.mend_https()
    assert (await show(imgkeep, HTTP)).body == PLACEHOLDER
    assert internet.asked == (1, 0), "the host is known to have no https for some minutes"
    internet.timer.seconds += PLAIN_HTTP_TTL_S + 1_000
    assert (await show(imgkeep, HTTP)).body == PLACEHOLDER, "the client does not wait"
    shown = await show(imgkeep, HTTP)
    assert (shown.body, shown.caching) == (IMAGE, FOREVER)
    assert internet.asked == (1, 1)


@pytest.mark.parametrize(
    ("status", "body"), [("404 Not Found", b"no"), ("200 OK", b"<html>welcome</html>"), ("500 Oh", b"no")]
)
async def test_http_is_tried_where_https_gives_no_image(internet: Internet, status: str, body: bytes) -> None:
    internet.tls.gives("/a.png", body, status=status)
    imgkeep = await internet.imgkeep()
    shown = await show(imgkeep, HTTP)
    assert (shown.body, shown.caching) == (PLACEHOLDER, BRIEF)
    assert internet.asked == (1, 1)


async def test_redirect_through_http_is_plaintext(internet: Internet) -> None:
    internet.tls.gives("/r.png", b"", status="302 Found", headers={"Location": HTTP})
    imgkeep = await internet.imgkeep()
    shown = await show(imgkeep, HTTPS.replace("a.png", "r.png"))
    assert (shown.body, shown.caching) == (PLACEHOLDER, BRIEF)
    images = (await (await imgkeep.client.get("/api/images")).json())["images"]
    assert [(image["standing"], image["doubts"]) for image in images] == [("provisional", ["unsigned", "plaintext"])]


async def test_untrusted_certificate_is_no_https(start: Start, origin: FakeOrigin) -> None:
    other = FakeOrigin(ssl=server_context("another.example.com"))
    await other.start()
    internet = Internet(start, origin, other)
    imgkeep = await internet.imgkeep()
    shown = await show(imgkeep, HTTP)
    assert (shown.body, shown.caching) == (PLACEHOLDER, BRIEF)
    assert internet.asked == (1, 0)
    await other.stop()


async def test_at_another_port_too_http_does_not_stand_for_https(start: Start, origin: FakeOrigin) -> None:
    tls = FakeOrigin(ssl=server_context("img.example.com"))
    await tls.start()
    internet = Internet(start, origin, tls)
    imgkeep = await internet.imgkeep()
    plain, secure = (f"{scheme}://img.example.com:8443/a.png" for scheme in ("http", "https"))
    internet.dials.tls = origin  # an attacker on the way answers in the clear
    shown = await show(imgkeep, plain)
    assert (shown.body, shown.caching) == (PLACEHOLDER, FOREVER), "an http link is worth no more than its way"
    internet.dials.tls = tls
    shown = await show(imgkeep, secure)
    assert (shown.body, shown.caching) == (IMAGE, FOREVER)
    assert (await show(imgkeep, secure)).body == IMAGE
    await tls.stop()
