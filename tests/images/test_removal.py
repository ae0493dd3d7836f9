"""Removals and undos over a real folder and a real database: crashes between any two durable steps, and races."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.records import Digest, Doubt, Key, Tombstone
from imgkeep.database import Database, RemovalIndex
from imgkeep.images.blocked_digests import RECHECKS_MAX, REFRESH_INTERVAL_S, BlockedDigests
from imgkeep.images.record_cache import TOMBSTONES_TTL_S, RecordCache
from imgkeep.images.record_sharing import RecordSharing
from imgkeep.images.removal import Remover
from imgkeep.images.service import ImageService
from tests.support.fakes import Timer
from tests.support.stores import NOON, local_store, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from pathlib import Path

    from imgkeep.core.records import Record, Source
    from imgkeep.storage.local.store import LocalStore

BODY = b"an image"
DIGEST = Digest(sha256(BODY).hexdigest())
A, B = record_of(BODY, name="a"), record_of(BODY, name="b")


DURABLE = ("block", "delete_object", "put_tombstone", "unblock", "delete_tombstone")


class FaultyStore:
    """
    A store that fails from a given durable step on, as if the process had died there. `gates` delay the results of
    methods, which are computed before they wait.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.steps_left: int | None = None
        self.gates: dict[str, asyncio.Event] = {}
        self.reached = asyncio.Event()
        self.asked: list[str] = []
        self.answers: dict[tuple[str, object], object] = {}
        """By method and first argument, the result to return instead."""

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any) -> Any:
            self.asked.append(verb)
            if verb in DURABLE and self.steps_left is not None:
                if self.steps_left == 0:
                    raise StorageError("the process has died")
                self.steps_left -= 1
            answer = await getattr(self._store, verb)(*arguments)
            answer = self.answers.get((verb, arguments[0] if arguments else None), answer)
            gate = self.gates.pop(verb, None)
            if gate is not None:
                self.reached.set()
                await gate.wait()
            return answer

        return call


@dataclass
class Peers:
    """The other workers, which learn what they are told."""

    others: list[BlockedDigests] = field(default_factory=list)
    told: list[dict[str, Collection[str]]] = field(default_factory=list)
    fault: StorageError | None = None

    async def wait(self, holder: str, key: str) -> None:
        raise AssertionError(f"nothing may wait for {holder} and {key}")

    async def notify(
        self,
        *,
        blocked: Collection[Digest] = (),
        changed: Collection[Key] = (),
        unblocked: Collection[Digest] = (),
    ) -> None:
        self.told.append({"blocked": list(blocked), "changed": list(changed), "unblocked": list(unblocked)})
        if self.fault is not None:
            raise self.fault
        for other in self.others:
            await other.learn(blocked)
            await other.recheck(unblocked)

    def exclusively(self, _digest: Digest) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class FakeImageService(ImageService):
    """What a removal needs of the image service."""

    def __init__(self, records: RecordCache) -> None:
        self.records = records
        self.restored_count = 0

    async def look_up(self, key: Key) -> Record | None:
        return await self.records.find(key)

    async def find_key(self, source: Source) -> Key:
        raise AssertionError(f"a removal by key does not fetch {source}")

    def keys_of(self, source: Source) -> tuple[Key, Key]:
        raise AssertionError(f"a removal by key does not read {source}")

    def forget(self, key: Key) -> None:
        self.records.forget(key)

    def forget_removals(self) -> None:
        self.restored_count += 1


class Node:
    """A node on one folder, with all that a removal needs."""

    def __init__(self, disk: LocalStore, database: Database, peers: Peers | None = None) -> None:
        self.store = FaultyStore(disk)
        self.database = database
        self.records = RecordCache(self.store, database.image_index, (), Timer(), RecordSharing())  # type: ignore[arg-type]  # it has all verbs
        self.dropped: list[Digest] = []
        self.dropped_pictures: list[Digest] = []
        self.blocked_digests = BlockedDigests(
            self.store,  # type: ignore[arg-type]  # as above
            database.removals,
            self.drop_copies,
            self.drop_pictures,
            peers,
        )
        self.image_service = FakeImageService(self.records)
        self.minute = 0
        self.remover = Remover(
            store=self.store,  # type: ignore[arg-type]  # as above
            image_index=database.image_index,
            image_service=self.image_service,
            blocked_digests=self.blocked_digests,
            clock=self.clock,
        )
        self.disk = disk

    def clock(self) -> datetime:
        self.minute += 1
        return NOON.replace(minute=self.minute)

    async def drop_copies(self, digest: Digest) -> None:
        self.dropped.append(digest)
        await self.disk.delete_object(digest)

    async def drop_pictures(self, digest: Digest) -> None:
        self.dropped_pictures.append(digest)

    async def keep(self, body: bytes, record: Record) -> None:
        draft = await self.disk.disk.begin(len(body))
        await draft.write(body)
        try:
            await self.disk.put(draft, record)
        finally:
            await draft.aclose()
        await self.database.image_index.put(record)

    async def is_free(self, key: Key) -> bool:
        """Whether an image can be stored under a key, as a fill would find out."""
        try:
            return await self.records.find(key) is None
        except Removed:
            return False


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = local_store(tmp_path / "data")
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = Database(f"sqlite:///{tmp_path}/imgkeep.db", lambda: NOON)
    await found.open()
    yield found
    await found.aclose()


@pytest.fixture
async def node(disk: LocalStore, database: Database) -> Node:
    """A node on which two keys show one image."""
    found = Node(disk, database)
    for record in (A, B):
        await found.keep(BODY, record)
    return found


async def remove(node: Node) -> None:
    assert await node.remover.remove_key(A.key)
    assert not await node.is_free(A.key)
    assert not await node.is_free(B.key)
    assert DIGEST in node.blocked_digests


# --- undo


@pytest.mark.parametrize("way", ["key", "the other key", "digest"])
async def test_undo_reverses_whole_removal(node: Node, way: str) -> None:
    await remove(node)
    if way == "digest":
        restored = await node.remover.restore_digest(DIGEST)
    else:
        restored = await node.remover.restore_key(A.key if way == "key" else B.key)
    assert restored is not None
    assert (restored.digest, set(restored.keys), restored.stored) == (DIGEST, {A.key, B.key}, False)
    assert await node.is_free(A.key)
    assert await node.is_free(B.key)
    assert DIGEST not in node.blocked_digests
    assert await node.disk.list_blocked() == set()
    assert list(await node.database.removals.list_blocked()) == []
    assert await node.remover.restore_key(A.key) is await node.remover.restore_digest(DIGEST) is None
    await node.keep(BODY, A)
    assert await node.image_service.look_up(A.key) == A


@pytest.mark.parametrize("way", ["key", "digest"])
async def test_repeated_undo_completes_one_that_crashed_at_any_step(
    disk: LocalStore, database: Database, way: str
) -> None:
    async def undo(node: Node) -> object:
        if way == "key":
            return await node.remover.restore_key(B.key)
        return await node.remover.restore_digest(DIGEST)

    died = 0
    for steps in range(10):
        node = Node(disk, database)
        for record in (A, B):
            await node.keep(BODY, record)
        await remove(node)
        node.store.steps_left = steps
        try:
            await undo(node)
        except StorageError:
            died += 1
        else:
            break
        # Whatever is left, the removed bytes are not shown meanwhile, and another process knows what is left.
        assert await disk.has_object(DIGEST) is False
        heir = Node(disk, database)
        await heir.blocked_digests.load()
        assert await undo(heir) is not None
        assert await heir.is_free(A.key)
        assert await heir.is_free(B.key)
        assert DIGEST not in heir.blocked_digests
        assert await disk.list_blocked() == set()
        assert list(await database.removals.list_blocked()) == []
    assert died == 3, "two tombstones and one block"


async def test_repeated_removal_completes_one_that_crashed_at_any_step(disk: LocalStore, database: Database) -> None:
    died = 0
    for steps in range(10):
        node = Node(disk, database)
        for record in (A, B):
            await node.keep(BODY, record)
        node.store.steps_left = steps
        try:
            await node.remover.remove_key(A.key)
        except StorageError:
            died += 1
        else:
            break
        heir = Node(disk, database)
        await heir.blocked_digests.load()
        assert (DIGEST in heir.blocked_digests) is (steps > 0)
        assert await heir.remover.remove_key(A.key)
        assert not await heir.is_free(A.key)
        assert not await heir.is_free(B.key)
        assert await heir.remover.restore_key(A.key) is not None
        assert await heir.is_free(B.key)
    assert died == 4, "a block, an object and two tombstones"


async def test_undo_without_removal_does_nothing(node: Node) -> None:
    assert await node.remover.restore_key(A.key) is None
    assert await node.remover.restore_key(Key("0" * 64)) is None
    assert await node.remover.restore_digest(DIGEST) is None
    assert await node.image_service.look_up(A.key) == A


async def test_undo_of_forced_tombstone_restores_its_key_alone(node: Node) -> None:
    key = Key("0" * 64)
    assert not await node.remover.remove_key(key)
    assert await node.remover.remove_key(key, force=True)
    assert not await node.is_free(key)
    restored = await node.remover.restore_key(key)
    assert restored is not None
    assert (restored.digest, restored.keys) == (None, (key,))
    assert await node.is_free(key)


async def test_undo_keeps_later_removal_of_other_bytes(node: Node) -> None:
    await remove(node)
    other = b"other bytes"
    assert await node.remover.restore_key(B.key) is not None
    shown = replace(record_of(other, name="a"))
    await node.keep(other, shown)
    await node.keep(BODY, B)
    assert await node.remover.remove_key(B.key)
    assert await node.remover.remove_key(A.key)
    assert await node.remover.restore_digest(DIGEST) is not None
    assert await node.is_free(B.key)
    assert not await node.is_free(A.key), "its tombstone is that of other bytes"


async def test_undo_shows_bytes_that_interrupted_removal_left(node: Node) -> None:
    node.store.steps_left = 1
    with pytest.raises(StorageError):
        await node.remover.remove_key(A.key)
    await node.keep(BODY, A)  # as a bucket that did not delete
    node.store.steps_left = None
    restored = await node.remover.restore_key(A.key)
    assert restored is not None
    assert restored.stored
    assert await node.image_service.look_up(A.key) == A


# --- what is removed


async def test_removal_leaves_key_with_other_bytes(node: Node) -> None:
    other = record_of(b"other bytes", name="b")
    draft = await node.disk.disk.begin(None)
    await draft.write(b"other bytes")
    await node.disk.put(draft, other, B.digest)
    await draft.aclose()
    # The database still says that both keys show the same.
    assert set(await node.database.image_index.keys_of(DIGEST)) == {A.key, B.key}
    assert await node.remover.remove_key(A.key)
    assert not await node.is_free(A.key)
    assert await node.disk.find(B.key) == other


@pytest.mark.parametrize(
    ("doubt", "named_is_free"),
    [(Doubt.UNSIGNED, False), (Doubt.PLAINTEXT, False), (Doubt.SIGNATURE, True), (Doubt.ENDED, True)],
)
async def test_removal_of_provisional_image_puts_no_tombstone(node: Node, doubt: Doubt, *, named_is_free: bool) -> None:
    for record in (A, B):
        node.store.answers["find", record.key] = record.with_doubts(frozenset({doubt}))
    assert await node.remover.remove_key(A.key)
    node.store.answers.clear()
    closed = [await node.disk.find_tombstone(record.key) is not None for record in (A, B)]
    assert closed == [not named_is_free, False], "the key that was named, and one that was found to have the same bytes"
    assert DIGEST in node.blocked_digests, "the bytes are blocked all the same"
    assert not await node.disk.has_object(DIGEST)


async def test_force_puts_tombstone_on_provisional_key(node: Node) -> None:
    node.store.answers["find", A.key] = A.with_doubts(frozenset({Doubt.SIGNATURE}))
    assert await node.remover.remove_key(A.key, force=True)
    node.store.answers.clear()
    assert not await node.is_free(A.key)


async def test_unknown_digest_is_blocked_only_by_force(node: Node) -> None:
    nowhere = Digest("0" * 64)
    assert not await node.remover.remove_digest(nowhere)
    assert nowhere not in node.blocked_digests
    assert await node.disk.list_blocked() == set()
    assert await node.remover.remove_digest(nowhere, force=True)
    assert nowhere in node.blocked_digests
    assert await node.remover.remove_digest(nowhere), "what is removed is removed again"


async def test_removal_of_digest_the_database_does_not_know(disk: LocalStore, tmp_path: Path) -> None:
    lost = Database(f"sqlite:///{tmp_path}/new.db", lambda: NOON)
    await lost.open()
    node = Node(disk, lost)
    draft = await disk.disk.begin(None)
    await draft.write(BODY)
    await disk.put(draft, A)
    await draft.aclose()
    assert await node.remover.remove_digest(DIGEST)
    assert not await disk.has_object(DIGEST)
    await lost.aclose()


async def test_removal_blocks_digest_while_database_fails(disk: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    away = Database(f"sqlite:///{tmp_path}/folder", lambda: NOON)
    node = Node(disk, away)
    draft = await disk.disk.begin(None)
    await draft.write(BODY)
    await disk.put(draft, A)
    await draft.aclose()
    with pytest.raises(StorageError):
        await node.remover.remove_key(A.key)
    assert DIGEST in node.blocked_digests
    assert await disk.list_blocked() == {DIGEST}
    assert not await disk.has_object(DIGEST)
    await away.aclose()


async def test_removal_deletes_bytes_once(node: Node) -> None:
    node.store.asked.clear()
    await remove(node)
    assert [verb for verb in node.store.asked if verb in DURABLE] == [
        "block",
        "delete_object",
        "put_tombstone",
        "put_tombstone",
    ]
    assert node.dropped == []


# --- other workers and nodes


async def test_other_workers_and_nodes_learn_of_undo(disk: LocalStore, database: Database) -> None:
    peers = Peers()
    node, worker, other_node = Node(disk, database, peers), Node(disk, database), Node(disk, database)
    peers.others.append(worker.blocked_digests)
    for record in (A, B):
        await node.keep(BODY, record)
    await remove(node)
    await other_node.blocked_digests.refresh()
    assert DIGEST in worker.blocked_digests
    assert DIGEST in other_node.blocked_digests
    for each in (worker, other_node):
        assert not await each.is_free(A.key)
    assert await node.remover.restore_key(A.key) is not None
    assert DIGEST not in worker.blocked_digests
    assert peers.told[-1] == {"blocked": [], "changed": [B.key, A.key], "unblocked": [DIGEST]}
    assert DIGEST in other_node.blocked_digests, "it has not looked yet"
    await other_node.remover.refresh()
    assert DIGEST not in other_node.blocked_digests
    assert other_node.image_service.restored_count == 1


def test_tombstones_are_remembered_no_longer_than_a_refresh() -> None:
    assert TOMBSTONES_TTL_S <= REFRESH_INTERVAL_S


async def test_undo_succeeds_although_a_worker_does_not_answer(disk: LocalStore, database: Database) -> None:
    peers = Peers()
    node = Node(disk, database, peers)
    await node.keep(BODY, A)
    assert await node.remover.remove_key(A.key)
    peers.fault = StorageError("another worker does not answer")
    assert await node.remover.restore_key(A.key) is not None


async def test_late_notice_of_undo_ends_no_new_block(node: Node) -> None:
    await remove(node)
    assert await node.remover.restore_key(A.key) is not None
    await node.keep(BODY, A)
    assert await node.remover.remove_key(A.key)
    await node.blocked_digests.recheck([DIGEST])
    assert DIGEST in node.blocked_digests
    assert list(await node.database.removals.list_blocked()) == [DIGEST]


async def test_list_older_than_new_removal_ends_no_block(node: Node) -> None:
    await remove(node)
    assert await node.remover.restore_key(A.key) is not None
    late = node.store.gates["list_blocked"] = asyncio.Event()
    refreshing = asyncio.create_task(node.blocked_digests.refresh())
    await node.store.reached.wait()
    await node.keep(BODY, A)
    assert await node.remover.remove_key(A.key)
    late.set()
    await refreshing
    assert DIGEST in node.blocked_digests


async def test_answer_older_than_new_removal_ends_no_block(node: Node) -> None:
    await remove(node)
    await node.disk.unblock(DIGEST)  # another node undoes it
    late = node.store.gates["find_block"] = asyncio.Event()
    looking = asyncio.create_task(node.blocked_digests.recheck([DIGEST]))
    await node.store.reached.wait()
    await node.disk.block(DIGEST, NOON)  # a third one removes it again, and tells
    await node.blocked_digests.block(DIGEST)
    late.set()
    await looking
    assert DIGEST in node.blocked_digests
    assert list(await node.database.removals.list_blocked()) == [DIGEST]


async def test_recheck_notices_removal_that_crosses_its_row(node: Node) -> None:
    await remove(node)
    await node.disk.unblock(DIGEST)

    class Slow(RemovalIndex):
        """The database, while another process removes again and writes its row first."""

        async def unblock(self, digests: Collection[Digest]) -> None:
            await node.disk.block(DIGEST, NOON)
            await self.block([DIGEST])
            await super().unblock(digests)

    node.blocked_digests._removals = Slow(node.database.engine)
    await node.blocked_digests.recheck([DIGEST])
    assert DIGEST in node.blocked_digests
    assert list(await node.database.removals.list_blocked()) == [DIGEST]


async def test_incomplete_list_ends_no_block(node: Node) -> None:
    await remove(node)

    class Forgetful:
        """Lists nothing, as a store may that lists late."""

        def __getattr__(self, verb: str) -> object:
            return getattr(node.disk, verb)

        async def list_blocked(self) -> set[Digest]:
            return set()

    node.blocked_digests._store = Forgetful()  # type: ignore[assignment]  # it has all verbs
    await node.blocked_digests.refresh()
    assert DIGEST in node.blocked_digests


async def test_refresh_rechecks_bounded_number_of_blocks(node: Node) -> None:
    digests = [Digest(f"{number:064x}") for number in range(RECHECKS_MAX + 30)]
    await node.blocked_digests.learn(digests)
    node.store.asked.clear()
    await node.blocked_digests.refresh()
    # Those that are gone are asked for once more, behind the database's row.
    assert node.store.asked.count("find_block") == 2 * RECHECKS_MAX
    assert len(node.blocked_digests) == 30
    await node.blocked_digests.refresh()
    assert len(node.blocked_digests) == 0


async def test_unreachable_store_ends_no_block(node: Node, tmp_path: Path) -> None:
    await remove(node)
    (tmp_path / "data").rename(tmp_path / "unmounted")
    await node.blocked_digests.refresh()
    assert DIGEST in node.blocked_digests
    with pytest.raises(StorageError):
        await node.remover.restore_key(A.key)
    assert DIGEST in node.blocked_digests


async def test_undo_of_tombstone_without_digest_restores_its_key_alone(node: Node) -> None:
    await node.disk.put_tombstone(Tombstone(A.key, NOON))
    await node.disk.block(DIGEST, NOON)
    restored = await node.remover.restore_key(A.key)
    assert restored is not None
    assert (restored.digest, restored.keys) == (None, (A.key,))
    restored = await node.remover.restore_digest(DIGEST)
    assert restored is not None
    assert restored.keys == ()


async def test_late_node_deletes_bytes_it_stored_after_removal(
    disk: LocalStore, database: Database, tmp_path: Path
) -> None:
    own = Database(f"sqlite:///{tmp_path}/late.db", lambda: NOON)
    await own.open()
    node, late = Node(disk, database), Node(disk, own)
    await node.keep(BODY, A)
    await remove_key(node)
    await late.keep(BODY, B)  # as a node does that does not know yet
    ticks = 0

    async def once(_seconds: float) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 2:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await late.remover.run(once)
    assert not await disk.has_object(DIGEST)
    assert await disk.find_tombstone(B.key) is None, "no key is closed for that"
    assert not await node.is_free(A.key)
    await own.aclose()


async def test_late_node_deletes_bytes_although_its_database_fails(disk: LocalStore, database: Database) -> None:
    node, late = Node(disk, database), Node(disk, database)
    await node.keep(BODY, A)
    await remove_key(node)
    await late.keep(BODY, B)

    class Failing(RemovalIndex):
        async def block(self, digests: Collection[Digest]) -> None:
            raise StorageError(f"the database does not take {len(digests)} digests")

    async def keep_object(_digest: Digest) -> None:
        """A bucket's object is no copy of this machine."""

    late.blocked_digests._removals = Failing(database.engine)
    late.blocked_digests._drop_copies = keep_object
    await late.remover.refresh()
    assert DIGEST in late.blocked_digests
    assert not await disk.has_object(DIGEST)


async def test_late_node_deletes_nothing_after_undo(node: Node) -> None:
    await remove(node)
    assert await node.remover.restore_key(A.key) is not None
    await node.keep(BODY, A)
    node.blocked_digests.late[DIGEST] = None
    await node.remover.delete_late_objects()
    assert await node.image_service.look_up(A.key) == A
    assert await node.disk.has_object(DIGEST)


async def remove_key(node: Node) -> None:
    assert await node.remover.remove_key(A.key)
    assert not await node.is_free(A.key)
