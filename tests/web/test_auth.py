"""Access through the whole program: signatures, tokens, and the rate limiter."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.signing import signed_path
from imgkeep.images.fill_rate_limit import WIDE_NETWORK_FACTOR
from tests.support.api_calls import problem_code
from tests.support.clock import FakeClock
from tests.support.fakes import Timer
from tests.support.images import make_image
from tests.support.raw_http import ask
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import ClientResponse

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

KEY, OLD_KEY = "key-of-these-tests", "their-former-key"
TOKEN, OTHER_TOKEN = "token-of-these-tests", "another-good-token"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def signing(mode: str, **more: Any) -> dict[str, Any]:
    return {"signature": mode, "signing_keys": [KEY, OLD_KEY], **more}


async def request_path(imgkeep: Imgkeep, path: str, **how: Any) -> ClientResponse:
    return await imgkeep.client.get(URL(path, encoded=True), **how)


# --- signatures


async def test_unsigned_link_shows_stored_images_alone(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(security=signing("misses"))
    url = origin.gives("/a.png", make_image())
    assert await problem_code(await imgkeep.img(url)) == (403, "signature_required")
    assert origin.seen == []
    assert await (await request_path(imgkeep, signed_path(OLD_KEY, url))).read() == make_image()
    response = await imgkeep.img(url)
    assert await response.read() == make_image()
    assert response.headers["Cache-Status"] == "imgkeep; hit"


async def test_unsigned_request_joins_no_fill(start: Start, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(make_image())

    imgkeep = await start(security=signing("misses"))
    url = origin.on("/a.png", slow)
    signed = asyncio.create_task(request_path(imgkeep, signed_path(KEY, url)))
    await until(lambda: origin.asked("/a.png"))
    assert await problem_code(await imgkeep.img(url)) == (403, "signature_required")
    go.set()
    assert (await signed).status == 200


async def test_signature_always_required_ends_with_its_time(start: Start, origin: FakeOrigin) -> None:
    clock = FakeClock()
    imgkeep = await start(security=signing("always"), platform=Platform(clock=clock))
    url = origin.gives("/a.png", make_image())
    end = int((NOON + timedelta(seconds=600)).timestamp())
    path = signed_path(KEY, url, expires=end)
    tags = []
    for _ in range(2):
        response = await request_path(imgkeep, path)
        assert await response.read() == make_image()
        assert response.headers["Cache-Control"] == "public, max-age=600"
        tags.append(response.headers["ETag"])
    unchanged = await request_path(imgkeep, path, headers={"If-None-Match": tags[0]})
    assert (unchanged.status, unchanged.headers["Cache-Control"]) == (304, "public, max-age=600")
    assert await problem_code(await imgkeep.img(url)) == (403, "signature_required")
    assert await problem_code(await request_path(imgkeep, path.replace("sig=", "sig=x"))) == (403, "signature_invalid")
    clock.now += timedelta(seconds=600)
    assert await problem_code(await request_path(imgkeep, path)) == (403, "signature_expired")
    forever = await request_path(imgkeep, signed_path(KEY, url))
    assert forever.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    permanent = await imgkeep.client.get(forever.headers["Content-Location"])
    assert await permanent.read() == make_image()
    assert origin.asked("/a.png") == 1


async def test_signed_link_may_stand_unencoded(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(security=signing("always"))
    url = origin.gives("/a.png", make_image()) + "?w=1"
    sig = signed_path(KEY, url).rpartition("sig=")[2]
    assert (await ask(imgkeep, f"/img?sig={sig}&src={url}")).status == 200


# --- the API


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer  {OTHER_TOKEN} "}, 200),
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Bearer {TOKEN} {TOKEN}"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": "Bearer \u00fc\u00fc"}, 401),
    ],
)
async def test_token_opens_the_api(start: Start, headers: dict[str, str], status: int) -> None:
    security = {"api_tokens": [TOKEN, OTHER_TOKEN]}
    for host in ("127.0.0.1", "0.0.0.0"):
        imgkeep = await start(server={"host": host}, security=security)
        response = await imgkeep.stranger.get("/api/inspect?src=https://a.example/", headers=headers)
        assert response.status == status
        if status == 401:
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
            assert TOKEN not in await response.text()


# --- rate limiter


def from_client(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


BEHIND_A_PROXY: dict[str, Any] = {"server": {"trusted_proxies": ["127.0.0.0/8"]}, "sources": {"allow": ["*"]}}


async def test_rate_limit_counts_each_client(start: Start, origin: FakeOrigin) -> None:
    timer = Timer()
    imgkeep = await start(**BEHIND_A_PROXY, limits={"fills_per_minute": 3}, platform=Platform(timer=timer))
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(5)]

    async def fetch(n: int, address: str) -> ClientResponse:
        return await imgkeep.img(urls[n], headers=from_client(address))

    for n in range(3):
        assert (await fetch(n, "192.0.2.1")).status == 200
    refused = await fetch(3, "192.0.2.1")
    assert await problem_code(refused) == (429, "rate_limited")
    assert refused.headers["Retry-After"] == "20"
    assert (await fetch(0, "192.0.2.1")).status == 200, "a hit costs nothing"
    assert (await fetch(3, "192.0.2.2")).status == 200
    timer.seconds += 20
    assert (await fetch(4, "192.0.2.1")).status == 200


async def test_ipv6_network_is_one_client(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(**BEHIND_A_PROXY, limits={"fills_per_minute": 1})
    for n, (address, status) in enumerate([("2001:db8::1", 200), ("2001:db8::2", 429), ("2001:db8:0:1::1", 200)]):
        url = origin.gives(f"/{n}.png", make_image(seed=n))
        assert (await imgkeep.img(url, headers=from_client(address))).status == status


async def test_client_with_a_token_is_not_limited(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(limits={"fills_per_minute": 1})
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(6)]
    token = {"Authorization": f"Bearer {imgkeep.token}"}
    assert [(await imgkeep.img(url, headers=token)).status for url in urls[:3]] == [200] * 3
    wrong = {"Authorization": f"Bearer {imgkeep.token}x"}
    answers = [await imgkeep.img(url, headers=how) for url, how in ((urls[3], {}), (urls[4], {}), (urls[5], wrong))]
    assert [response.status for response in answers] == [200, 429, 429], "local or not"
    assert "server.trusted_proxies" in (await answers[1].json())["detail"]


async def test_ipv6_site_is_limited_as_a_whole(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(**BEHIND_A_PROXY, limits={"fills_per_minute": 1})
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(WIDE_NETWORK_FACTOR + 2)]
    addresses = [*(f"2001:db8:0:{n:x}::1" for n in range(WIDE_NETWORK_FACTOR + 1)), "2001:db8:1::1"]
    answers = [
        await imgkeep.img(url, headers=from_client(address)) for url, address in zip(urls, addresses, strict=True)
    ]
    assert [response.status for response in answers] == [*[200] * WIDE_NETWORK_FACTOR, 429, 200]


async def test_ipv4_mapped_address_is_the_ipv4_client(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(**BEHIND_A_PROXY, limits={"fills_per_minute": 1})
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(2)]
    for url, address, status in zip(urls, ("192.0.2.1", "::ffff:192.0.2.1"), (200, 429), strict=True):
        assert (await imgkeep.img(url, headers=from_client(address))).status == status


async def test_concurrent_fills_count_until_their_end(start: Start, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(make_image(seed=int(exchange.target[1])))

    imgkeep = await start(**BEHIND_A_PROXY, limits={"fills_concurrent": 2})
    urls = [origin.on(f"/{n}.png", slow) for n in range(3)]
    here = from_client("192.0.2.1")
    waiting = [asyncio.create_task(imgkeep.img(url, headers=here)) for url in urls[:2]]
    await until(lambda: len(origin.seen) >= 2)
    assert await problem_code(await imgkeep.img(urls[2], headers=here)) == (429, "rate_limited")
    joining = asyncio.create_task(imgkeep.img(urls[0], headers=here))
    go.set()
    for n, task in ((0, waiting[0]), (1, waiting[1]), (0, joining)):
        assert await (await task).read() == make_image(seed=n)
    assert (await imgkeep.img(urls[2], headers=here)).status == 200


async def test_bytes_of_failed_fills_count(start: Start, origin: FakeOrigin) -> None:
    timer = Timer()
    body = make_image()
    limits = {"fill_bytes_per_day": len(body) + 10}
    imgkeep = await start(**BEHIND_A_PROXY, limits=limits, platform=Platform(timer=timer))
    here = from_client("192.0.2.1")
    for n in range(2):
        response = await imgkeep.img(origin.gives(f"/{n}.png", body), headers=here)
        assert await response.read() == body
    refused = await imgkeep.img(origin.gives("/2.png", body), headers=here)
    assert await problem_code(refused) == (429, "rate_limited")
    timer.seconds += int(refused.headers["Retry-After"])
    assert (await imgkeep.img(origin.gives("/2.png", body), headers=here)).status == 200


async def test_page_of_a_hundred_images_is_within_the_defaults(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(**BEHIND_A_PROXY)
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(100)]
    browser = asyncio.Semaphore(6)  # what browsers have open to one host over HTTP/1.1

    async def fetch(url: str) -> int:
        async with browser:
            response = await imgkeep.img(url, headers=from_client("192.0.2.1"))
            await response.read()
            return response.status

    assert set(await asyncio.gather(*map(fetch, urls))) == {200}
