"""Requests to origins over connections that stay open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.images import make_image
from tests.support.raw_http import ask, target_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]


async def test_connection_is_reused(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    for n in range(5):
        body = make_image(seed=n)
        assert (await ask(imgkeep, target_of(origin.gives(f"/{n}.png", body)))).body == body
    assert origin.connections == 1


@pytest.mark.parametrize("end", ["finish", "reset"])
async def test_stale_connection_is_replaced(start: Start, origin: FakeOrigin, end: str) -> None:
    imgkeep = await start(fetch={"retries_max": 0})

    async def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            getattr(exchange, end)()
        else:
            await exchange.answer(make_image(seed=1))

    assert (await ask(imgkeep, target_of(origin.gives("/a.png", make_image())))).status == 200
    assert (await ask(imgkeep, target_of(origin.on("/b.png", script)))).body == make_image(seed=1)
    assert (origin.asked("/b.png"), origin.connections) == (2, 2)


async def test_origin_that_always_closes_fails(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 0})

    async def script(exchange: Exchange) -> None:
        exchange.finish()

    assert (await ask(imgkeep, target_of(origin.on("/a.png", script)))).status == 502
    assert origin.asked("/a.png") == 2


async def test_interim_answers_are_skipped(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Link: </a.css>; rel=preload", status="103 Early Hints")
        await exchange.send_head(status="100 Continue")
        await exchange.answer(make_image())

    assert (await ask(imgkeep, target_of(origin.on("/a.png", script)))).body == make_image()
    assert (await ask(imgkeep, target_of(origin.gives("/b.png", make_image(seed=1))))).body == make_image(seed=1)
    assert origin.connections == 1


async def test_switch_of_protocols_is_no_answer(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 0})

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Upgrade: x", "Connection: upgrade", status="101 Switching Protocols")
        await exchange.send(make_image())

    assert (await ask(imgkeep, target_of(origin.on("/a.png", script)))).status == 502
    assert (await ask(imgkeep, target_of(origin.gives("/b.png", make_image(seed=1))))).body == make_image(seed=1)
    assert origin.connections == 2


@pytest.mark.parametrize("target", ["/a.png?", "/a.png?b=%7e&&c==", "//a/../a.png", "/a%2fb.png?x=/../y&z=a+b%20c"])
async def test_request_target_goes_out_byte_for_byte(start: Start, origin: FakeOrigin, target: str) -> None:
    imgkeep = await start()
    await ask(imgkeep, target_of(origin.url(target)))
    assert [exchange.target for exchange in origin.seen] == [target]
