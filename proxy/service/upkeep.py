"""Looking after what is stored: bring the catalog up to date, and find what is damaged, missing or left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from proxy.core.model import Record
from proxy.core.stored import RecordTooNew, object_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.ports import Archive, Ledger


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


async def reindex(archive: Archive, ledger: Ledger) -> int:
    """
    Fill the catalog from the records and return how many there are.

    Raises:
        StorageError: The catalog failed.
    """
    return await ledger.rebuild(lambda: (record for _, record in archive.records() if isinstance(record, Record)))


def verify(archive: Archive) -> Iterator[Finding | None]:
    """
    Read everything that is stored, and yield a finding or `None` for each record and object. Blocks.

    What is damaged is set aside at once, so that nobody is served it from then on.
    """
    wanted: set[str] = set()
    for path, record in archive.records():
        if isinstance(record, Record):
            wanted.add(object_path(record.object_name))
            yield None
        elif isinstance(record, RecordTooNew):
            yield Finding("unreadable", path)
        else:
            archive.set_aside(path)
            yield Finding("damaged", path)
    for path in archive.objects():
        try:
            digest = archive.hash_object(path)
        except FileNotFoundError:
            continue  # removed since its folder was listed
        except OSError:
            digest = None
        known = path in wanted
        wanted.discard(path)
        if digest is None:
            yield Finding("unreadable", path)
        elif digest != path.rpartition("/")[2].partition(".")[0]:
            archive.set_aside(path)
            yield Finding("damaged", path)
        else:
            yield None if known else Finding("orphan", path)
    for path in sorted(wanted):
        yield Finding("missing", path)
