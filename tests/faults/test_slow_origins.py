"""Slow origins (fault matrix O11): every wait has an end, and no other client waits along."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from tests.support.images import make_image, png_of
from tests.support.network import PUBLIC, Dials, Names, counted, look, nothing_kept, until_counted
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin, Script
    from tests.support.server import Imgkeep

    StartImgkeep = Callable[..., Awaitable[Imgkeep]]

QUICK = {"connect_timeout_s": 0.4, "read_timeout_s": 0.4, "total_timeout_s": 0.8}
LIMIT_S = 15
"""Less than any default of these settings, and enough for a busy machine."""


async def never(exchange: Exchange) -> None:
    """Accept, read, and say nothing."""
    await exchange.gone()


def drip(data: bytes) -> Script:
    """Send byte by byte, sooner than the read timeout each time, and for much longer than the total."""

    async def script(exchange: Exchange) -> None:
        for position in range(len(data)):
            await exchange.send(data[position : position + 1])
            await asyncio.sleep(0.02)

    return script


def endless(data: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        while True:
            await exchange.send(data)
            await asyncio.sleep(0.02)  # the limit on the size must not come first

    return script


def stalls(data: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.gone()

    return script


async def is_fetched(imgkeep: Imgkeep, origin: FakeOrigin) -> bool:
    """Whether an image is fetched in time, if need be at another try: this machine may be slow as well."""
    for number in range(30):
        if (await look(imgkeep, origin.gives(f"/well{number}.png", make_image()))).status == 200:
            return True
    return False


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
BEFORE_THE_PICTURE = {
    "nothing": never,
    "a head byte by byte": drip(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"),
    "half a head": stalls(b"HTTP/1.1 200 OK\r\nContent-"),
    "a head without body": stalls(HEAD),
    "too little to judge, then nothing": stalls(HEAD + make_image()[:20]),
    "too little to judge, byte by byte": drip(HEAD + make_image()[:30]),
    "a chunk extension without end": stalls(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 100),
}


@pytest.mark.parametrize("script", BEFORE_THE_PICTURE.values(), ids=BEFORE_THE_PICTURE.keys())
async def test_slow_head_times_out_and_frees_its_slot(start: StartImgkeep, origin: FakeOrigin, script: Script) -> None:
    imgkeep = await start(fetch={**QUICK, "per_host_max": 1})
    url = origin.on("/slow.png", script)
    async with asyncio.timeout(LIMIT_S):
        seen = await look(imgkeep, url)
    assert (seen.status, seen.code) == (504, "origin_timeout")
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="origin_timeout"}') == 1
    await nothing_kept(imgkeep)
    assert await is_fetched(imgkeep, origin)


WITHIN_THE_PICTURE = {
    "byte by byte": drip(HEAD + png_of(100_000)[:2000]),
    "nothing more": stalls(HEAD + png_of(100_000)[:50_000]),
}


@pytest.mark.parametrize("script", WITHIN_THE_PICTURE.values(), ids=WITHIN_THE_PICTURE.keys())
async def test_body_that_stalls_times_out(start: StartImgkeep, origin: FakeOrigin, script: Script) -> None:
    imgkeep = await start(fetch={**QUICK, "per_host_max": 1})
    async with asyncio.timeout(LIMIT_S):
        seen = await look(imgkeep, origin.on("/slow.png", script))
    assert seen.broken or seen.status == 504
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="origin_timeout"}') == 1
    await nothing_kept(imgkeep)
    assert await is_fetched(imgkeep, origin)


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + png_of(100_000)[:50_000]], ids=["head", "body", "rest"])
async def test_silence_ends_with_the_read_timeout(start: StartImgkeep, origin: FakeOrigin, data: bytes) -> None:
    imgkeep = await start(fetch={"read_timeout_s": 0.3, "total_timeout_s": 60})
    async with asyncio.timeout(LIMIT_S):
        seen = await look(imgkeep, origin.on("/slow.png", stalls(data)))
    assert seen.broken or (seen.status, seen.code) == (504, "origin_timeout")
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="origin_timeout"}') == 1
    await nothing_kept(imgkeep)


async def test_endless_body_ends_by_time(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch=QUICK)
    body = png_of(5000)[:-12]

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Connection: close")
        await exchange.send(body)
        await endless(bytes(100))(exchange)

    async with asyncio.timeout(LIMIT_S):
        seen = await look(imgkeep, origin.on("/slow.png", script))
    assert seen.broken
    await nothing_kept(imgkeep)


async def test_missing_handshake_times_out(start: StartImgkeep, origin: FakeOrigin) -> None:
    # An origin without TLS that waits for a request line, as the client waits for a certificate.
    dials = Dials(origin, tls=origin)
    imgkeep = await start(platform=Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=dials), fetch=QUICK)
    async with asyncio.timeout(LIMIT_S):
        seen = await look(imgkeep, "https://example.com/a.png")
    assert (seen.status, seen.code) == (504, "origin_timeout")


async def test_hanging_host_fills_its_own_queue_only(start: StartImgkeep, origin: FakeOrigin) -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.answer(make_image())

    for number in range(5):
        origin.on(f"/{number}", script)
    origin.gives("/a.png", make_image())
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=Dials(origin))
    imgkeep = await start(platform=platform, fetch={"per_host_max": 1, "concurrent_max": 4, "allow_networks": []})
    waiting = [asyncio.create_task(look(imgkeep, f"http://slow.example.com:8080/{number}")) for number in range(5)]
    await until_counted(imgkeep, "imgkeep_fetches_waiting", 4)
    await until(lambda: len(origin.seen) == 1)
    refused = await look(imgkeep, "http://slow.example.com:8080/one-more")
    assert (refused.status, refused.code, refused.headers["Retry-After"]) == (503, "busy", "2")
    assert (await look(imgkeep, "http://quick.example.com:8080/a.png")).status == 200
    go_on.set()
    assert {seen.status for seen in await asyncio.gather(*waiting)} == {200}
    assert await counted(imgkeep, "imgkeep_fetches_waiting") == 0
    # Being busy is not a failure of the link.
    origin.gives("/one-more", make_image())
    assert (await look(imgkeep, "http://slow.example.com:8080/one-more")).status == 200


async def test_full_slots_return_busy_and_no_timeout(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={**QUICK, "per_host_max": 1})
    url = origin.gives("/a.png", make_image())
    async with imgkeep.client.app[SERVICES].image_service._dependencies.origin.limiter.enter("127.0.0.1"):
        seen = await look(imgkeep, url)
    assert (seen.status, seen.code, seen.headers["Retry-After"]) == (503, "busy", "2")
    assert (await look(imgkeep, url)).status == 200


async def test_shutdown_leaves_a_slow_origin(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start()
    asking = asyncio.create_task(imgkeep.img(origin.on("/slow.png", never)))
    await until(lambda: origin.seen)
    async with asyncio.timeout(20):
        await imgkeep.client.close()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever the client makes of a server that stops
        (await asking).raise_for_status()
    assert imgkeep.files("partial") == []


async def test_redirect_target_has_its_own_limit(start: StartImgkeep, origin: FakeOrigin) -> None:
    go_on = asyncio.Event()
    under_way = most = 0

    async def target(exchange: Exchange) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go_on.wait()
        under_way -= 1
        await exchange.answer(make_image())

    async def redirect(exchange: Exchange) -> None:
        where = f"http://target.example.com{exchange.target.replace('from', 'to')}"
        await exchange.answer(b"", status="302 Found", headers={"Location": where})

    for number in range(8):
        origin.on(f"/from{number}.png", redirect)
        origin.on(f"/to{number}.png", target)
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=Dials(origin))
    imgkeep = await start(platform=platform, fetch={"per_host_max": 2, "allow_networks": []})
    asking = [
        asyncio.create_task(look(imgkeep, f"http://host{number}.example.com/from{number}.png")) for number in range(8)
    ]
    await until_counted(imgkeep, "imgkeep_fetches_waiting", 6)
    await until(lambda: under_way == 2)
    go_on.set()
    assert {seen.status for seen in await asyncio.gather(*asking)} == {200}
    assert most == 2
    assert await counted(imgkeep, "imgkeep_fetches_waiting") == 0
