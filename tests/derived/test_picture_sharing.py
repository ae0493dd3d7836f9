"""One derivation of a picture at a time, over workers and nodes."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.core.derived.names import PictureName
from imgkeep.core.errors import Busy, DeriveFailed, StorageError
from imgkeep.core.records import Digest, Format
from imgkeep.derived.picture_cache import FoundPicture, PictureCache
from imgkeep.derived.picture_sharing import PictureSharing, lease_of
from imgkeep.images.interfaces import Cluster, LinkFailure
from imgkeep.images.request_context import HeldByPeer
from imgkeep.storage.local.disk import Disk
from imgkeep.storage.memory import MemoryBody
from tests.support.stores import read_all
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from imgkeep.images.interfaces import LeaseRequest

NAME = PictureName(Digest("1" * 64), "w320", Format.WEBP)
DATA = b"picture"


class Member:
    """A process that makes pictures, on a disk of its own or one that it shares."""

    def __init__(self, disk: Disk, cluster: Cluster | None, fetch: Any = None, *, bytes_max: int = 100_000) -> None:
        self.cache = PictureCache(disk, bytes_max)
        self.sharing = PictureSharing(self.cache, cluster, fetch)
        self.made = 0
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.has_begun = asyncio.Event()
        self.error: Exception | None = None

    async def get(self) -> bytes:
        """Return the picture as the service does, once."""
        found = await self.sharing.make_once(NAME, lambda: self.cache.find(NAME), self.make)
        try:
            return await read_all(found.body)
        finally:
            await found.body.aclose()

    async def make(self) -> FoundPicture:
        self.made += 1
        self.has_begun.set()
        await self.may_finish.wait()
        if self.error is not None:
            raise self.error
        draft = await self.cache.begin()
        try:
            draft.write(DATA, 0)
            return await self.cache.put(draft, NAME)
        finally:
            await draft.aclose()


class Peers:
    """The peers of one member, all in this process."""

    def __init__(self, members: dict[str, Member]) -> None:
        self.members = members
        self.waited_for: list[str] = []
        self.cut_off: set[str] = set()

    def follow(self, _holder: str, _name: str) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def wait(self, holder: str, key: str) -> None:
        self.waited_for.append(holder)
        if holder in self.cut_off:
            raise Busy("the node cannot be reached")
        await self.members[holder].sharing.wait(key)


class Answered:
    """A request for a lease that is answered."""

    def __init__(self, answer: HeldByPeer | LinkFailure | None) -> None:
        self._answer = answer

    async def answer(self) -> HeldByPeer | LinkFailure | None:
        return self._answer


class WorkerLeases:
    """The leases of one of several workers, as a table that all share says."""

    grace_s = 10.0

    def __init__(self, worker: str, table: dict[str, str]) -> None:
        self._worker = worker
        self._table = table

    def acquire(self, name: str) -> str | None:
        holder = self._table.setdefault(name, self._worker)
        return None if holder == self._worker else holder

    def prepare(self, _name: str, _link: bytes) -> bool:
        return False

    def request(self, _name: str, _link: bytes) -> None:
        """There are no other nodes."""

    def release(self, name: str, *, stored: bool = False) -> None:
        if self._table.get(name) == self._worker and not stored:
            del self._table[name]

    async def fail(self, name: str, _failure: LinkFailure) -> None:
        self.release(name)

    def give_up_on(self, _holder: str) -> bool:
        return False


class NodeLeases:
    """The leases of one of several nodes, as a table that all share says."""

    grace_s = 10.0

    def __init__(self, node: str, table: dict[str, str | LinkFailure]) -> None:
        self._node = node
        self._table = table
        self.given_up: list[str] = []

    def acquire(self, _name: str) -> None:
        """Have the lease on this machine."""

    def prepare(self, _name: str, _link: bytes) -> bool:
        return False

    def request(self, name: str, _link: bytes) -> LeaseRequest:
        held = self._table.setdefault(name, self._node)
        if isinstance(held, LinkFailure):
            return Answered(held)
        return Answered(None if held == self._node else HeldByPeer(held, name))

    def release(self, name: str, *, stored: bool = False) -> None:
        if self._table.get(name) == self._node and not stored:
            del self._table[name]

    async def fail(self, name: str, failure: LinkFailure) -> None:
        self._table[name] = failure

    def give_up_on(self, holder: str) -> bool:
        self.given_up.append(holder)
        return True


@pytest.fixture
async def make_disk(tmp_path: Path) -> AsyncIterator[Callable[[str], Any]]:
    disks: list[Disk] = []

    async def make(name: str) -> Disk:
        disk = Disk(tmp_path / name)
        await disk.open()
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        await disk.aclose()


class Workers:
    """Workers of one machine."""

    def __init__(self, disk: Disk, *, bytes_max: int = 100_000) -> None:
        self.members: dict[str, Member] = {}
        table: dict[str, str] = {}
        self.leases = {name: WorkerLeases(name, table) for name in ("0.1", "1.1", "2.1")}
        self.peers = {name: Peers(self.members) for name in self.leases}
        for name, leases in self.leases.items():
            self.members[name] = Member(disk, Cluster(leases, self.peers[name]), bytes_max=bytes_max)

    @property
    def made(self) -> int:
        return sum(member.made for member in self.members.values())


@pytest.fixture
async def workers(make_disk: Callable[[str], Any]) -> Workers:
    return Workers(await make_disk("disk"))


async def test_alone_a_picture_is_made_once(make_disk: Callable[[str], Any]) -> None:
    member = Member(await make_disk("disk"), None)
    assert [await member.get(), await member.get()] == [DATA, DATA]
    assert member.made == 1


async def test_workers_make_a_picture_once(workers: Workers) -> None:
    first, *others = workers.members.values()
    first.may_finish.clear()
    leading = asyncio.create_task(first.get())
    await first.has_begun.wait()
    following = [asyncio.create_task(member.get()) for member in others]
    await until(lambda: workers.peers["1.1"].waited_for and workers.peers["2.1"].waited_for)
    first.may_finish.set()
    assert await asyncio.gather(leading, *following) == [DATA] * 3
    assert workers.made == 1


async def test_worker_whose_look_up_is_too_old_finds_the_picture_under_the_lease(workers: Workers) -> None:
    first, second, _ = workers.members.values()
    await first.get()
    workers.leases["0.1"].release(lease_of(NAME))
    assert await second.get() == DATA
    assert workers.made == 1


async def test_follower_of_a_failed_derivation_tries_itself(workers: Workers) -> None:
    first, second, _ = workers.members.values()
    first.may_finish.clear()
    first.error = Busy("the queue is full")
    leading = asyncio.create_task(first.get())
    await first.has_begun.wait()
    following = asyncio.create_task(second.get())
    await until(lambda: workers.peers["1.1"].waited_for)
    first.may_finish.set()
    with pytest.raises(Busy):
        await leading
    assert await following == DATA


async def test_without_room_for_pictures_each_worker_makes_its_own(make_disk: Callable[[str], Any]) -> None:
    workers = Workers(await make_disk("disk"), bytes_max=0)
    assert [await member.get() for member in workers.members.values()] == [DATA] * 3
    assert workers.made == 3


class Nodes:
    """Two nodes with a disk each, `a/1` and `b/1`."""

    def __init__(self, disks: dict[str, Disk]) -> None:
        self.table: dict[str, str | LinkFailure] = {}
        self.members: dict[str, Member] = {}
        self.leases = {name: NodeLeases(name, self.table) for name in disks}
        self.peers = {name: Peers(self.members) for name in disks}
        self.fault: Exception | None = None
        for name, disk in disks.items():
            self.members[name] = Member(disk, Cluster(self.leases[name], self.peers[name]), self.fetch)

    async def fetch(self, holder: str, name: PictureName) -> MemoryBody | None:
        if self.fault is not None:
            raise self.fault
        found = await self.members[holder].cache.find(name)
        return None if found is None else MemoryBody(await read_all(found.body))


@pytest.fixture
async def nodes(make_disk: Callable[[str], Any]) -> Nodes:
    return Nodes({name: await make_disk(name[0]) for name in ("a/1", "b/1")})


async def test_node_fetches_a_picture_from_the_node_that_made_it(nodes: Nodes) -> None:
    first, second = nodes.members.values()
    assert await first.get() == DATA
    assert await second.get() == DATA
    assert (first.made, second.made) == (1, 0)
    assert await second.cache.find(NAME) is not None  # a copy of its own


@pytest.mark.parametrize("fault", [Busy("it cannot be reached"), StorageError("it broke off")])
async def test_node_that_cannot_fetch_a_picture_makes_it(nodes: Nodes, fault: Exception) -> None:
    first, second = nodes.members.values()
    await first.get()
    nodes.fault = fault
    assert await second.get() == DATA
    assert second.made == 1


async def test_node_that_cannot_be_reached_is_given_up(nodes: Nodes) -> None:
    first, second = nodes.members.values()
    await first.get()
    nodes.peers["b/1"].cut_off = {"a/1"}
    assert await second.get() == DATA
    assert nodes.leases["b/1"].given_up == ["a/1"]


async def test_original_that_fails_fails_once_for_all_nodes(nodes: Nodes) -> None:
    first, second = nodes.members.values()
    first.error = DeriveFailed("the picture cannot be decoded")
    for member in (first, second):
        with pytest.raises(DeriveFailed, match="decoded"):
            await member.get()
    assert (first.made, second.made) == (1, 0)
