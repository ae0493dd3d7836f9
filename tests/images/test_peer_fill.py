"""Fills in another worker, followed in this one."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from imgkeep.cluster.workers.leases import WorkerLeases
from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    OriginError,
    SourceNotFound,
    StorageError,
)
from imgkeep.core.records import Format, Key
from imgkeep.core.source_url import read_source
from imgkeep.images.fill import FillHead
from imgkeep.images.interfaces import Cluster
from imgkeep.images.peer_fill import MEMORY_BYTES_MAX, FillFailure, PeerFill
from imgkeep.images.peer_fill import RemoteFill as Followed
from imgkeep.images.request_context import FOLLOW_ATTEMPTS_MAX
from tests.support.fakes import GROWING, FakeResponse, Timer, World, read_all, settle
from tests.support.fills import (
    IMAGE,
    OTHER,
    URL,
    at_put,
    at_the_first_write,
    at_the_last_write,
    midway,
    store_image,
)
from tests.support.leases import LocalLeases

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from imgkeep.images.shared_body import SharedBody


@dataclass
class FakePeers:
    """Other workers, of which one fetches in `world`, and tells of it as it would over a socket."""

    world: World
    calls: int = 0
    waits: int = 0

    @asynccontextmanager
    async def follow(self, _holder: str, name: str) -> AsyncIterator[Followed | FillFailure | None]:
        self.calls += 1
        joined = await self.world.image_service.join_for_peer(name)
        if joined is None or isinstance(joined, FillFailure):
            yield joined
            return
        fill, head = joined
        trace = await fill.share_file()
        yield Followed(head, None, along(fill)) if trace is None else Followed(head, trace.path, trace.steps)
        await fill.aclose()

    async def wait(self, _holder: str, key: str) -> None:
        self.waits += 1
        await self.world.image_service.wait_for_fill(Key(key))


async def along(fill: SharedBody[FillHead]) -> AsyncIterator[tuple[int, bytes]]:
    offset = 0
    while data := await fill.read(offset, 10_000):
        offset += len(data)
        yield offset, data


@dataclass
class Elsewhere(LocalLeases):
    """Says that another worker fetches everything, as long as `holds`."""

    holds: bool = True
    grace_s: float = 10
    released: list[str] = field(default_factory=list)

    def acquire(self, name: str) -> str | None:
        del name
        return "1.1" if self.holds else None

    def release(self, name: str, *, stored: bool = False) -> None:
        del stored
        self.released.append(name)


def beside(world: World, *, memory_bytes: int = 100_000_000) -> tuple[World, FakePeers]:
    """Return another worker with the same stores."""
    peers = FakePeers(world)
    return World(memory_bytes=memory_bytes, beside=world, cluster=Cluster(Elsewhere(), peers)), peers


@pytest.mark.parametrize(
    ("size", "is_on_disk"), [(None, True), (MEMORY_BYTES_MAX + 1, True), (MEMORY_BYTES_MAX, False)]
)
async def test_large_image_of_another_machine_is_not_in_memory(size: int | None, *, is_on_disk: bool) -> None:
    world = World()
    data = bytes(size or 1000)

    async def steps() -> AsyncIterator[tuple[int, bytes]]:
        yield 500, data[:500]
        yield len(data), data[500:]

    @asynccontextmanager
    async def follow() -> AsyncIterator[Followed]:
        yield Followed(FillHead(Format.PNG, size, '"e"', storing=True, doubts=frozenset()), None, steps())

    bytes_left = world.memory.bytes_left
    fill = PeerFill("there/1", follow, world.disk, world.memory)
    fill.body.hold()
    await fill.run()
    assert len(world.disk.drafts) == is_on_disk
    assert (world.memory.bytes_left == bytes_left) == is_on_disk
    assert [await fill.body.read(offset, 500) for offset in (0, len(data) - 500)] == [data[:500], data[-500:]]
    await fill.body.aclose()
    await fill.aclose()
    assert world.memory.bytes_left == bytes_left


def nowhere(_world: World) -> None:
    """Every disk works."""


@pytest.mark.parametrize("break_disk", [nowhere, midway, at_the_first_write, at_the_last_write, at_put])
async def test_peer_follows_what_a_disk_takes_and_what_it_does_not(
    break_disk: Callable[[World], None],
) -> None:
    world = World(memory_bytes=len(IMAGE))
    break_disk(world)
    response = FakeResponse().push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: response)
    delivery = await world.ask(URL)
    other, peers = beside(world, memory_bytes=len(IMAGE))
    followers = await asyncio.gather(*(other.ask(url) for url in (URL, OTHER, URL)))
    assert {(it.cache_status.value, it.etag, it.name) for it in followers} == {
        ("collapsed", delivery.etag, delivery.name)
    }
    assert await followers[0].body.read(0, 100_000), "what has come, but for its last byte"
    response.push(IMAGE[30_000:70_000], IMAGE[70_000:])
    await settle()
    assert not any(follower.growing.ended for follower in followers if follower.growing)
    response.end()
    assert {await follower.body.wait_for_size() for follower in followers} == {len(IMAGE)}
    assert [await read_all(it, piece=piece) == IMAGE for it, piece in zip(followers, (777, 40_000, 9), strict=True)]
    assert peers.calls == 1, "one line, however many follow"
    assert await read_all(delivery) == IMAGE
    await world.image_service.drain()
    await other.image_service.aclose()
    assert world.memory.bytes_left == other.memory.bytes_left == len(IMAGE)
    assert [draft.closed for draft in world.disk.drafts] == [1] * len(world.disk.drafts)


async def test_body_in_memory_shares_no_file() -> None:
    world = World()
    at_the_first_write(world)
    response = FakeResponse().push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: response)
    delivery = await world.ask(URL)
    assert delivery.growing is not None
    assert await delivery.growing.share_file() is None
    response.push(IMAGE[30_000:]).end()
    assert await read_all(delivery) == IMAGE


async def test_follower_fails_with_the_fill() -> None:
    world = World()
    response = FakeResponse(len(IMAGE)).push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: response)
    delivery = await world.ask(URL)
    other, _ = beside(world)
    follower = await other.ask(URL)
    assert follower.body.size == len(IMAGE)
    response.end(OriginError("it broke off"))
    await settle()
    assert await follower.body.read(0, 40_000) == IMAGE[:29_999]
    with pytest.raises(OriginError, match="it broke off"):
        await read_all(follower)
    with pytest.raises(OriginError):
        await read_all(delivery)


@pytest.mark.parametrize(("url", "error"), [(URL, SourceNotFound), (OTHER, None)], ids=["same link", "another link"])
async def test_failed_peer_fill_fails_its_own_link(url: str, error: type[ImgkeepError] | None) -> None:
    world = World()
    world.origin.gives(URL, SourceNotFound("the origin said 404", origin_status=404))
    world.origin.gate.clear()
    fetching = asyncio.create_task(world.get(URL))
    await settle()
    other, peers = beside(world)
    other.origin.gives(OTHER, IMAGE)
    asking = asyncio.create_task(other.get(url))
    await settle()
    assert other.cluster is not None
    leases = other.cluster.leases
    assert isinstance(leases, Elsewhere)
    leases.holds = False
    world.origin.gate.set()
    if error is None:
        assert await asking == ("stored", IMAGE)
    else:
        with pytest.raises(error, match="404") as raised:
            await asking
        assert raised.value.origin_status == 404  # type: ignore[attr-defined]
        assert other.origin.asked == []
    assert peers.calls == 1
    with pytest.raises(SourceNotFound):
        await fetching


async def test_follower_without_a_fill_looks_again() -> None:
    world = World()
    other, peers = beside(world)
    with pytest.raises(Busy):
        await other.ask(URL)
    assert peers.calls == peers.waits == FOLLOW_ATTEMPTS_MAX
    await store_image(world)
    assert await other.get(URL) == ("hit", IMAGE)
    assert peers.calls == FOLLOW_ATTEMPTS_MAX


async def test_follower_without_memory_fails() -> None:
    world = World()
    midway(world)
    response = FakeResponse(len(IMAGE)).push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: response)
    delivery = await world.ask(URL)
    other, _ = beside(world, memory_bytes=1000)
    follower = await other.ask(URL)
    response.push(IMAGE[30_000:70_000], IMAGE[70_000:]).end()
    await settle()
    assert await follower.body.read(0, 100_000) == IMAGE[:30_000]
    with pytest.raises(StorageError, match="memory"):
        await read_all(follower)
    assert await read_all(delivery) == IMAGE, "the fill has what there was"


async def test_waiting_for_a_fill_releases_no_lease(tmp_path: Path) -> None:
    timer = Timer()
    ours, theirs = (WorkerLeases(tmp_path, name, grace_s=10, timer=timer) for name in ("0.1", "1.2"))
    world = World(cluster=Cluster(ours, FakePeers(World())))
    assert await asyncio.to_thread(ours.acquire, "a") is None
    ours.release("a", stored=True)
    await world.image_service.wait_for_fill(Key("a"))
    assert await asyncio.to_thread(theirs.acquire, "a") == "0.1"


async def test_file_that_is_gone_is_not_followed() -> None:
    async def steps() -> AsyncIterator[tuple[int, bytes]]:
        yield 1, b""

    @asynccontextmanager
    async def call() -> AsyncIterator[Followed]:
        yield Followed(FillHead(Format.PNG, None, '"e"', storing=True, doubts=frozenset()), GROWING, steps())

    world = World()
    peer_fill = PeerFill("1.1", call, world.disk, world.memory)
    await peer_fill.run()
    assert await peer_fill.body.wait_head() is None
    assert peer_fill.body.ended


@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "not stored"])
async def test_unused_lease_is_released_when_a_peer_asks(*, is_stored: bool) -> None:
    leases = Elsewhere(holds=False)
    world = World(cluster=Cluster(leases, FakePeers(World())))
    if is_stored:
        await store_image(world)
    leases.released.clear()
    key = world.image_service.identify(read_source(URL)).key
    assert await world.image_service.join_for_peer(key) is None
    assert leases.released == ([] if is_stored else [key])
