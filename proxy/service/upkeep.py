"""Looking after what is stored: bring the catalog up to date, and find what is damaged, missing or left over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from proxy.core.errors import StorageError
from proxy.core.model import Record, Tombstone
from proxy.core.stored import OBJECTS, RECORDS, RecordTooNew, object_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from proxy.core.model import Digest
    from proxy.core.stored import RecordUnreadable
    from proxy.ports import Archive, Ledger

BATCH: Final = 200
"""Records read at a time: a second or two, even from a bucket."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Something that is not as it should be, by its path in the stored layout.

    `damaged`: the bytes are not those that were stored; set aside. `missing`: a record's object is not there.
    `orphan`: an object that no record points at. `unreadable`: a record of a newer version, or an object that the disk
    does not give.
    """

    kind: Literal["damaged", "missing", "orphan", "unreadable"]
    path: str


async def records(archive: Archive) -> AsyncIterator[tuple[str, Record | Tombstone | RecordUnreadable]]:
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


async def reindex(archives: Sequence[Archive], ledger: Ledger) -> int:
    """
    Fill the catalog from the records and return how many there are. What lies in a second archive waits for the first.

    Raises:
        StorageError: The catalog or a store failed.
    """

    async def everything() -> AsyncIterator[Record]:
        for archive in archives:
            async for _, record in records(archive):
                if isinstance(record, Record):
                    yield record if archive is archives[0] else replace(record, pending=True)

    return await ledger.rebuild(everything())


async def verify(archive: Archive) -> AsyncIterator[Finding | None]:
    """
    Read everything that is stored, and yield a finding or `None` for each record and object.

    What is damaged is set aside at once, so that nobody is served it from then on.
    """
    wanted: set[str] = set()
    async for finding in _verify_records(archive, wanted):
        yield finding
    async for path, _ in archive.walk(OBJECTS):
        known = path in wanted
        wanted.discard(path)
        try:
            digest = await archive.hash_object(path)
        except StorageError:
            yield Finding("unreadable", path)
            continue
        if digest is None:
            continue  # removed since its folder was listed
        if not _is_named(path, digest) and not _is_named(path, await archive.hash_object(path)):  # may be the line's
            await archive.set_aside(path)
            yield Finding("damaged", path)
        else:
            yield None if known else Finding("orphan", path)
    refused = await archive.refused() if wanted else ()
    for path in sorted(wanted):
        if path.rpartition("/")[2].partition(".")[0] in refused:
            continue  # removed, under a link that the remover did not know
        if await archive.hash_object(path) is None:  # and did not come or move while we read
            yield Finding("missing", path)


async def _verify_records(archive: Archive, wanted: set[str]) -> AsyncIterator[Finding | None]:
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
            await archive.set_aside(path)
            yield Finding("damaged", path)


def _is_named(path: str, digest: Digest | None) -> bool:
    return digest == path.rpartition("/")[2].partition(".")[0]
