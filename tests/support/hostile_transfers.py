"""Transfers of hostile images: an origin whose body has no frame, and a client that reads what comes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import ClientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange
    from tests.support.server import Imgkeep


def unframed(body: bytes) -> Callable[[Exchange], Awaitable[None]]:
    """Answer with a body that ends with the connection, so that its own end has to prove it whole."""

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Connection: close")
        await exchange.send(body)
        exchange.finish()

    return script


async def read(imgkeep: Imgkeep, url: str) -> int:
    """Read an image as far as it comes; return the number of bytes."""
    size = 0
    with suppress(ClientError):
        async for piece in (await imgkeep.img(url)).content.iter_any():
            size += len(piece)
    return size
