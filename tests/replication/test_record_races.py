"""Nodes that store an image under one key at once: all of them end with the same record, in every order of requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import Conflict, StorageError
from imgkeep.core.layout import RECORDS, encode_record, record_path
from imgkeep.core.records import Doubt, Tombstone
from imgkeep.replication.record_settler import CONCURRENT_MAX
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.records import ADDS_MAX
from imgkeep.storage.bucket.unsettled_records import PUT_WINDOW_S, SETTLE_AFTER_S
from tests.support.bucket_nodes import BucketNode, ServingNode, draft_of
from tests.support.images import make_image
from tests.support.memory_bucket import MemoryBucket, Order, in_every_order
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from imgkeep.core.records import Record

BODY, OTHER = b"an image", b"another image"
KEY = record_of(BODY).key

CONDITIONAL = pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "unconditional"])


async def standing(bucket: MemoryBucket) -> Record:
    record = await BucketNode("a fresh node", bucket).look_up(KEY)
    assert record is not None
    return record


@CONDITIONAL
@pytest.mark.parametrize("bodies", [(BODY, OTHER), (BODY, BODY)], ids=["other bytes", "same bytes"])
async def test_racing_nodes_end_with_one_record(bodies: tuple[bytes, bytes], *, conditional: bool) -> None:
    winners: set[str] = set()

    async def case(order: Order) -> None:
        bucket = MemoryBucket(conditional_put=conditional)
        one, two, reader = nodes = [BucketNode(name, bucket, order) for name in ("one", "two", "reader")]
        for node in nodes:
            node.client.is_ordered = lambda _method, path: path.startswith(RECORDS)
        await order.run(one.fill(bodies[0]), two.fill(bodies[1]), reader.look_up(KEY))
        for node in nodes:
            node.client.order = None
            await node.settle()
        record = await standing(bucket)
        winners.add(record.etag)
        for node in nodes:
            assert node.shown(KEY) <= {record}, order.taken
            assert await node.look_up(KEY) == record
        assert bucket.objects[f"v1/objects/{record.digest[:2]}/{record.object_name}"] in bodies

    assert await in_every_order(case) >= (5 if conditional else 50)
    assert winners == {'"one"', '"two"'}


async def test_loser_with_the_same_bytes_returns_the_record_of_the_winner() -> None:
    bucket = MemoryBucket()
    first = await BucketNode("one", bucket).fill(BODY)
    node = BucketNode("two", bucket)
    assert await node.fill(BODY) == first
    assert node.shown(KEY) == {first}
    assert node.client.count("PUT", RECORDS) == 1, "refused by the bucket"


async def test_replaced_validator_leaves_the_response_cache() -> None:
    bucket = MemoryBucket(conditional_put=False)
    node = BucketNode("one", bucket)
    await node.fill(BODY)
    theirs = record_of(OTHER, etag='"two"')
    bucket.objects[record_path(KEY)] = b""  # a write that is no record yet
    other = BucketNode("two", MemoryBucket(conditional_put=False))
    await other.fill(OTHER)
    bucket.objects |= other.client.bucket.objects
    node.changed.clear()
    await node.settle()
    assert node.changed == [KEY]
    assert node.shown(KEY) == {theirs}
    node.changed.clear()
    await node.settle()
    assert node.changed == [], "it is read again, and has not changed"


async def test_removal_that_a_put_overwrote_is_not_shown() -> None:
    bucket = MemoryBucket(conditional_put=False)
    node = BucketNode("one", bucket)
    await node.fill(BODY)
    await BucketNode("two", bucket).store.put_tombstone(Tombstone(KEY, NOON))
    await node.settle()
    assert node.shown(KEY) == set()
    assert node.changed[-1] == KEY
    assert KEY not in node.index.records


async def test_unreachable_bucket_settles_later() -> None:
    bucket = MemoryBucket(conditional_put=False)
    node = BucketNode("one", bucket)
    await node.fill(BODY)
    node.client.faults["GET", RECORDS] = BucketError("the bucket is away")
    await node.settle()
    assert KEY in node.store.unsettled
    node.client.faults.clear()
    await BucketNode("two", bucket).store.put(
        await draft_of(OTHER), record_of(OTHER, etag='"two"'), record_of(BODY).digest
    )
    await node.settle()
    assert node.shown(KEY) == {record_of(OTHER, etag='"two"')}
    await node.settle()
    assert len(node.store.unsettled) == 0


async def test_failure_of_one_record_loses_no_other(caplog: pytest.LogCaptureFixture) -> None:
    bucket = MemoryBucket(conditional_put=False)
    node = BucketNode("one", bucket)
    names = [str(number) for number in range(2 * CONCURRENT_MAX)]
    for name in names:
        await node.fill(BODY, name=name)
    first, theirs = record_of(BODY, name=names[0]), record_of(OTHER, name=names[-1], etag='"two"')
    bucket.objects[record_path(theirs.key)] = encode_record(theirs)
    node.client.faults["GET", record_path(first.key)] = OverflowError()  # what nothing expects
    await node.settle()
    assert node.shown(theirs.key) == {theirs}
    assert first.key in node.store.unsettled
    assert [record.message for record in caplog.records] == ["record not read again"]


async def test_bucket_that_loses_a_record_is_a_fault() -> None:
    node = BucketNode("one", MemoryBucket(conditional_put=False))
    path = record_path(KEY)

    class Forgetful(dict[str, bytes]):
        def __setitem__(self, name: str, data: bytes) -> None:
            if name != path:
                super().__setitem__(name, data)

    node.client.bucket.objects = Forgetful()
    with pytest.raises(StorageError):
        await node.fill(BODY)


async def test_record_that_the_bucket_has_and_does_not_return_is_a_fault() -> None:
    node = BucketNode("one", MemoryBucket())
    node.client.bucket.objects[record_path(KEY)] = b"it is no record"
    stored = await node.fill(BODY)
    assert stored == record_of(BODY, etag='"one"'), "it went to quarantine"
    assert node.client.count("PUT", RECORDS) <= ADDS_MAX


async def test_lost_image_of_a_record_is_replaced() -> None:
    bucket = MemoryBucket()
    node = BucketNode("one", bucket)
    await node.fill(BODY)
    await node.store.delete_object(record_of(BODY).digest)
    assert await node.fill(OTHER) == await standing(bucket) == record_of(OTHER, etag='"one"')


async def test_second_fill_keeps_the_validator_and_removes_doubts() -> None:
    bucket = MemoryBucket()
    node = BucketNode("one", bucket)
    doubtful = record_of(BODY, etag='"first"').with_doubts(frozenset({Doubt.PLAINTEXT}))
    await node.store.put(await draft_of(BODY), doubtful)
    assert await node.fill(BODY) == record_of(BODY, etag='"first"')


async def test_conflict_leaves_the_image_of_the_winner() -> None:
    bucket = MemoryBucket(conditional_put=False)
    first = await BucketNode("one", bucket).fill(BODY)
    with pytest.raises(Conflict):
        await BucketNode("two", bucket).store.put(await draft_of(OTHER), record_of(OTHER))
    assert await standing(bucket) == first


def test_a_record_is_read_again_after_the_last_put_that_did_not_see_it() -> None:
    assert SETTLE_AFTER_S > PUT_WINDOW_S


async def test_clients_of_both_nodes_are_shown_one_image() -> None:
    bucket, url = MemoryBucket(conditional_put=False), "https://images.example/a.png"
    one, two = [ServingNode(name, bucket) for name in ("one", "two")]
    for seed, node in enumerate((one, two)):
        node.world.origin.gives(url, make_image(seed=seed))
    gate = two.client.gates["PUT", RECORDS] = asyncio.Event()
    late = asyncio.create_task(two.world.get(url))
    await two.client.reached.wait()  # it has checked the key
    assert await one.world.get(url) == ("stored", make_image(seed=0))
    gate.set()
    assert await late == ("stored", make_image(seed=1))
    assert await one.world.get(url) == ("hit", make_image(seed=0)), "until it reads its record again"
    one.changed.clear()
    for node in (one, two):
        await node.settle()
        assert await node.world.get(url) == ("hit", make_image(seed=1))
    deliveries = [await node.world.ask(url) for node in (one, two)]
    assert len({(delivery.etag, delivery.key) for delivery in deliveries}) == 1
    assert one.changed == [deliveries[0].key], "its cached responses are evicted"
    for delivery in deliveries:
        await delivery.body.aclose()
