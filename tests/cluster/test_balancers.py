"""The balancers of `deploy/cluster/`: which node they choose, what they do without an answer, what they let through."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, TCPConnector
from yarl import URL

from tests.support.balancers import BALANCERS, balancing, check_example
from tests.support.images import make_image
from tests.support.origins import FakeOrigin
from tests.support.temporary_links import signed
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from tests.support.balancers import Balancer
    from tests.support.origins import Exchange
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

each_balancer = pytest.mark.parametrize("name", BALANCERS)

SIGNATURES = ("X-Amz-Date=1&X-Amz-Signature=aa", "X-Amz-Date=2&X-Amz-Signature=bb", "se=2026&sig=x%2By%3D")
FORGED = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7", "X-Real-IP": "198.51.100.7"}


class Node:
    """A node that answers every path of imgkeep, and notes what it was asked."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.server = FakeOrigin()
        self.ready = True
        self.breaks = False
        self.posted = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def start(self) -> None:
        await self.server.start()
        for path in ("/img", "/images/a.png", "/imgkeep.js", "/api/images", "/metrics"):
            self.server.on(path, self._answer)
        self.server.on("/readyz", self._tell_health)
        self.server.on("/api/save-image", self._take)

    def seen(self, path: str) -> list[Exchange]:
        return [exchange for exchange in self.server.seen if exchange.target.partition("?")[0] == path]

    async def _answer(self, exchange: Exchange) -> None:
        if self.breaks:
            exchange.reset()
        else:
            await exchange.answer(b"%d" % self.number)

    async def _tell_health(self, exchange: Exchange) -> None:
        await exchange.answer(b"{}", status="200 OK" if self.ready else "503 Service Unavailable")

    async def _take(self, exchange: Exchange) -> None:
        assert exchange.reader is not None
        await exchange.reader.readexactly(int(exchange.headers["content-length"]))
        self.posted += 1
        if self.breaks:
            exchange.reset()
        else:
            await exchange.answer(b"%d" % self.number)


class Client:
    """A client of a balancer."""

    def __init__(self, session: ClientSession, balancer: Balancer) -> None:
        self._session = session
        self._balancer = balancer

    async def ask(self, target: str, method: str = "GET", **how: Any) -> tuple[int, str]:
        """Return status and body."""
        url = URL(f"http://{self._balancer.address}{target}", encoded=True)
        async with self._session.request(method, url, **how) as response:
            return response.status, await response.text()

    async def nodes_of(self, links: Iterable[str]) -> dict[str, str]:
        """Return which node answers for each link."""
        found = {}
        for link in links:
            status, found[link] = await self.ask(link)
            assert status == 200
        return found


@asynccontextmanager
async def running_nodes(number: int) -> AsyncGenerator[list[Node]]:
    nodes = [Node(n) for n in range(number)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await node.start()
            stack.push_async_callback(node.server.stop)
        yield nodes


@asynccontextmanager
async def client_of(name: str, folder: Path, nodes: Iterable[Node], **how: Any) -> AsyncGenerator[Client]:
    async with (
        balancing(name, folder, [node.address for node in nodes], **how) as balancer,
        ClientSession() as session,
    ):
        yield Client(session, balancer)


@pytest.fixture
async def nodes() -> AsyncIterator[list[Node]]:
    async with running_nodes(3) as started:
        yield started


def encoded(url: str) -> str:
    return f"/img?src={quote(url, safe='')}"


def links(number: int) -> list[str]:
    return [encoded(f"https://images.example/v/{n}.png?sig={n}") for n in range(number)]


@each_balancer
async def test_example_has_no_mistake(tmp_path: Path, name: str) -> None:
    assert await check_example(name, tmp_path) == ""


@each_balancer
async def test_links_of_one_image_reach_one_node(tmp_path: Path, name: str, nodes: list[Node]) -> None:
    async with client_of(name, tmp_path / name, nodes) as client:
        spread = set()
        for n in range(12):
            place = f"https://images.example/v/{n}.png"
            written = [encoded(f"{place}?{signature}") for signature in SIGNATURES]
            written += [encoded(place), f"{written[0]}&sig=ours&exp=1", f"/img?w=3&src={written[1][9:]}"]
            raw = [f"/img?src={place}?{signature}" for signature in SIGNATURES]
            for forms in (written, raw):
                (node,) = set((await client.nodes_of(forms)).values())
                spread.add(node)
        assert len(spread) > 1
        # An image without `src` has a node as well, and the longest link gets through.
        assert len({await client.ask("/images/a.png") for _ in range(6)}) == 1
        assert (await client.ask(f"/img?src=https%3A%2F%2Fa.example%2Fa%3F{'%2B' * 11_900}"))[0] == 200


@each_balancer
async def test_few_links_move_when_a_node_dies_or_is_added(tmp_path: Path, name: str) -> None:
    asked = links(150)
    async with running_nodes(4) as nodes:
        async with client_of(name, tmp_path / "four", nodes) as client:
            four = await client.nodes_of(asked)
        async with client_of(name, tmp_path / "three", nodes[:3]) as client:
            three = await client.nodes_of(asked)
            await nodes[2].server.stop()
            two = await client.nodes_of(asked)
    # Consistent hashing moves links to the new node, or from the dead one, and no others; Maglev moves a few others.
    others_max = len(asked) // 15 if name == "envoy" else 0
    assert sum(four[link] not in {three[link], "3"} for link in asked) <= others_max
    assert 0.05 < sum(node == "3" for node in four.values()) / len(asked) < 0.55
    assert sum(two[link] != three[link] for link in asked if three[link] != "2") <= others_max
    assert {two[link] for link in asked if three[link] == "2"} == {"0", "1"}


@each_balancer
async def test_dead_node_is_no_error_for_a_client(tmp_path: Path, name: str, nodes: list[Node]) -> None:
    async with client_of(name, tmp_path / name, nodes) as client:
        asked = links(60)
        assert len(set((await client.nodes_of(asked)).values())) == 3
        # It dies with requests in its hands: no client has a byte of the answer yet.
        nodes[0].breaks = True
        assert set((await client.nodes_of(asked)).values()) == {"1", "2"}
        await nodes[0].server.stop()
        for _ in range(3):
            assert set((await client.nodes_of(asked)).values()) == {"1", "2"}
            assert (await client.ask("/api/images"))[0] == 200
            assert (await client.ask("/api/save-image", "POST", data=BytesIO(bytes(2_000_000))))[0] == 200


@each_balancer
async def test_save_is_not_repeated(tmp_path: Path, name: str, nodes: list[Node]) -> None:
    for node in nodes:
        node.breaks = True
    async with client_of(name, tmp_path / name, nodes) as client:
        assert (await client.ask("/api/save-image", "POST", data=b"{}"))[0] in {502, 503}
    assert sum(node.posted for node in nodes) == 1


@each_balancer
async def test_api_has_one_node_without_postgresql(tmp_path: Path, name: str, nodes: list[Node]) -> None:
    async with client_of(name, tmp_path / "shared", nodes) as client:
        assert {(await client.ask("/api/images"))[1] for _ in range(12)} == {"0", "1", "2"}
    async with client_of(name, tmp_path / "pinned", nodes, has_postgresql=False) as client:
        assert {(await client.ask("/api/images"))[1] for _ in range(12)} == {"0"}
        assert set((await client.nodes_of(links(60))).values()) == {"0", "1", "2"}


@each_balancer
async def test_client_cannot_claim_an_address_or_see_inside(tmp_path: Path, name: str, nodes: list[Node]) -> None:
    async with client_of(name, tmp_path / name, nodes) as client:
        for target in ("/readyz", "/metrics", "/", "/api", "/imgx"):
            assert (await client.ask(target))[0] == 404, target
        for target in (links(1)[0], "/api/images"):
            assert (await client.ask(target, headers=FORGED))[0] == 200
    (image,), (call,) = ([each for node in nodes for each in node.seen(path)] for path in ("/img", "/api/images"))
    for exchange in (image, call):
        client_address = exchange.headers["x-forwarded-for"].rpartition(",")[2].strip()
        # Envoy puts an address of the machine in the place of a loopback address.
        assert client_address != "198.51.100.7" if name == "envoy" else client_address == "127.0.0.1"
        assert not {"forwarded", "x-real-ip"} & exchange.headers.keys()
    assert not [node for node in nodes if node.seen("/metrics")]
    logs = [path.read_text() for path in (tmp_path / name).iterdir() if path.is_file() and "log" in path.name]
    assert not [text for text in logs if "sig" in text], "links are credentials"


@each_balancer
async def test_first_bytes_do_not_wait_for_the_last(tmp_path: Path, name: str, nodes: list[Node]) -> None:
    go = asyncio.Event()

    async def drip(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 8")
        await exchange.send(b"half")
        await go.wait()
        await exchange.send(b"half")

    for node in nodes:
        node.server.on("/img", drip)
    async with (
        balancing(name, tmp_path / name, [node.address for node in nodes]) as balancer,
        ClientSession() as session,
        session.get(f"http://{balancer.address}/img?src=a") as response,
    ):
        assert await response.content.readexactly(4) == b"half"
        go.set()
        assert await response.read() == b"half"


@pytest.mark.parametrize("name", ["haproxy", "envoy"])
async def test_node_that_drains_gets_no_requests(tmp_path: Path, name: str, nodes: list[Node]) -> None:
    # nginx asks no node for its health; it goes on to the next one when the listener is closed.
    async with client_of(name, tmp_path / name, nodes) as client:
        asked = links(60)
        nodes[1].ready = False

        async def is_skipped() -> bool:
            return "1" not in (await client.nodes_of(asked)).values()

        await until(is_skipped)
        nodes[1].ready = True

        async def is_asked() -> bool:
            return "1" in (await client.nodes_of(asked)).values()

        await until(is_asked)


@pytest.mark.parametrize(
    ("name", "hashes", "fetches"), [("nginx", False, 15), ("nginx", True, 5), ("haproxy", True, 5), ("envoy", True, 5)]
)
async def test_hashing_saves_fetches_of_nodes_without_database(
    tmp_path: Path, start: Start, origin: FakeOrigin, name: str, fetches: int, *, hashes: bool
) -> None:
    servers = [await start(folder=tmp_path / str(n)) for n in range(3)]
    addresses = [f"{server.client.host}:{server.client.port}" for server in servers]
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(5)]
    queries = [signed(f"20261122T0930{n:02}Z").partition("?")[2] for n in range(12)]
    asked = [encoded(f"{url}?{query}") for url in urls for query in queries]
    async with (
        balancing(name, tmp_path / name, addresses, hashes=hashes) as balancer,
        ClientSession(connector=TCPConnector(limit=0)) as session,
    ):

        async def fetch(link: str) -> int:
            async with session.get(URL(f"http://{balancer.address}{link}", encoded=True)) as response:
                await response.read()
                return response.status

        assert Counter(await asyncio.gather(*map(fetch, asked))) == {200: 60}
    assert sum(origin.asked(f"/{n}.png") for n in range(5)) == fetches
