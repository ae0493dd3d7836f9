"""Clients that take all they can get of what is shared: fetches, queues, the bucket, connections. Others are served."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.records import OWN, Client
from imgkeep.origin.concurrency import CLIENT_PART, HOST_PART, QUEUE_PER_SLOT, RESERVED_PART, FetchLimiter
from imgkeep.origin.demand import Demand
from imgkeep.web.connection import CONNECTIONS
from imgkeep.web.connection_limit import ConnectionLimit
from tests.support.images import make_image, png_of
from tests.support.network import Dials, Names, Timer, counted, look, until_counted
from tests.support.raw_http import port_of, request, target_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

PUBLIC = "93.184.215.14"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


def at(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


async def open_server(start: Start, origin: FakeOrigin, **fetch: Any) -> Imgkeep:
    """Start an imgkeep behind a trusted proxy, to which every name leads to `origin`."""
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=Dials(origin))
    return await start(
        platform=platform,
        server={"trusted_proxies": ["127.0.0.0/8"]},
        fetch={"allow_networks": [], **fetch},
        limits={"fills_concurrent": 0, "fills_per_minute": 0},
    )


def limiter_of(imgkeep: Imgkeep) -> FetchLimiter:
    limiter = imgkeep.client.app[SERVICES].image_service._dependencies.origin.limiter
    assert isinstance(limiter, FetchLimiter)
    return limiter


class Flood:
    """A client that asks for as many images of dripping origins as it likes, over a connection each."""

    def __init__(self, imgkeep: Imgkeep, address: str, *, version: str = "1.1") -> None:
        self.imgkeep = imgkeep
        self.version = version
        self.address = address
        self.name = "n" + "-".join(str(ord(each)) for each in address[-12:])
        self.tasks: list[asyncio.Task[None]] = []
        self.writers: list[asyncio.StreamWriter] = []

    def ask(self, number: int, *, host: str = "", what: str = "drip") -> None:
        for n in range(number):
            url = f"http://{host or f'h{n}.{self.name}.example.com'}/{what}?{self.name}-{len(self.tasks)}"
            self.tasks.append(asyncio.create_task(self._ask(url)))

    async def _ask(self, url: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(self.imgkeep))
        self.writers.append(writer)
        writer.write(request(target_of(url), f"X-Forwarded-For: {self.address}", version=self.version, close=False))
        with suppress(ConnectionError):
            while await reader.read(65_536):
                pass

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def drips(origin: FakeOrigin) -> FakeOrigin:
    """An origin that begins an image under `/drip` and goes on when told; other paths are images."""

    async def drip(exchange: Exchange) -> None:
        await exchange.send(HEAD + png_of(100_000)[:2000])
        await exchange.gone()

    async def silent(exchange: Exchange) -> None:
        await exchange.gone()

    origin.on("/drip", drip)
    origin.on("/silent", silent)
    for n in range(100):
        origin.gives(f"/{n}.png", make_image(seed=n))
    return origin


async def test_dripping_origins_of_two_clients_leave_slots_for_others(start: Start, drips: FakeOrigin) -> None:
    imgkeep = await open_server(start, drips)
    floods = [Flood(imgkeep, "203.0.113.1"), Flood(imgkeep, "203.0.113.2")]
    for flood in floods:
        flood.ask(60)
    limiter = limiter_of(imgkeep)
    await until(lambda: drips.asked("/drip") == 2 * 64 // CLIENT_PART)
    # An eighth of the places each, an eighth of the queue each, and the rest is refused.
    assert (limiter.used, limiter.waiting) == (2 * 8, 2 * 32)
    assert await counted(imgkeep, 'imgkeep_refused_total{limit="client_queue"}') == 2 * (60 - 8 - 32)
    for n in range(20):
        assert (await look(imgkeep, f"http://host{n}.example.com/{n}.png", headers=at("198.51.100.7"))).status == 200
    record, created = await imgkeep.client.app[SERVICES].image_service.save(
        *_source(imgkeep, "http://own.example.com/50.png")
    )
    assert (record.size, created) == (len(make_image(seed=50)), True)
    assert drips.asked("/drip") == 16, "the attack goes on"
    for flood in floods:
        await flood.leave()


def _source(imgkeep: Imgkeep, url: str) -> tuple[Any, Any]:
    from imgkeep.core.source_url import read_source  # noqa: PLC0415

    source = read_source(url)
    return source, imgkeep.client.app[SERVICES].image_service.identify(source)


# Over HTTP/1.0 a request bypasses the fast path.
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("what", ["drip", "silent"])
async def test_abandoned_fetch_yields_to_one_that_waits(
    start: Start, drips: FakeOrigin, what: str, version: str
) -> None:
    # Eight places: one for each of seven networks, and one reserved.
    imgkeep = await open_server(start, drips, concurrent_max=8)
    floods = [Flood(imgkeep, f"203.0.113.{n}", version=version) for n in range(7)]
    for flood in floods:
        flood.ask(1, what=what)
    await until(lambda: drips.asked(f"/{what}") == 7)
    waiting = asyncio.create_task(look(imgkeep, "http://host.example.com/1.png", headers=at("198.51.100.7")))
    await until_counted(imgkeep, "imgkeep_fetches_waiting", 1)
    assert drips.asked("/1.png") == 0, "as long as the seven are there, it waits"
    await floods[0].leave()
    assert (await waiting).status == 200
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="yielded"}') == 1
    await until_counted(imgkeep, "imgkeep_fills_in_flight", 6)
    assert len(imgkeep.files("objects")) == 1
    # It left nothing behind, and is no failure: the next request for it is a fetch of its own.
    again = Flood(imgkeep, "203.0.113.0", version=version)
    again.ask(1, what=what)
    await until(lambda: drips.asked(f"/{what}") == 8)
    for flood in [*floods, again]:
        await flood.leave()


async def test_abandoned_fetch_continues_while_no_other_waits(start: Start, origin: FakeOrigin) -> None:
    goes_on = asyncio.Event()
    body = png_of(100_000)

    async def script(exchange: Exchange) -> None:
        await exchange.send(HEAD + body[:2000])
        await goes_on.wait()
        await exchange.send(body[2000:])

    origin.on("/drip", script)
    imgkeep = await open_server(start, origin)
    flood = Flood(imgkeep, "203.0.113.1")
    flood.ask(3)
    await until(lambda: origin.asked("/drip") == 3)
    await flood.leave()
    goes_on.set()
    await until_counted(imgkeep, 'imgkeep_fills_total{outcome="stored"}', 3)


async def test_queued_fetch_ends_with_its_client(start: Start, drips: FakeOrigin) -> None:
    imgkeep = await open_server(start, drips, concurrent_max=8)
    flood = Flood(imgkeep, "203.0.113.1")
    flood.ask(5)
    await until_counted(imgkeep, "imgkeep_fetches_waiting", 4)
    await until(lambda: drips.asked("/drip") == 1)
    await flood.leave()
    await until_counted(imgkeep, "imgkeep_fetches_waiting", 0)
    assert drips.asked("/drip") == 1, "none of them was begun"


async def test_fetch_that_is_nearly_complete_does_not_yield(start: Start, origin: FakeOrigin) -> None:
    goes_on = asyncio.Event()
    body = png_of(100_000)

    async def script(exchange: Exchange) -> None:
        await exchange.send(HEAD + body[:60_000])
        await goes_on.wait()
        await exchange.send(body[60_000:])

    origin.on("/most", script)
    origin.gives("/1.png", make_image())
    imgkeep = await open_server(start, origin, concurrent_max=1)
    flood = Flood(imgkeep, "203.0.113.1")
    flood.ask(1, what="most")
    await until(lambda: origin.asked("/most") == 1)
    fill = next(iter(imgkeep.client.app[SERVICES].image_service._fills.running))
    await until(lambda: fill.body.written == 60_000)
    await flood.leave()
    waiting = asyncio.create_task(look(imgkeep, "http://host.example.com/1.png", headers=at("198.51.100.7")))
    await until_counted(imgkeep, "imgkeep_fetches_waiting", 1)
    goes_on.set()
    assert (await waiting).status == 200
    await until_counted(imgkeep, 'imgkeep_fills_total{outcome="stored"}', 2)


async def test_one_client_cannot_fill_a_host_or_its_queue(start: Start, drips: FakeOrigin) -> None:
    imgkeep = await open_server(start, drips)
    flood = Flood(imgkeep, "203.0.113.1")
    flood.ask(60, host="shared.example.com", what="silent")
    await until(lambda: drips.asked("/silent") == 16 // HOST_PART)
    for n in range(5):
        assert (await look(imgkeep, f"http://shared.example.com/{n}.png", headers=at("198.51.100.7"))).status == 200
    assert drips.asked("/silent") == 16 // HOST_PART
    await flood.leave()


async def test_fetch_that_waits_for_its_share_holds_no_host_slot(start: Start, drips: FakeOrigin) -> None:
    imgkeep = await open_server(start, drips)
    floods = [Flood(imgkeep, f"203.0.113.{n}") for n in range(5)]
    for flood in floods:
        flood.ask(8)
    await until(lambda: drips.asked("/drip") == 40)
    # Each has its share in use, so all of these wait: five times a quarter of the host's places, if they held them.
    for flood in floods:
        flood.ask(4, host="popular.example.com", what="silent")
    await until_counted(imgkeep, "imgkeep_fetches_waiting", 20)
    for n in range(5):
        assert (await look(imgkeep, f"http://popular.example.com/{n}.png", headers=at("198.51.100.7"))).status == 200
    assert drips.asked("/silent") == 0
    for flood in floods:
        await flood.leave()


@pytest.mark.parametrize("address", ["2001:db8:1:{:x}::1", "2001:db8:1:1::{:x}"], ids=["of a /48", "of a /64"])
async def test_addresses_of_an_ipv6_network_share_one_part(start: Start, drips: FakeOrigin, address: str) -> None:
    imgkeep = await open_server(start, drips)
    floods = [Flood(imgkeep, address.format(n)) for n in range(1, 31)]
    for flood in floods:
        flood.ask(2)
    limiter = limiter_of(imgkeep)
    await until(lambda: (limiter.waiting, limiter.used, drips.asked("/drip")) == (32, 8, 8))
    await until_counted(imgkeep, 'imgkeep_refused_total{limit="client_queue"}', 60 - 8 - 32)
    for flood in floods:
        await flood.leave()


async def stay(  # noqa: PLR0917 - in the order of what happens
    limiter: FetchLimiter, client: Client, host: str, order: list[str], name: str, leave: asyncio.Event
) -> None:
    async with limiter.enter(host, Demand(client)):
        order.append(name)
        await leave.wait()
        await asyncio.sleep(0)


async def test_client_waits_for_one_fetch_of_each_other_client() -> None:
    limiter, order = FetchLimiter(8, 8), list[str]()
    leave = [asyncio.Event() for _ in range(60)]
    others = [Client((f"203.0.113.{n}",)) for n in range(7)]
    tasks = [
        asyncio.create_task(stay(limiter, each, f"h{n}", order, "first", leave[0])) for n, each in enumerate(others)
    ]
    await asyncio.sleep(0)
    for n, each in enumerate(others[:3]):
        tasks += [asyncio.create_task(stay(limiter, each, f"h{n}{k}", order, f"{n}", leave[1])) for k in range(4)]
    tasks.append(asyncio.create_task(stay(limiter, Client(("198.51.100.7",)), "v", order, "visitor", leave[1])))
    leave[1].set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leave[0].set()
    await asyncio.gather(*tasks)
    # Twelve wait before the visitor, and it is among the first of those that come next.
    assert order[:7] == ["first"] * 7
    assert order.index("visitor") <= 7 + 3


async def test_clients_and_api_cannot_take_each_others_slots() -> None:
    limiter, order, leave = FetchLimiter(64, 16), list[str](), asyncio.Event()
    reserved = 64 // RESERVED_PART
    visitors = [Client((f"203.0.113.{n}",)) for n in range(20)]
    tasks = [
        asyncio.create_task(stay(limiter, each, f"h{n}-{k}", order, "visitor", leave))
        for n, each in enumerate(visitors)
        for k in range(8)
    ]
    await asyncio.sleep(0)
    assert (limiter.used, limiter.waiting) == (64 - reserved, 160 - 56)
    tasks += [asyncio.create_task(stay(limiter, OWN, f"own{n}", order, "own", leave)) for n in range(reserved)]
    await asyncio.sleep(0)
    assert order.count("own") == reserved
    leave.set()
    await asyncio.gather(*tasks)
    leave.clear()
    order.clear()
    tasks = [asyncio.create_task(stay(limiter, OWN, f"own{n}", order, "own", leave)) for n in range(100)]
    await asyncio.sleep(0)
    assert limiter.used == 64 - reserved
    tasks.append(asyncio.create_task(stay(limiter, visitors[0], "h", order, "visitor", leave)))
    await asyncio.sleep(0)
    assert order.count("visitor") == 1
    leave.set()
    await asyncio.gather(*tasks)


async def test_local_programs_may_use_all_slots_of_clients() -> None:
    limiter, order, leave = FetchLimiter(64, 64), list[str](), asyncio.Event()
    tasks = [
        asyncio.create_task(stay(limiter, Client(("127.0.0.1",), loopback=True), "h", order, "", leave))
        for _ in range(200)
    ]
    await asyncio.sleep(0)
    assert (limiter.used, limiter.waiting) == (56, 144)
    leave.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("number", [100, 1000])
async def test_release_costs_the_same_with_a_long_queue(number: int) -> None:
    limiter, leave = FetchLimiter(number, number), asyncio.Event()
    clients = [Client((f"net{n}",)) for n in range(number * QUEUE_PER_SLOT // 10)]
    tasks = [
        asyncio.create_task(stay(limiter, each, f"h{n % 7}", [], "", leave)) for n, each in enumerate(clients * 10)
    ]
    await asyncio.sleep(0)
    assert limiter.waiting > number
    steps = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal steps
        steps += event == "call"

    import sys  # noqa: PLC0415

    tasks[0].cancel()
    sys.setprofile(count)
    try:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    finally:
        sys.setprofile(None)
    assert steps < 150
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- the minimum rate


async def drip_in_time(imgkeep: Imgkeep, origin: FakeOrigin, sizes: list[int], pause_s: float) -> Any:
    body = png_of(sum(sizes))

    async def script(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        sent = 0
        for size in sizes:
            await exchange.send(body[sent : sent + size])
            sent += size
            await asyncio.sleep(pause_s)

    return await look(imgkeep, origin.on("/slow.png", script)), body


async def test_dripping_origin_is_a_timeout(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"bytes_per_s_min": 100_000, "rate_grace_s": 0.1})
    seen, _ = await drip_in_time(imgkeep, origin, [5000, *[10] * 200], 0.02)
    assert seen.broken
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="origin_timeout"}') == 1
    assert imgkeep.files("objects") == []


@pytest.mark.parametrize(
    "fetch",
    [{"bytes_per_s_min": 0, "rate_grace_s": 0.05}, {"bytes_per_s_min": 1, "rate_grace_s": 0.05}, {}],
    ids=["no minimum", "above it", "within the grace"],
)
async def test_slow_origin_within_the_limits_is_waited_for(
    start: Start, origin: FakeOrigin, fetch: dict[str, Any]
) -> None:
    imgkeep = await start(fetch=fetch)
    seen, body = await drip_in_time(imgkeep, origin, [2000, *[50] * 20], 0.02)
    assert (seen.status, seen.body) == (200, body)


async def test_pausing_client_does_not_count_against_the_origin(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"bytes_per_s_min": 1_000_000, "rate_grace_s": 0.2})
    body = png_of(4_000_000)
    response = await imgkeep.img(origin.gives("/large.png", body))
    await until_counted(imgkeep, 'imgkeep_fills_total{outcome="stored"}', 1)
    assert await response.read() == body


# --- what is not stored


def invented(number: int) -> str:
    return f"/images/{number:064x}.png"


@pytest.mark.parametrize("mode", ["serve", "redirect", "presign"])
async def test_invented_permanent_url_costs_the_bucket_one_request(remote: Remote, mode: str) -> None:
    await remote.make_public()
    node = await remote.node(mode=mode)
    before = len(remote.gate.seen)
    answers = await asyncio.gather(*(node.client.get(invented(1)) for _ in range(10)))
    assert {answer.status for answer in answers} == {404}
    assert (await node.client.get(invented(1))).status == 404
    assert len(remote.gate.seen) == before + 1


@pytest.mark.parametrize("mode", ["serve", "redirect"])
async def test_missed_object_is_found_once_it_is_stored_here(remote: Remote, origin: FakeOrigin, mode: str) -> None:
    from hashlib import sha256  # noqa: PLC0415

    await remote.make_public()
    node = await remote.node(mode=mode)
    body = make_image(seed=3)
    target = f"/images/{sha256(body).hexdigest()}.png"
    assert (await node.client.get(target)).status == 404
    assert (await look(node, origin.gives("/3.png", body))).status == 200
    found = await node.client.get(target, allow_redirects=False)
    assert found.status == (200 if mode == "serve" else 302)


async def test_misses_are_limited_by_client_and_hits_are_not(remote: Remote, origin: FakeOrigin) -> None:
    timer = Timer()
    node = await remote.node(
        platform=Platform(timer=timer),
        server={"trusted_proxies": ["127.0.0.0/8"], "public_url": "http://img.example.com"},
        limits={"misses_per_minute": 12},
        sources={"allow": ["127.0.0.1"]},
        legacy=[{"mount": "old"}],
    )
    url = origin.gives("/a.png", make_image())
    assert (await look(node, url, headers=at("203.0.113.1"))).status == 200
    before = len(remote.gate.seen)
    stranger = at("203.0.113.1")
    own = quote(f"http://img.example.com{invented(5)}", safe="")
    targets = [
        *(invented(n) for n in range(100, 104)),
        *(f"/old/{n}.png" for n in range(4)),
        f"/img?src={own}",
        *(f"/img?src={quote(f'http://forbidden.example.com/{n}.png', safe='')}" for n in range(3)),
    ]
    for target in targets:
        assert (await node.client.get(target, headers=stranger)).status in {403, 404, 508}
    assert len(remote.gate.seen) <= before + len(targets), "one request each at most"
    before = len(remote.gate.seen)
    for target in (invented(200), "/old/new.png", f"/img?src={own}", targets[-1]):
        refused = await node.client.get(target, headers=stranger)
        assert (refused.status, (await refused.json())["code"]) == (429, "rate_limited")
        assert refused.headers["Retry-After"] == "5"
    assert len(remote.gate.seen) == before, "a refused request costs the bucket nothing"
    assert await counted(node, 'imgkeep_refused_total{limit="misses_per_minute"}') == 4
    assert (await node.client.get(invented(201), headers=at("203.0.113.2"))).status == 404
    assert (await look(node, url, headers=at("203.0.113.1"))).status == 200, "a cached response is shown"
    timer.seconds += 5
    assert (await node.client.get(invented(202), headers=stranger)).status == 404


async def test_ipv6_48_has_the_misses_of_four_64s(remote: Remote) -> None:
    node = await remote.node(server={"trusted_proxies": ["127.0.0.0/8"]}, limits={"misses_per_minute": 2})
    statuses = [(await node.client.get(invented(n), headers=at(f"2001:db8:7:{n:x}::1"))).status for n in range(12)]
    assert statuses == [404] * 8 + [429] * 4


# --- connections


def test_connections_are_counted_by_client() -> None:
    refused: list[str] = []
    limit = ConnectionLimit(3, (), refused.append)
    mine = [limit.acquire("203.0.113.1") for _ in range(4)]
    assert mine == [("203.0.113.1",)] * 3 + [None]
    assert limit.acquire("::ffff:203.0.113.1") is None, "the same client"
    assert limit.acquire("203.0.113.2") == ("203.0.113.2",)
    assert [limit.acquire("127.0.0.1") for _ in range(10)] == [()] * 10
    assert sum(limit.acquire(f"2001:db8:1:{n:x}::1") is not None for n in range(40)) == 12
    limit.release(("203.0.113.1",))
    assert limit.acquire("203.0.113.1") is not None
    assert len(refused) == 2 + 28
    unlimited = ConnectionLimit(0, (), refused.append)
    assert [unlimited.acquire("203.0.113.1") for _ in range(10)] == [()] * 10


async def test_connection_above_the_limit_is_refused(start: Start) -> None:
    imgkeep = await start(limits={"connections": 2})
    connection_limit = imgkeep.client.app[CONNECTIONS].connection_limit
    assert connection_limit is not None
    connection_limit._open["127.0.0.9"] = 0
    # Loopback has no limit, so the limit is told that this one address is another's.
    entered: list[str] = []
    acquire = connection_limit.acquire

    def stranger(peer: str) -> tuple[str, ...] | None:
        entered.append(peer)
        return acquire("203.0.113.9" if peer == "127.0.0.9" else peer)

    connection_limit.acquire = stranger  # type: ignore[method-assign]
    port = imgkeep.client.port
    assert port is not None
    ends = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.9", 0)) for _ in range(3)]
    answer = await ends[2][0].read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Connection: close" in head
    assert b'"code":"busy"' in body
    for reader, writer in ends[:2]:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert await counted(imgkeep, 'imgkeep_refused_total{limit="connections"}') == 1
    ends[0][1].close()
    await until(lambda: connection_limit._open["203.0.113.9"] == 1)
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.9", 0))
    writer.close()
    for _, each in ends:
        each.close()
        with suppress(ConnectionError):
            await each.wait_closed()
