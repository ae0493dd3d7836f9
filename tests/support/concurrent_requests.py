"""Many requests for one image at the same time, and an origin that holds its response back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imgkeep.web.fastpath.protocol import FastConnection
from tests.support.image_requests import fast_path_of
from tests.support.images import png_of
from tests.support.raw_http import port_of, request, split
from tests.support.waiting import until

if TYPE_CHECKING:
    from imgkeep.web.fastpath.states import State
    from tests.support.origins import Exchange
    from tests.support.raw_http import Answer
    from tests.support.server import Imgkeep

IMAGE = png_of(200_000)
NUMBER = 40


class HeldResponse:
    """A response of an origin that waits for `begin` before its head, and for `end` before its last part."""

    def __init__(self, body: bytes = IMAGE, status: str = "200 OK") -> None:
        self.body, self.status = body, status
        self.begin, self.end = asyncio.Event(), asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.begin.wait()
        await exchange.send_head(f"Content-Length: {len(self.body)}", status=self.status)
        await exchange.send(self.body[:100_000])
        await self.end.wait()
        await exchange.send(self.body[100_000:])


def request_concurrently(
    imgkeep: Imgkeep, target: str, number: int = NUMBER, *fields: str
) -> list[asyncio.Task[bytes]]:
    data = request(target, *fields, close=False)
    port = port_of(imgkeep)
    return [asyncio.create_task(_whole(port, data)) for _ in range(number)]


async def _whole(port: int, data: bytes) -> bytes:
    """Return one response from a connection that stays open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        return head + await reader.readexactly(size)
    finally:
        writer.close()


def connections_of(imgkeep: Imgkeep) -> list[FastConnection]:
    """Return the open connections of a server that has the fast path."""
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert server is not None
    return [connection for connection in server.connections if isinstance(connection, FastConnection)]


def connections_in(imgkeep: Imgkeep, state: State) -> int:
    """Return how many connections are in a state."""
    return sum(connection._state is state for connection in connections_of(imgkeep))


async def until_following(imgkeep: Imgkeep, number: int) -> None:
    """Wait until so many requests follow another."""
    shared_responses = fast_path_of(imgkeep).shared_responses
    await until(lambda: shared_responses.followers >= number)


def split_all(answers: list[bytes]) -> list[Answer]:
    return [split(answer) for answer in answers]
