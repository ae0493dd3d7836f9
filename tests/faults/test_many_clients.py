"""Many clients, one fetch; clients that leave; connections that the origin closed meanwhile (O13 to O16)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.images import make_image, png_of
from tests.support.network import look, until_counted
from tests.support.waiting import until

if TYPE_CHECKING:
    from yarl import URL

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep


def img_url(imgkeep: Imgkeep, url: str) -> URL:
    return imgkeep.client.make_url("/img").with_query(src=url)


async def test_client_notices_no_connection_that_the_origin_closed(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    first = origin.gives("/a.png", make_image(seed=1))

    async def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.finish()
        else:
            await exchange.answer(make_image(seed=2))

    second = origin.on("/b.png", script)
    assert (await look(imgkeep, first)).status == 200
    seen = await look(imgkeep, second)
    assert (seen.status, seen.body) == (200, make_image(seed=2))
    assert (origin.connections, origin.asked("/b.png")) == (2, 2)
    assert len(imgkeep.files("objects")) == 2


@pytest.mark.parametrize("clients", [100, 1000])
async def test_concurrent_requests_share_one_fetch_and_start_before_its_end(
    imgkeep: Imgkeep, origin: FakeOrigin, clients: int
) -> None:
    body = png_of(200_000)
    all_have_heads = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        await exchange.send(body[:50_000])
        await all_have_heads.wait()
        await exchange.send(body[50_000:])

    target = img_url(imgkeep, origin.on("/a.png", script))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(session.get(target) for _ in range(clients)))
        all_have_heads.set()
        bodies = await asyncio.gather(*(answer.read() for answer in answers))
    assert {answer.status for answer in answers} == {200}
    assert set(bodies) == {body}
    assert origin.asked("/a.png") == 1
    outcomes = [answer.headers["Cache-Status"] for answer in answers]
    assert outcomes.count("imgkeep; fwd=uri-miss; stored") == 1
    assert outcomes.count("imgkeep; fwd=uri-miss; collapsed") == clients - 1
    assert len({answer.headers["ETag"] for answer in answers}) == 1
    await until_counted(imgkeep, 'imgkeep_fills_total{outcome="stored"}', 1)
    assert [path.read_bytes() for path in imgkeep.files("objects")] == [body]


async def test_one_failed_fetch_fails_all_its_followers(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.answer(b"", status="404 Not Found")

    url = origin.on("/a.png", script)
    asking = [asyncio.create_task(look(imgkeep, url)) for _ in range(50)]
    await until(lambda: origin.seen)
    go_on.set()
    assert {(seen.status, seen.code) for seen in await asyncio.gather(*asking)} == {(404, "source_not_found")}
    assert origin.asked("/a.png") == 1


async def test_different_links_do_not_wait_for_each_other(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.answer(make_image())

    slow = asyncio.create_task(look(imgkeep, origin.on("/slow.png", script)))
    await until(lambda: origin.seen)
    assert (await look(imgkeep, origin.gives("/a.png", make_image()))).status == 200
    go_on.set()
    assert (await slow).status == 200


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("followers", [0, 1, 5])
async def test_fill_continues_when_its_first_client_leaves(
    imgkeep: Imgkeep, origin: FakeOrigin, followers: int
) -> None:
    body = png_of(400_000)
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        await exchange.send(body[:200_000])
        await left.wait()
        await exchange.send(body[200_000:])

    url = origin.on("/a.png", script)
    async with aiohttp.ClientSession() as leader, aiohttp.ClientSession() as others:
        answer = await leader.get(img_url(imgkeep, url))
        await answer.content.readexactly(100_000)
        # A client that has a head follows the fill.
        following = await asyncio.gather(*(others.get(img_url(imgkeep, url)) for _ in range(followers)))
        answer.close()
        left.set()
        assert [await follower.read() == body for follower in following] == [True] * followers
    await until_counted(imgkeep, 'imgkeep_fills_total{outcome="stored"}', 1)
    again = await look(imgkeep, url)
    assert (again.body, again.headers["Cache-Status"]) == (body, "imgkeep; hit")
    assert origin.asked("/a.png") == 1
    await until(lambda: not imgkeep.files("partial"))


async def test_fill_without_clients_stores_the_whole_image(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(400_000)
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}", "Connection: close")
        await exchange.send(body[:200_000])
        await left.wait()
        await exchange.send(body[200_000:])
        exchange.finish()

    url = origin.on("/a.png", script)
    await look(imgkeep, origin.gives("/warm.png", make_image(), headers={"Connection": "close"}))
    tasks, open_before = len(asyncio.all_tasks()), descriptors()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as clients:
        answers = await asyncio.gather(*(clients.get(img_url(imgkeep, url)) for _ in range(20)))
        for answer in answers:
            answer.close()
    left.set()
    await until(lambda: len(imgkeep.files("records")) == 2)
    assert {path.stat().st_size for path in imgkeep.files("objects")} == {len(body), len(make_image())}
    # No task, no descriptor, no draft is left of them.
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: descriptors() <= open_before)
    await until_counted(imgkeep, "imgkeep_fills_in_flight", 0)
    await until(lambda: not imgkeep.files("partial"))


async def test_failed_fill_without_clients_leaves_nothing(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(400_000)
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        await exchange.send(body[:200_000])
        await left.wait()
        exchange.reset()

    url = origin.on("/a.png", script)
    await look(imgkeep, origin.gives("/warm.png", make_image(), headers={"Connection": "close"}))
    tasks, open_before = len(asyncio.all_tasks()), descriptors()
    async with aiohttp.ClientSession() as client:
        (await client.get(img_url(imgkeep, url))).close()
    left.set()
    await until_counted(imgkeep, 'imgkeep_fills_total{outcome="origin_error"}', 1)
    await until(lambda: not imgkeep.files("partial"))
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: descriptors() <= open_before)
    assert len(imgkeep.files("objects")) == 1


async def test_client_that_leaves_before_the_answer_stops_no_fill(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await left.wait()
        await exchange.answer(make_image())

    url = origin.on("/a.png", script)
    asking = asyncio.create_task(look(imgkeep, url))
    await until(lambda: origin.seen)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    left.set()
    await until_counted(imgkeep, 'imgkeep_fills_total{outcome="stored"}', 1)
    assert (await look(imgkeep, url)).headers["Cache-Status"] == "imgkeep; hit"
    assert origin.asked("/a.png") == 1
