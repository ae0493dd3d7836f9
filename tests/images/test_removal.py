"""Removals and their undo over a real folder and a real database: crashes between any two durable steps, and races."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.records import Digest, Doubt, Key, Tombstone
from imgkeep.database import ImageIndex
from imgkeep.images.record_cache import TOMBSTONES_TTL_S, RecordCache
from imgkeep.images.removal import LOOKED_AT_MAX, REFRESH_EVERY_S, BlockedDigests, Remover
from imgkeep.storage.local.store import LocalStore

from tests.support.fakes import Timer
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from datetime import datetime
    from pathlib import Path

    from imgkeep.core.records import Record, Source

BODY = b"a picture"
DIGEST = Digest(sha256(BODY).hexdigest())
A, B = record_of(BODY, name="a"), record_of(BODY, name="b")


DURABLE = ("block", "put_tombstone", "unblock", "delete_tombstone")


class FaultyStore:
    """
    A store that fails from a given durable step on, as if the process had died there. `gates` hold the answers of
    verbs, which are decided before they wait.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.steps_left: int | None = None
        self.gates: dict[str, asyncio.Event] = {}
        self.reached = asyncio.Event()
        self.asked: list[str] = []
        self.answers: dict[tuple[str, object], object] = {}
        """By verb and first argument: what is answered instead."""

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
    """The other workers, who learn what they are told."""

    others: list[BlockedDigests] = field(default_factory=list)
    told: list[dict[str, Collection[str]]] = field(default_factory=list)
    fault: StorageError | None = None

    async def wait(self, holder: str, key: str) -> None:
        raise AssertionError(f"nothing may wait for {holder} and {key}")

    async def notify(
        self,
        *,
        refused: Collection[Digest] = (),
        changed: Collection[Key] = (),
        copies: object = (),
        restored: Collection[Digest] = (),
    ) -> None:
        del copies
        self.told.append({"refused": list(refused), "changed": list(changed), "restored": list(restored)})
        if self.fault is not None:
            raise self.fault
        for other in self.others:
            await other.learn(refused)
            await other.look_again(restored)


class Node:
    """Who removes, on one folder."""

    def __init__(self, disk: LocalStore, database: ImageIndex, peers: Peers | None = None) -> None:
        self.store = FaultyStore(disk)
        self.database = database
        self.records = RecordCache(self.store, database, (), Timer())  # type: ignore[arg-type]  # it has all verbs
        self.blocked_digests = BlockedDigests(self.store, database, disk.delete_object, peers)  # type: ignore[arg-type]  # as above
        self.minute = 0
        self.remover = Remover(
            store=self.store,  # type: ignore[arg-type]  # as above
            register=database,
            finder=self,
            blocked_digests=self.blocked_digests,
            clock=self.clock,
        )
        self.disk = disk

    def clock(self) -> datetime:
        self.minute += 1
        return NOON.replace(minute=self.minute)

    async def look_up(self, key: Key) -> Record | None:
        return await self.records.find(key)

    async def shown(self, source: Source) -> Key:
        raise AssertionError(f"nothing is asked by {source}")

    def keys_of(self, source: Source) -> tuple[Key, Key]:
        raise AssertionError(f"nothing is asked by {source}")

    def forget(self, key: Key) -> None:
        self.records.forget(key)

    async def keep(self, body: bytes, record: Record) -> None:
        draft = await self.disk.begin(len(body))
        await draft.write(body)
        try:
            await self.disk.put(draft, record)
        finally:
            await draft.aclose()
        await self.database.put(record)

    async def is_free(self, key: Key) -> bool:
        """Whether an image can be stored under a key, as a fill would find out."""
        try:
            return await self.records.find(key) is None
        except Removed:
            return False


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "data")
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[ImageIndex]:
    found = ImageIndex(f"sqlite:///{tmp_path}/imgkeep.db", lambda: NOON)
    await found.open()
    yield found
    await found.aclose()


@pytest.fixture
async def node(disk: LocalStore, database: ImageIndex) -> Node:
    """One on which two keys show one picture."""
    found = Node(disk, database)
    for record in (A, B):
        await found.keep(BODY, record)
    return found


async def removed(node: Node) -> None:
    assert await node.remover.remove_key(A.key)
    assert not await node.is_free(A.key)
    assert not await node.is_free(B.key)
    assert DIGEST in node.blocked_digests


# --- undo


@pytest.mark.parametrize("way", ["key", "the other key", "digest"])
async def test_an_undo_finds_all_that_a_removal_did(node: Node, way: str) -> None:
    await removed(node)
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
    assert list(await node.database.refused()) == []
    assert await node.remover.restore_key(A.key) is await node.remover.restore_digest(DIGEST) is None
    await node.keep(BODY, A)
    assert await node.look_up(A.key) == A


@pytest.mark.parametrize("way", ["key", "digest"])
async def test_an_undo_that_died_between_any_two_steps_is_finished_by_doing_it_again(
    disk: LocalStore, database: ImageIndex, way: str
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
        await removed(node)
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
        await heir.blocked_digests.open()
        assert await undo(heir) is not None
        assert await heir.is_free(A.key)
        assert await heir.is_free(B.key)
        assert DIGEST not in heir.blocked_digests
        assert await disk.list_blocked() == set()
        assert list(await database.refused()) == []
    assert died == 3, "two tombstones and one block"


async def test_a_removal_that_died_between_any_two_steps_shows_nothing_and_is_finished_by_doing_it_again(
    disk: LocalStore, database: ImageIndex
) -> None:
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
        await heir.blocked_digests.open()
        assert (DIGEST in heir.blocked_digests) is (steps > 0)
        assert await heir.remover.remove_key(A.key)
        assert not await heir.is_free(A.key)
        assert not await heir.is_free(B.key)
        assert await heir.remover.restore_key(A.key) is not None
        assert await heir.is_free(B.key)
    assert died == 3, "one block and two tombstones"


async def test_what_was_never_removed_is_not_restored(node: Node) -> None:
    assert await node.remover.restore_key(A.key) is None
    assert await node.remover.restore_key(Key("0" * 64)) is None
    assert await node.remover.restore_digest(DIGEST) is None
    assert await node.look_up(A.key) == A


async def test_a_key_that_was_closed_by_force_is_restored_alone(node: Node) -> None:
    key = Key("0" * 64)
    assert not await node.remover.remove_key(key)
    assert await node.remover.remove_key(key, force=True)
    assert not await node.is_free(key)
    restored = await node.remover.restore_key(key)
    assert restored is not None
    assert (restored.digest, restored.keys) == (None, (key,))
    assert await node.is_free(key)


async def test_a_key_that_was_removed_again_with_other_bytes_stays_removed(node: Node) -> None:
    await removed(node)
    other = b"another picture"
    assert await node.remover.restore_key(B.key) is not None
    shown = replace(record_of(other, name="a"))
    await node.keep(other, shown)
    await node.keep(BODY, B)
    assert await node.remover.remove_key(B.key)
    assert await node.remover.remove_key(A.key)
    assert await node.remover.restore_digest(DIGEST) is not None
    assert await node.is_free(B.key)
    assert not await node.is_free(A.key), "its tombstone is that of other bytes"


async def test_bytes_that_an_interrupted_removal_left_are_shown_again(node: Node) -> None:
    node.store.steps_left = 1
    with pytest.raises(StorageError):
        await node.remover.remove_key(A.key)
    await node.keep(BODY, A)  # as a bucket that did not delete
    node.store.steps_left = None
    restored = await node.remover.restore_key(A.key)
    assert restored is not None
    assert restored.stored
    assert await node.look_up(A.key) == A


# --- what is removed


async def test_a_key_that_shows_other_bytes_by_now_is_left_alone(node: Node) -> None:
    other = record_of(b"another picture", name="b")
    draft = await node.disk.begin(None)
    await draft.write(b"another picture")
    await node.disk.put(draft, other, B.digest)
    await draft.aclose()
    # The database still says that both keys show the same.
    assert set(await node.database.keys_of(DIGEST)) == {A.key, B.key}
    assert await node.remover.remove_key(A.key)
    assert not await node.is_free(A.key)
    assert await node.disk.find(B.key) == other


@pytest.mark.parametrize(
    ("doubt", "named_is_free"),
    [(Doubt.UNSIGNED, False), (Doubt.PLAINTEXT, False), (Doubt.SIGNATURE, True), (Doubt.ENDED, True)],
)
async def test_bytes_that_a_stranger_may_have_brought_close_no_key(
    node: Node, doubt: Doubt, *, named_is_free: bool
) -> None:
    for record in (A, B):
        node.store.answers["find", record.key] = replace(record, doubts=frozenset({doubt}))
    assert await node.remover.remove_key(A.key)
    node.store.answers.clear()
    closed = [await node.disk.find_tombstone(record.key) is not None for record in (A, B)]
    assert closed == [not named_is_free, False], "the key that was named, and one that was found to have the same bytes"
    assert DIGEST in node.blocked_digests, "the bytes are blocked all the same"
    assert not await node.disk.has_object(DIGEST)


async def test_a_key_in_doubt_is_closed_by_force(node: Node) -> None:
    node.store.answers["find", A.key] = replace(A, doubts=frozenset({Doubt.SIGNATURE}))
    assert await node.remover.remove_key(A.key, force=True)
    node.store.answers.clear()
    assert not await node.is_free(A.key)


async def test_a_digest_that_is_stored_nowhere_is_removed_only_by_force(node: Node) -> None:
    nowhere = Digest("0" * 64)
    assert not await node.remover.remove_digest(nowhere)
    assert nowhere not in node.blocked_digests
    assert await node.disk.list_blocked() == set()
    assert await node.remover.remove_digest(nowhere, force=True)
    assert nowhere in node.blocked_digests
    assert await node.remover.remove_digest(nowhere), "what is removed is removed again"


async def test_bytes_that_the_catalog_does_not_know_can_be_removed(disk: LocalStore, tmp_path: Path) -> None:
    lost = ImageIndex(f"sqlite:///{tmp_path}/new.db", lambda: NOON)
    await lost.open()
    node = Node(disk, lost)
    draft = await disk.begin(None)
    await draft.write(BODY)
    await disk.put(draft, A)
    await draft.aclose()
    assert await node.remover.remove_digest(DIGEST)
    assert not await disk.has_object(DIGEST)
    await lost.aclose()


async def test_a_picture_has_to_go_even_if_the_catalog_is_away(disk: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    away = ImageIndex(f"sqlite:///{tmp_path}/folder", lambda: NOON)
    node = Node(disk, away)
    draft = await disk.begin(None)
    await draft.write(BODY)
    await disk.put(draft, A)
    await draft.aclose()
    with pytest.raises(StorageError):
        await node.remover.remove_key(A.key)
    assert DIGEST in node.blocked_digests
    assert await disk.list_blocked() == {DIGEST}
    assert not await disk.has_object(DIGEST)
    await away.aclose()


# --- other workers and nodes


async def test_other_workers_and_nodes_learn_of_an_undo(disk: LocalStore, database: ImageIndex) -> None:
    peers = Peers()
    node, worker, other_node = Node(disk, database, peers), Node(disk, database), Node(disk, database)
    peers.others.append(worker.blocked_digests)
    for record in (A, B):
        await node.keep(BODY, record)
    await removed(node)
    await other_node.blocked_digests.refresh()
    assert DIGEST in worker.blocked_digests
    assert DIGEST in other_node.blocked_digests
    for each in (worker, other_node):
        assert not await each.is_free(A.key)
    assert await node.remover.restore_key(A.key) is not None
    assert DIGEST not in worker.blocked_digests
    assert peers.told[-1] == {"refused": [], "changed": [B.key, A.key], "restored": [DIGEST]}
    assert DIGEST in other_node.blocked_digests, "it has not looked yet"
    heard = []
    other_node.blocked_digests.restored = lambda: heard.append(True)
    await other_node.blocked_digests.refresh()
    assert DIGEST not in other_node.blocked_digests
    assert heard == [True]


def test_the_memory_of_tombstones_is_no_longer_than_a_refresh() -> None:
    assert TOMBSTONES_TTL_S <= REFRESH_EVERY_S


async def test_an_undo_does_not_wait_for_a_worker_that_does_not_answer(disk: LocalStore, database: ImageIndex) -> None:
    peers = Peers()
    node = Node(disk, database, peers)
    await node.keep(BODY, A)
    assert await node.remover.remove_key(A.key)
    peers.fault = StorageError("another worker does not answer")
    assert await node.remover.restore_key(A.key) is not None


async def test_a_notice_of_an_undo_that_comes_after_a_new_removal_changes_nothing(node: Node) -> None:
    await removed(node)
    assert await node.remover.restore_key(A.key) is not None
    await node.keep(BODY, A)
    assert await node.remover.remove_key(A.key)
    await node.blocked_digests.look_again([DIGEST])
    assert DIGEST in node.blocked_digests
    assert list(await node.database.refused()) == [DIGEST]


async def test_a_list_that_was_made_before_a_new_removal_changes_nothing(node: Node) -> None:
    await removed(node)
    assert await node.remover.restore_key(A.key) is not None
    late = node.store.gates["list_blocked"] = asyncio.Event()
    refreshing = asyncio.create_task(node.blocked_digests.refresh())
    await node.store.reached.wait()
    await node.keep(BODY, A)
    assert await node.remover.remove_key(A.key)
    late.set()
    await refreshing
    assert DIGEST in node.blocked_digests


async def test_an_answer_that_is_older_than_a_new_removal_changes_nothing(node: Node) -> None:
    await removed(node)
    await node.disk.unblock(DIGEST)  # another node undoes it
    late = node.store.gates["find_block"] = asyncio.Event()
    looking = asyncio.create_task(node.blocked_digests.look_again([DIGEST]))
    await node.store.reached.wait()
    await node.disk.block(DIGEST, NOON)  # a third one removes it again, and tells
    await node.blocked_digests.add([DIGEST])
    late.set()
    await looking
    assert DIGEST in node.blocked_digests
    assert list(await node.database.refused()) == [DIGEST]


async def test_a_removal_that_crosses_the_row_of_the_catalog_is_learned(node: Node) -> None:
    await removed(node)
    await node.disk.unblock(DIGEST)
    allow = node.database.allow

    class Slow:
        """The database, at the moment in which another process removes again and brings its row in first."""

        def __getattr__(self, verb: str) -> object:
            return getattr(node.database, verb)

        async def allow(self, digests: Sequence[Digest]) -> None:
            await node.disk.block(DIGEST, NOON)
            await node.database.refuse([DIGEST])
            await allow(digests)

    node.blocked_digests._register = Slow()  # type: ignore[assignment]  # it has all verbs
    await node.blocked_digests.look_again([DIGEST])
    assert DIGEST in node.blocked_digests
    assert list(await node.database.refused()) == [DIGEST]


async def test_a_list_that_lacks_blocks_is_not_believed(node: Node) -> None:
    await removed(node)

    class Forgetful:
        """Lists nothing, as a store may that lists late."""

        def __getattr__(self, verb: str) -> object:
            return getattr(node.disk, verb)

        async def list_blocked(self) -> set[Digest]:
            return set()

    node.blocked_digests._store = Forgetful()  # type: ignore[assignment]  # it has all verbs
    await node.blocked_digests.refresh()
    assert DIGEST in node.blocked_digests


async def test_a_refresh_asks_for_so_many_blocks_at_most(node: Node) -> None:
    digests = [Digest(f"{number:064x}") for number in range(LOOKED_AT_MAX + 30)]
    await node.blocked_digests.learn(digests)
    node.store.asked.clear()
    await node.blocked_digests.refresh()
    # Those that are gone are asked for once more, behind the database's row.
    assert node.store.asked.count("find_block") == 2 * LOOKED_AT_MAX
    assert len(node.blocked_digests) == 30
    await node.blocked_digests.refresh()
    assert len(node.blocked_digests) == 0


async def test_a_store_that_cannot_be_asked_restores_nothing(node: Node, tmp_path: Path) -> None:
    await removed(node)
    (tmp_path / "data").rename(tmp_path / "unmounted")
    await node.blocked_digests.refresh()
    assert DIGEST in node.blocked_digests
    with pytest.raises(StorageError):
        await node.remover.restore_key(A.key)
    assert DIGEST in node.blocked_digests


async def test_an_old_tombstone_without_a_digest_is_restored_alone(node: Node) -> None:
    await node.disk.put_tombstone(Tombstone(A.key, NOON))
    await node.disk.block(DIGEST, NOON)
    restored = await node.remover.restore_key(A.key)
    assert restored is not None
    assert (restored.digest, restored.keys) == (None, (A.key,))
    restored = await node.remover.restore_digest(DIGEST)
    assert restored is not None
    assert restored.keys == ()


async def test_what_a_node_stored_before_it_learned_of_a_removal_is_deleted(
    disk: LocalStore, database: ImageIndex, tmp_path: Path
) -> None:
    own = ImageIndex(f"sqlite:///{tmp_path}/late.db", lambda: NOON)
    await own.open()
    node, late = Node(disk, database), Node(disk, own)
    await node.keep(BODY, A)
    await removed_key(node)
    await late.keep(BODY, B)  # as a node does that does not know yet
    late.blocked_digests.removed_elsewhere = late.remover.finish
    ticks = 0

    async def once(_seconds: float) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 2:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await late.blocked_digests.run(once)
    assert not await disk.has_object(DIGEST)
    assert await disk.find_tombstone(B.key) is None, "no key is closed for that"
    assert not await node.is_free(A.key)
    await own.aclose()


async def test_a_late_node_deletes_nothing_once_the_removal_is_undone(node: Node) -> None:
    await removed(node)
    assert await node.remover.restore_key(A.key) is not None
    await node.keep(BODY, A)
    await node.remover.finish(DIGEST)
    assert await node.look_up(A.key) == A
    assert await node.disk.has_object(DIGEST)


async def removed_key(node: Node) -> None:
    assert await node.remover.remove_key(A.key)
    assert not await node.is_free(A.key)
