"""Maintenance of a store: `reindex` rebuilds the image index, `verify` finds damaged, missing and orphaned objects."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from imgkeep.core.derived.names import DERIVED, read_path
from imgkeep.core.errors import Conflict, StorageError
from imgkeep.core.formats import HEAD_BYTES_MAX, Spent, sniff
from imgkeep.core.formats import is_incomplete as lacks_bytes
from imgkeep.core.layout import OBJECTS, RECORDS, RecordTooNew, is_own_path, object_path
from imgkeep.core.records import Digest, Format, Record, Tombstone
from imgkeep.core.refetch_rules import is_confirmed_as_it_is, is_incomplete, mark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from imgkeep.core.formats import Buffer
    from imgkeep.core.layout import RecordUnreadable
    from imgkeep.core.records import Key
    from imgkeep.database import ImageIndex
    from imgkeep.storage.interfaces import ListableStore

RECORDS_PER_BATCH: Final = 200
"""Number of records that are read at a time: a second or two, even from a bucket."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    A defect of the store, by the path in the stored layout.

    `damaged`: the bytes are not those that were stored; quarantined. `missing`: the object of a record is not there.
    `orphan`: no record points at the object. `unreadable`: a record of a newer version, or an object that the disk
    cannot read. `incomplete`: by its format, bytes are missing and were missing when it came; `path` is the record's.
    `foreign`: the path is none of the stored layout, and what is there stays as it is: no defect.
    `removed`: an operator removed these bytes, and they came back, or a picture that was made from them; deleted.
    """

    kind: Literal["damaged", "missing", "orphan", "unreadable", "incomplete", "foreign", "removed"]
    path: str
    key: Key | None = None

    @property
    def digest(self) -> Digest:
        """The digest in the path of an object."""
        return Digest(self.path.rpartition("/")[2].partition(".")[0])


async def read_records(
    store: ListableStore,
) -> AsyncIterator[tuple[str, Record | Tombstone | RecordUnreadable | None]]:
    """Read all records and tombstones of a store; yield `None` for a foreign path, without reading it."""
    batch: list[str] = []
    async for path, _ in store.walk(RECORDS):
        if not is_own_path(path):
            yield path, None
            continue
        batch.append(path)
        if len(batch) == RECORDS_PER_BATCH:
            for found in await store.read_records(batch):
                yield found
            batch = []
    for found in await store.read_records(batch):
        yield found


async def reindex(stores: Sequence[ListableStore], image_index: ImageIndex) -> int:
    """
    Rebuild the image index from the records and return their number. Records of a second store wait in the outbox.

    Raises:
        StorageError: The database or a store failed.
    """

    async def all_records() -> AsyncIterator[Record]:
        for store in stores:
            async for _, record in read_records(store):
                if isinstance(record, Record):
                    yield record if store is stores[0] else replace(record, waits_at="")

    return await image_index.rebuild(all_records())


async def verify(store: ListableStore, note: Callable[[Record], Awaitable[None]]) -> AsyncIterator[Finding | None]:
    """
    Read all records and objects; yield a finding or `None` for each, and a finding for each incomplete image.

    Damaged files are quarantined at once, so that no reader is served them. The record of an incomplete image says so
    from then on, and `note` is told of it: such an image is fetched again (`core/refetch_rules.py`).
    Foreign files are neither read nor moved. Objects of blocked digests are deleted, and pictures that were made from
    them; other pictures are not read, because they can be made again.
    """
    wanted: set[str] = set()
    incomplete: set[str] = set()
    async for finding in _verify_records(store, wanted):
        yield finding
    async for finding in _verify_objects(store, wanted, incomplete):
        yield finding
    if incomplete:
        async for finding in _mark_incomplete(store, incomplete, note):
            yield finding
    async for finding in _delete_pictures(store):
        yield finding
    refused = await store.list_blocked() if wanted else ()
    for path in sorted(wanted):
        if path.rpartition("/")[2].partition(".")[0] in refused:
            continue  # removed, under a key that the removal did not know
        if await store.hash_object(path) is None:  # and was neither stored nor moved meanwhile
            yield Finding("missing", path)


async def _verify_objects(
    store: ListableStore, wanted: set[str], incomplete: set[str]
) -> AsyncIterator[Finding | None]:
    """Read all objects; discard those that are there from `wanted`, and add incomplete ones to `incomplete`."""
    blocked = await store.list_blocked()
    async for path, _ in store.walk(OBJECTS):
        if not is_own_path(path):
            yield Finding("foreign", path)
            continue
        known = path in wanted
        wanted.discard(path)
        digest = Digest(path.rpartition("/")[2].partition(".")[0])
        if digest in blocked and await store.find_block(digest) is not None:  # and the removal was not undone since
            await store.delete_object(digest)
            yield Finding("removed", path)
            continue
        try:
            judged = await store.check_object(path, _lacks_bytes)
        except StorageError:
            yield Finding("unreadable", path)
            continue
        if judged is None:
            continue  # removed since its folder was listed
        found, lacks = judged
        if not _is_named(path, found) and not _is_named(
            path, await store.hash_object(path)
        ):  # a flipped bit in transit
            await store.quarantine(path)
            yield Finding("damaged", path)
            continue
        if known and lacks:
            incomplete.add(path)  # its record is yielded later
            continue
        yield None if known else Finding("orphan", path)


async def _delete_pictures(store: ListableStore) -> AsyncIterator[Finding]:
    """Delete the derived pictures of blocked digests that a removal has left."""
    blocked = await store.list_blocked()
    found: dict[Digest, str] = {}
    if blocked:
        async for path, _ in store.walk(DERIVED):
            name = read_path(path)
            if name is not None and name.digest in blocked:
                found.setdefault(name.digest, path)
    for digest, path in found.items():
        if await store.find_block(digest) is not None:  # and the removal was not undone since
            await store.delete_object(digest)
            yield Finding("removed", path)


def _lacks_bytes(body: Buffer) -> bool:
    """Tell whether bytes are an image that is incomplete by its format. One that takes too many steps is not."""
    try:
        head = bytes(body[:HEAD_BYTES_MAX])
        format_ = sniff(head, ended=len(head) == len(body))
        return isinstance(format_, Format) and lacks_bytes(format_, body)
    except Spent:
        return False


async def _mark_incomplete(
    store: ListableStore, objects: set[str], note: Callable[[Record], Awaitable[None]]
) -> AsyncIterator[Finding | None]:
    """Mark the records of incomplete objects and yield them; `None` for an image that was confirmed as it is."""
    async for path, record in read_records(store):
        if not isinstance(record, Record) or object_path(record.object_name) not in objects:
            continue
        if is_confirmed_as_it_is(record):
            yield None
            continue
        # An uploaded or imported image has no origin: it is reported, and stays as it is.
        if record.host and not is_incomplete(record):
            with suppress(Conflict):  # another image has just replaced it
                await store.put_record(mark(record))
                await note(mark(record))
        yield Finding("incomplete", path, record.key)


async def _verify_records(store: ListableStore, wanted: set[str]) -> AsyncIterator[Finding | None]:
    """Read all records, and add the paths of their objects to `wanted`."""
    async for path, record in read_records(store):
        if record is None:
            yield Finding("foreign", path)
        elif isinstance(record, Record):
            wanted.add(object_path(record.object_name))
            yield None
        elif isinstance(record, Tombstone):
            yield None
        elif isinstance(record, RecordTooNew):
            yield Finding("unreadable", path)
        else:
            await store.quarantine(path)
            yield Finding("damaged", path)


def _is_named(path: str, digest: Digest | None) -> bool:
    return digest == path.rpartition("/")[2].partition(".")[0]
