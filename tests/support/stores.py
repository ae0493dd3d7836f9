"""The simplest implementation of `Store` and `Spool`, and means to put images into any store and to read them back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from imgkeep.core.confirmation import adopt
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import REMOVED, object_names
from imgkeep.core.records import Digest, Format, Key, PixelSize, Provenance, Record
from imgkeep.storage.local.disk import Disk
from imgkeep.storage.local.store import LocalStore
from imgkeep.storage.memory import MemoryBody, MemorySpool

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import pytest

    from imgkeep.core.records import Tombstone
    from imgkeep.storage.interfaces import Body, Draft, Spool, Store


NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DISK_BYTES = 6000


def limit_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, pattern: str) -> None:
    """Let the disk have `DISK_BYTES`, of which the files in a folder that match a pattern take their sizes."""

    class Usage:
        f_flag = f_files = 0
        f_frsize = 1

        def __init__(self, _place: Path) -> None:
            self.free = self.f_bavail = DISK_BYTES - sum(path.stat().st_size for path in folder.rglob(pattern))

    monkeypatch.setattr("shutil.disk_usage", Usage)
    monkeypatch.setattr("os.statvfs", Usage)


def record_of(body: bytes, *, name: str = "a", etag: str = '"one"') -> Record:
    """Return a record under a key of its own for every name."""
    identity = f"https://images.example/{name}.png"
    return Record(
        key=Key(sha256(identity.encode()).hexdigest()),
        identity=identity,
        digest=Digest(sha256(body).hexdigest()),
        format=Format.PNG,
        size=len(body),
        pixel_size=PixelSize(8, 6),
        etag=etag,
        stored_at=NOON,
        provenance=Provenance(
            host="images.example", provider="Example", temporary=True, expires_at=NOON.replace(hour=13)
        ),
    )


def local_store(root: Path, **options: Any) -> LocalStore:
    """Return a local store on a disk of its own, with options of `Disk`."""
    return LocalStore(Disk(root, **options))


def spool_of(store: Store) -> Spool:
    """Return the spool for drafts that the store takes."""
    if isinstance(store, LocalStore):
        return store.disk
    spool: Spool = store.spool  # type: ignore[attr-defined]  # every other store in tests is given one
    return spool


async def put_image(store: Store, body: bytes, record: Record | None = None, replaces: Digest | None = None) -> Record:
    """Put a body as a fill does, in chunks; return its record."""
    record = record or record_of(body)
    draft = await spool_of(store).begin(len(body))
    for start in range(0, len(body), 30_000):
        await draft.write(body[start : start + 30_000])
    assert (draft.size, draft.digest) == (len(body), record.digest)
    try:
        await store.put(draft, record, replaces)
    finally:
        await draft.aclose()
    return record


async def read_all(body: Body, *, piece: int = 32_768) -> bytes:
    """Read a body to its end, in pieces."""
    data = bytearray()
    while part := await body.read(len(data), piece):
        assert len(part) <= piece
        data += part
    return bytes(data)


async def fetch_image(store: Store, record: Record) -> bytes:
    """Return the bytes of a stored image."""
    body = await store.fetch(record.object_name, record.size)
    assert body is not None
    try:
        assert body.size == await body.wait_for_size() == record.size
        return await read_all(body)
    finally:
        await body.aclose()


@dataclass
class FakeStore:
    """Keeps images in two dictionaries. `broken` makes every call a fault, as an unreachable store would."""

    name: str = "fake"
    local_drafts_only: bool = True
    objects: dict[str, bytes] = field(default_factory=dict)
    found: dict[Key, Record] = field(default_factory=dict)
    tombstones: dict[Key, Tombstone] = field(default_factory=dict)
    blocks: dict[Digest, frozenset[Key]] = field(default_factory=dict)
    broken: bool = False
    spool: MemorySpool = field(default_factory=lambda: MemorySpool(1_000_000_000))

    async def find(self, key: Key) -> Record | None:
        self._insist()
        self._insist_on_life(key)
        return self.found.get(key)

    async def fetch(self, name: str, size: int | None) -> Body | None:
        self._insist()
        data = self.objects.get(name)
        return None if data is None or size not in {None, len(data)} else MemoryBody(data)

    async def holds(self, name: str, size: int) -> bool:
        self._insist()
        return len(self.objects.get(name, b"")) == size

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        self._insist()
        self._insist_on_life(record.key)
        theirs = self.found.get(record.key)
        if theirs and theirs.object_name in self.objects and theirs.digest not in {record.digest, replaces}:
            raise StorageError("another image was stored under this link meanwhile")
        self.objects[record.object_name] = await draft.read(0, draft.size)
        adopted = adopt(theirs, record) if theirs and replaces is None else None
        self.found[record.key] = adopted or replace(record)
        return self.found[record.key]

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        self._insist()
        self._insist_on_life(record.key)
        theirs = self.found.get(record.key)
        if theirs and theirs.object_name in self.objects and theirs.digest not in {record.digest, replaces}:
            raise StorageError("another image was stored under this link meanwhile")
        self.found[record.key] = record
        return record

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        self._insist()
        self.found.pop(tombstone.key, None)
        self.tombstones[tombstone.key] = tombstone

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        del removed_at
        self._insist()
        self.blocks[digest] = frozenset(keys)

    async def delete_object(self, digest: Digest) -> None:
        self._insist()
        for name in object_names(digest):
            self.objects.pop(name, None)

    async def list_blocked(self) -> set[Digest]:
        self._insist()
        return set(self.blocks)

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        self._insist()
        return self.blocks.get(digest)

    async def unblock(self, digest: Digest) -> None:
        self._insist()
        self.blocks.pop(digest, None)

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        self._insist()
        return self.tombstones.get(key)

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        self._insist()
        if self.tombstones.get(tombstone.key) == tombstone:
            del self.tombstones[tombstone.key]

    async def has_object(self, digest: Digest) -> bool:
        self._insist()
        return any(name in self.objects for name in object_names(digest))

    def _insist_on_life(self, key: Key) -> None:
        if key in self.tombstones:
            raise Removed(REMOVED)

    def _insist(self) -> None:
        if self.broken:
            raise StorageError("the fake store is broken on purpose")
