"""Looking after what is stored: bring the database up to date, and find what is damaged, missing or left over."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from imgkeep.core.errors import Conflict, StorageError
from imgkeep.core.formats import HEAD_BYTES_MAX, Spent, sniff
from imgkeep.core.formats import is_incomplete as lacks_bytes
from imgkeep.core.incomplete_image import is_confirmed_as_it_is, is_incomplete, mark
from imgkeep.core.layout import OBJECTS, RECORDS, RecordTooNew, object_path
from imgkeep.core.records import Format, Record, Tombstone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from imgkeep.core.formats import Buffer
    from imgkeep.core.layout import RecordUnreadable
    from imgkeep.core.records import Digest, Key
    from imgkeep.database.interfaces import Ledger
    from imgkeep.storage.interfaces import ListableStore

BATCH: Final = 200
"""Records read at a time: a second or two, even from a bucket."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Something that is not as it should be, by its path in the stored layout.

    `damaged`: the bytes are not those that were stored; set aside. `missing`: a record's object is not there.
    `orphan`: an object that no record points at. `unreadable`: a record of a newer version, or an object that the disk
    does not give. `incomplete`: by the format of the bytes something is missing, and was missing when they came; `path`
    is that of the record.
    """

    kind: Literal["damaged", "missing", "orphan", "unreadable", "incomplete"]
    path: str
    key: Key | None = None


async def records(archive: ListableStore) -> AsyncIterator[tuple[str, Record | Tombstone | RecordUnreadable]]:
    """Read all records and tombstones of a store, in the order of their paths."""
    batch: list[str] = []
    async for path, _ in archive.walk(RECORDS):
        batch.append(path)
        if len(batch) == BATCH:
            for found in await archive.read_records(batch):
                yield found
            batch = []
    for found in await archive.read_records(batch):
        yield found


async def reindex(archives: Sequence[ListableStore], image_index: Ledger) -> int:
    """
    Fill the database from the records and return how many there are. What lies in a second archive waits for the first.

    Raises:
        StorageError: The database or a store failed.
    """

    async def everything() -> AsyncIterator[Record]:
        for archive in archives:
            async for _, record in records(archive):
                if isinstance(record, Record):
                    yield record if archive is archives[0] else replace(record, pending=True)

    return await image_index.rebuild(everything())


async def verify(archive: ListableStore, note: Callable[[Record], Awaitable[None]]) -> AsyncIterator[Finding | None]:
    """
    Read everything that is stored, and yield a finding or `None` for each record and object, and a finding for each
    image that is incomplete.

    What is damaged is set aside at once, so that nobody is served it from then on. Of what is incomplete the record
    says so from then on, and `note` is told of it: such an image is fetched again (`core/incomplete_image.py`).
    """
    wanted: set[str] = set()
    incomplete: set[str] = set()
    async for finding in _verify_records(archive, wanted):
        yield finding
    async for finding in _verify_objects(archive, wanted, incomplete):
        yield finding
    if incomplete:
        async for finding in _mark_incomplete(archive, incomplete, note):
            yield finding
    refused = await archive.list_blocked() if wanted else ()
    for path in sorted(wanted):
        if path.rpartition("/")[2].partition(".")[0] in refused:
            continue  # removed, under a link that the remover did not know
        if await archive.hash_object(path) is None:  # and did not come or move while we read
            yield Finding("missing", path)


async def _verify_objects(
    archive: ListableStore, wanted: set[str], incomplete: set[str]
) -> AsyncIterator[Finding | None]:
    """Read all objects; take those that are there from `wanted`, and add the incomplete ones of records."""
    async for path, _ in archive.walk(OBJECTS):
        known = path in wanted
        wanted.discard(path)
        try:
            judged = await archive.check_object(path, _lacks_bytes)
        except StorageError:
            yield Finding("unreadable", path)
            continue
        if judged is None:
            continue  # removed since its folder was listed
        digest, lacks = judged
        if not _is_named(path, digest) and not _is_named(path, await archive.hash_object(path)):  # may be the line's
            await archive.quarantine(path)
            yield Finding("damaged", path)
            continue
        if known and lacks:
            incomplete.add(path)  # and not good
            continue
        yield None if known else Finding("orphan", path)


def _lacks_bytes(body: Buffer) -> bool:
    """Whether bytes are an image that is incomplete by its format. One that takes too much to judge is not."""
    try:
        head = bytes(body[:HEAD_BYTES_MAX])
        format_ = sniff(head, ended=len(head) == len(body))
        return isinstance(format_, Format) and lacks_bytes(format_, body)
    except Spent:
        return False


async def _mark_incomplete(
    archive: ListableStore, objects: set[str], note: Callable[[Record], Awaitable[None]]
) -> AsyncIterator[Finding | None]:
    """Mark the records of incomplete objects and yield them; `None` for what was confirmed as it is."""
    async for path, record in records(archive):
        if not isinstance(record, Record) or object_path(record.object_name) not in objects:
            continue
        if is_confirmed_as_it_is(record):
            yield None
            continue
        # What was uploaded or imported has no origin: it is told of, and stays what it is.
        if record.host and not is_incomplete(record):
            with suppress(Conflict):  # another image has just taken its place
                await archive.put_record(mark(record))
                await note(mark(record))
        yield Finding("incomplete", path, record.key)


async def _verify_records(archive: ListableStore, wanted: set[str]) -> AsyncIterator[Finding | None]:
    """Add the paths of all objects that records point at to `wanted`."""
    async for path, record in records(archive):
        if isinstance(record, Record):
            wanted.add(object_path(record.object_name))
            yield None
        elif isinstance(record, Tombstone):
            yield None
        elif isinstance(record, RecordTooNew):
            yield Finding("unreadable", path)
        else:
            await archive.quarantine(path)
            yield Finding("damaged", path)


def _is_named(path: str, digest: Digest | None) -> bool:
    return digest == path.rpartition("/")[2].partition(".")[0]
