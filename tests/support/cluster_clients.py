"""Clients of a cluster's nodes: many that read one image at once, and one that asks a node or all in turn."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from tests.support.cluster_nodes import TOKEN
from tests.support.program import Answer
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from tests.support.cluster_nodes import Node, Nodes
    from tests.support.counted_origin import CountedOrigin


@dataclass
class Received:
    """
    What a client received, byte for byte compared with what it should receive.

    Attributes:
        first_s: When the first byte of the body came, by the monotonic clock.
        size: Number of bytes of the body.
        is_right: Whether all of them were the expected ones.
    """

    expected: bytes
    status: int = 0
    etag: str = ""
    cache_status: str = ""
    first_s: float = 0
    size: int = 0
    is_right: bool = True

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.is_right and self.size == len(self.expected)


class _Reader(asyncio.Protocol):
    """A connection for one image: nothing is collected, so that hundreds of them cost little."""

    def __init__(self, received: Received, request: bytes, ended: asyncio.Future[None]) -> None:
        self._received = received
        self._request = request
        self._ended = ended
        self._head = b""
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._in_body = True
            self._read_head(head.decode("latin-1"))
        if data:
            self._read_body(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._received.is_right &= error is None
        self._ended.set_result(None)

    def _read_head(self, head: str) -> None:
        line, *fields = head.split("\r\n")
        values = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
        self._received.status = int(line.split()[1])
        self._received.etag = values.get("etag", "")
        self._received.cache_status = values.get("cache-status", "")

    def _read_body(self, data: bytes) -> None:
        received = self._received
        received.first_s = received.first_s or time.monotonic()
        received.is_right &= received.expected[received.size : received.size + len(data)] == data
        received.size += len(data)


async def read_at_once(address: str, url: str, expected: bytes, *, number: int) -> list[Received]:
    """Ask for an image on so many connections at once, and read all answers to their ends."""
    host, _, port = address.partition(":")
    target = f"/img?src={quote(url, safe='')}"
    request = f"GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    answers = [Received(expected) for _ in range(number)]
    ends = [loop.create_future() for _ in answers]
    readers = [_Reader(answer, request, end) for answer, end in zip(answers, ends, strict=True)]
    await asyncio.gather(*(loop.create_connection(partial(_give, one), host, int(port)) for one in readers))
    await asyncio.gather(*ends)
    return answers


def _give(reader: _Reader) -> _Reader:
    return reader


@dataclass
class Client:
    """Asks nodes, by nginx or by their own addresses, and shows a token to all but images."""

    nodes: Nodes
    session: aiohttp.ClientSession = field(repr=False)

    async def ask(
        self,
        path: str,
        at: Node | str | None = None,
        method: str = "GET",
        *,
        fields: Mapping[str, str] | None = None,
        **how: Any,
    ) -> Answer:
        """Ask a node or an address, or the next node by nginx."""
        address = at or self.nodes.proxy
        if not isinstance(address, str):
            address = address.address
        if fields is None:
            fields = {} if path.startswith("/img") else {"Authorization": f"Bearer {TOKEN}"}
        url = URL(f"http://{address}{path}", encoded=True)
        async with self.session.request(method, url, headers=fields, **how) as response:
            return Answer(response.status, response.headers, await response.read())

    async def img(self, url: str, at: Node | None = None) -> Answer:
        return await self.ask(f"/img?src={quote(url, safe='')}", at)

    async def remove(self, url: str, at: Node | None = None) -> Answer:
        return await self.ask(f"/api/images?src={quote(url, safe='')}", at, "DELETE")

    async def post_job(self, urls: list[str], at: Node | None = None, **more: Any) -> str:
        """Have links saved in the background; return the id of the job."""
        answer = await self.ask("/api/save-images", at, "POST", json={"urls": urls, **more})
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    async def job(self, number: str, at: Node | None = None) -> dict[str, Any]:
        answer = await self.ask(f"/api/jobs/{number}", at)
        assert answer.status == 200, answer.body
        job: dict[str, Any] = answer.json
        return job

    async def until_done(self, number: str, at: Node | None = None, *, within_s: float = 60) -> dict[str, Any]:
        async def is_done() -> bool:
            answer = await self.ask(f"/api/jobs/{number}?limit=1", at)
            if answer.status in {502, 504}:  # by nginx, where the node that it asked was killed
                return False
            return bool(answer.json["state"] == "done")

        await until(is_done, within_s=within_s)
        return await self.job(number, at)

    async def metric(self, pattern: str, at: Node) -> float:
        """Return the sum of a node's samples whose names and labels begin so."""
        page = (await self.ask("/metrics", at)).body.decode()
        return sum(float(value) for value in re.findall(rf"^{pattern}[^ ]* (\S+)$", page, re.MULTILINE))


@asynccontextmanager
async def client_of(nodes: Nodes) -> AsyncGenerator[Client]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield Client(nodes, session)


@asynccontextmanager
async def load(
    client: Client, origin: CountedOrigin, stored: Sequence[str], *, interval_s: float
) -> AsyncGenerator[Counter[str]]:
    """Ask for a stored and a new image in each interval until the end of the block; count good answers, and others."""
    answers: Counter[str] = Counter()
    numbers = count()
    over = asyncio.Event()

    async def ask(kind: str, url: str) -> None:
        try:
            answer = await client.img(url)
        except (aiohttp.ClientError, TimeoutError) as error:
            answers[f"{kind}: {type(error).__name__}"] += 1
        else:
            answers[kind if answer.status == 200 else f"{kind}: {answer.status} {answer.body!r}"] += 1

    async def ask_in_turn() -> None:
        async with asyncio.TaskGroup() as group:
            while not over.is_set():
                number = next(numbers)
                group.create_task(ask("stored", stored[number % len(stored)]))
                group.create_task(ask("new", origin.gives(f"/new/{number}.png")))
                await asyncio.sleep(interval_s)

    asking = asyncio.create_task(ask_in_turn())
    try:
        yield answers
    finally:
        over.set()
        await asking
