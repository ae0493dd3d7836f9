"""The local store beyond the contract of all stores: layout, damage, drafts and concurrent processes."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import OBJECTS, RecordTooNew, encode_record, object_path, record_path
from imgkeep.core.records import Doubt, Record, Refetches
from imgkeep.maintenance.verify_reindex import Finding, read_records, verify
from imgkeep.storage.local import atomic_files as files
from imgkeep.storage.local import open_files
from imgkeep.storage.local.disk import HASHED_BYTES_MAX, Disk
from imgkeep.storage.memory import MemoryBody, MemorySpool
from tests.support.images import make_image
from tests.support.stores import fetch_image, local_store, put_image, record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.storage.local.store import LocalStore

T = TypeVar("T")

WHEN = datetime(2026, 11, 22, 10, tzinfo=UTC)
SMALL = random.Random(1).randbytes(10_000)
LARGE = random.Random(2).randbytes(HASHED_BYTES_MAX + 1000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = local_store(tmp_path / "store")
    await store.open()
    yield store
    await store.aclose()


def change(path: Path, *, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


async def walk(steps: AsyncIterator[T]) -> list[T]:
    return [step async for step in steps]


# --- layout


async def test_files_have_the_paths_of_the_public_layout(store: LocalStore) -> None:
    record = await put_image(store, SMALL)
    paths = sorted(str(path.relative_to(store.disk.root)) for path in store.disk.root.rglob("*") if path.is_file())
    digest, key = record.digest, record.key
    assert paths == [f"v1/objects/{digest[:2]}/{digest}.png", f"v1/records/{key[:2]}/{key}.json"]
    assert (store.disk.root / paths[0]).read_bytes() == SMALL
    assert (store.disk.root / paths[1]).read_bytes() == encode_record(record)


async def test_walk_yields_all_files_in_path_order(store: LocalStore) -> None:
    records = {
        record_path(record.key): record
        for record in [
            await put_image(store, bytes([n]) * 50, record_of(bytes([n]) * 50, name=str(n))) for n in range(40)
        ]
    }
    assert await walk(read_records(store)) == sorted(records.items())
    assert await walk(store.walk(OBJECTS)) == sorted(
        (object_path(record.object_name), 50) for record in records.values()
    )


async def test_walk_skips_foreign_files(store: LocalStore) -> None:
    record = await put_image(store, SMALL)
    strange = store.disk.root / OBJECTS / "lost+found"
    strange.mkdir()
    (strange / "x.png").write_bytes(SMALL)
    (store.disk.root / OBJECTS / "notes.txt").write_bytes(b"")
    assert [path for path, _ in await walk(store.walk(OBJECTS))] == [object_path(record.object_name)]


async def test_walk_of_a_missing_root_is_a_fault(store: LocalStore) -> None:
    await put_image(store, SMALL)
    store.disk.root.rename(store.disk.root.with_name("moved"))
    with pytest.raises(StorageError):
        await walk(read_records(store))
    with pytest.raises(StorageError):
        await walk(store.walk(OBJECTS))


# --- memory


async def test_small_object_stays_in_memory_large_one_does_not(
    tmp_path: Path,
) -> None:
    store = local_store(tmp_path, memory_bytes_max=10_000_000)
    await store.open()
    small, large = await put_image(store, SMALL), await put_image(store, LARGE, record_of(LARGE, name="large"))
    assert isinstance(await store.fetch(small.object_name, None), MemoryBody)
    (tmp_path / object_path(small.object_name)).unlink()
    assert await fetch_image(store, small) == SMALL
    body = await store.fetch(large.object_name, large.size)
    assert not isinstance(body, MemoryBody)
    assert body is not None
    assert len(await body.read(0, 1000)) == 1000
    await body.aclose()
    await store.aclose()


async def test_object_larger_than_the_memory_cache_is_served(tmp_path: Path) -> None:
    store = local_store(tmp_path, memory_bytes_max=100)
    await store.open()
    record = await put_image(store, SMALL)
    assert [await fetch_image(store, record) for _ in range(2)] == [SMALL, SMALL]
    await store.aclose()


async def test_memory_of_drafts_is_bounded_and_released() -> None:
    spool = MemorySpool(1000)
    first = await spool.begin(600)
    with pytest.raises(StorageError):
        await spool.begin(500)
    second = await spool.begin(None)
    await second.write(b"x" * 400)
    with pytest.raises(StorageError):
        await second.write(b"x")
    assert await second.read(0, 1000) == b"x" * 400
    await first.write(b"y" * 600)
    for draft in (first, second):
        await draft.aclose()
    assert spool.bytes_left == 1000


# --- damage


async def test_corrupt_object_is_a_miss_and_quarantined(store: LocalStore) -> None:
    record = await put_image(store, SMALL)
    path = store.disk.root / object_path(record.object_name)
    change(path, at=5000)
    found = await asyncio.gather(*(store.fetch(record.object_name, None) for _ in range(10)))
    assert found == [None] * 10
    assert not path.exists()
    (damaged,) = (store.disk.root / "damaged").iterdir()
    assert damaged.name.startswith(path.name)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_truncated_object_is_a_miss_and_quarantined(store: LocalStore, body: bytes) -> None:
    record = await put_image(store, body)
    path = store.disk.root / object_path(record.object_name)
    os.truncate(path, HASHED_BYTES_MAX + 10 if body is LARGE else 10)
    assert await store.fetch(record.object_name, record.size) is None
    assert not path.exists()


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_wrong_size_in_a_record_costs_no_good_object(store: LocalStore, body: bytes) -> None:
    record = await put_image(store, body)
    found = await store.fetch(record.object_name, record.size + 1)
    assert found is not None
    assert found.size == len(body)
    await found.aclose()
    assert not (store.disk.root / "damaged").exists()


async def test_object_that_shrinks_during_a_read_is_a_fault(store: LocalStore) -> None:
    record = await put_image(store, LARGE)
    body = await store.fetch(record.object_name, record.size)
    assert body is not None
    os.truncate(store.disk.root / object_path(record.object_name), 5000)
    assert len(await body.read(0, 5000)) == 5000
    with pytest.raises(StorageError):
        await body.read(5000, 1000)
    await body.aclose()


RECORD_DAMAGES = {
    "empty": b"",
    "not JSON": b"\0" * 500,
    "another type": b"[]",
    "no version": b"{}",
    "a wrong type": encode_record(record_of(SMALL)).replace(b'"size": 10000', b'"size": "many"'),
    "a path for a digest": encode_record(record_of(SMALL)).replace(b'"digest": "', b'"digest": "../../../etc/'),
    "an unknown extension": encode_record(record_of(SMALL)).replace(b'"extension": "png"', b'"extension": "exe"'),
    "another key's": encode_record(record_of(SMALL, name="another")),
}


@pytest.mark.parametrize("data", RECORD_DAMAGES.values(), ids=RECORD_DAMAGES)
async def test_damaged_record_is_a_miss_and_quarantined(store: LocalStore, data: bytes) -> None:
    record = await put_image(store, SMALL)
    path = store.disk.root / record_path(record.key)
    path.write_bytes(data)
    assert not any(isinstance(found, Record) for _, found in await walk(read_records(store)))
    assert await store.find(record.key) is None
    assert not path.exists()
    (damaged,) = (store.disk.root / "damaged").iterdir()
    assert damaged.read_bytes() == data


async def test_record_cut_anywhere_is_a_miss(store: LocalStore) -> None:
    record = await put_image(store, SMALL)
    path = store.disk.root / record_path(record.key)
    data = path.read_bytes()
    for cut in range(0, len(data.rstrip()), 7):
        path.write_bytes(data[:cut])
        assert await store.find(record.key) is None


async def test_record_of_a_newer_version_is_a_fault_and_stays(store: LocalStore) -> None:
    record = await put_image(store, SMALL)
    path = store.disk.root / record_path(record.key)
    newer = path.read_bytes().replace(b'"version": 1', b'"version": 2')
    path.write_bytes(newer)
    with pytest.raises(StorageError, match="newer version"):
        await store.find(record.key)
    with pytest.raises(StorageError, match="newer version"):
        await put_image(store, SMALL, record)
    with pytest.raises(StorageError, match="newer version"):
        await store.delete_record(record.key)
    assert path.read_bytes() == newer
    assert [type(found) for _, found in await walk(read_records(store))] == [RecordTooNew]


async def noted(record: Record) -> None:
    raise AssertionError(f"{record.key} is not incomplete")


async def test_verify_reports_all_findings_and_quarantines_damage(store: LocalStore) -> None:
    bodies = {name: name.encode() * 100 for name in ("good", "flipped", "missing", "orphan", "newer", "cut")}
    records = {name: await put_image(store, body, record_of(body, name=name)) for name, body in bodies.items()}
    at = {name: object_path(record.object_name) for name, record in records.items()}
    under = {name: record_path(record.key) for name, record in records.items()}
    change(store.disk.root / at["flipped"], at=3)
    (store.disk.root / at["missing"]).unlink()
    (store.disk.root / under["orphan"]).unlink()
    newer = (store.disk.root / under["newer"]).read_bytes().replace(b'"version": 1', b'"version": 9')
    (store.disk.root / under["newer"]).write_bytes(newer)
    os.truncate(store.disk.root / under["cut"], 20)
    findings = [finding for finding in await walk(verify(store, noted)) if finding is not None]
    assert sorted(findings, key=lambda finding: (finding.kind, finding.path)) == sorted(
        [
            Finding("damaged", at["flipped"]),
            Finding("damaged", under["cut"]),
            Finding("missing", at["missing"]),
            Finding("orphan", at["orphan"]),
            Finding("orphan", at["newer"]),
            Finding("orphan", at["cut"]),
            Finding("unreadable", under["newer"]),
        ],
        key=lambda finding: (finding.kind, finding.path),
    )
    assert len(list((store.disk.root / "damaged").iterdir())) == 2
    assert not any(finding and finding.kind == "damaged" for finding in await walk(verify(store, noted)))


async def test_verify_marks_incomplete_images_except_confirmed_ones(store: LocalStore) -> None:
    whole, half = make_image(seed=1), make_image(seed=2)[:-20]
    refetches = Refetches(8, 3, WHEN, WHEN)
    records = {
        "whole": record_of(whole, name="whole"),
        "half": record_of(half, name="half"),
        "known": record_of(half, name="known").with_doubts(frozenset({Doubt.INCOMPLETE})),
        "confirmed": replace(
            record_of(half, name="confirmed"),
            trust=replace(record_of(half, name="confirmed").trust, refetches=refetches),
        ),
        "uploaded": replace(
            record_of(half, name="uploaded"), provenance=replace(record_of(half, name="uploaded").provenance, host="")
        ),
    }
    for name, record in records.items():
        await put_image(store, whole if name == "whole" else half, record)
    noted_records: list[Record] = []

    async def note(record: Record) -> None:
        noted_records.append(record)

    for attempt in (1, 2):
        findings = [finding for finding in await walk(verify(store, note)) if finding is not None]
        assert {finding.key for finding in findings} == {records[n].key for n in ("half", "known", "uploaded")}
        assert {finding.kind for finding in findings} == {"incomplete"}
        assert noted_records == [records["half"].with_doubts(frozenset({Doubt.INCOMPLETE}))], attempt
    assert await store.find(records["half"].key) == noted_records[0]
    assert await store.find(records["confirmed"].key) == records["confirmed"]
    assert await store.find(records["uploaded"].key) == records["uploaded"]


# --- partial files


async def test_sweep_deletes_abandoned_drafts_only(store: LocalStore) -> None:
    draft = await store.disk.begin(None)
    await draft.write(LARGE)  # a small one has no file
    (store.disk.root / "partial" / "dead").write_bytes(b"left behind")
    other = local_store(store.disk.root)
    await other.open()
    await other.aclose()
    assert [path.name for path in (store.disk.root / "partial").iterdir()] == [draft.path.name]
    await store.put(draft, record_of(LARGE))
    await draft.aclose()
    assert await fetch_image(store, record_of(LARGE)) == LARGE


SWEEPER = """
import sys, pathlib
from imgkeep.storage.local import atomic_files as files
print("sweeping", flush=True)
while True:
    files.sweep(pathlib.Path(sys.argv[1]))
"""


def test_sweep_of_another_process_loses_no_draft(tmp_path: Path) -> None:
    # Between its creation and its lock a partial file attempt abandoned; the writer has to notice when it was swept.
    folder = tmp_path / "partial"
    folder.mkdir()
    (folder / "x").mkdir()
    sweeper = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SWEEPER,
            str(folder),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    try:
        assert sweeper.stdout is not None
        sweeper.stdout.readline()
        for number in range(3000):
            path = folder / str(number)
            descriptor = files.create_partial(path)
            files.publish(path, tmp_path / "final")
            os.close(descriptor)
        assert sweeper.poll() is None
    finally:
        sweeper.kill()
        sweeper.communicate()


async def test_draft_stays_open_until_a_cancelled_write_ends(store: LocalStore) -> None:
    # Else the next draft gets the descriptor's number, and the rest of the bytes with it.
    chunk = bytes(64_000_000)
    draft = await store.disk.begin(None)
    draft.is_published = True  # its removal would wait for the write by itself
    write = asyncio.create_task(draft.write(chunk))
    async with asyncio.timeout(20):
        while not (draft.path.exists() and draft.path.stat().st_size):  # noqa: ASYNC110 - its thread sets no event
            await asyncio.sleep(0)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    await draft.aclose()
    assert draft.digest == sha256(chunk).hexdigest(), "the write ended before the file was closed"
    with pytest.raises(StorageError):
        await draft.write(b"more")


async def test_failed_write_leaves_size_and_digest(store: LocalStore) -> None:
    draft = await store.disk.begin(None)
    await draft.write(SMALL)
    with pytest.raises(StorageError, match="free_bytes_min"):
        await Disk(store.disk.root, free_bytes_min=2**60).begin(None)
    assert (draft.size, draft.digest) == (len(SMALL), sha256(SMALL).hexdigest())
    await draft.aclose()


async def test_check_leaves_nothing_and_returns_free_bytes(store: LocalStore) -> None:
    assert await store.check() > 0
    assert list((store.disk.root / "partial").iterdir()) == []


async def test_fault_names_the_cause_and_no_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = local_store(tmp_path / "file" / "store")
    with pytest.raises(StorageError) as caught:
        await store.open()
    assert os.strerror(errno.ENOTDIR) in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    await store.aclose()


# --- faults of the device


def test_write_to_a_full_device_fails() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            files.write_all(descriptor, b"data")
    finally:
        os.close(descriptor)


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_hung_disk_is_a_fault_and_its_late_file_is_closed(tmp_path: Path) -> None:
    store = local_store(tmp_path / "data", timeout_s=0.5)
    await store.open()
    record = record_of(b"body")
    path = store.disk.root / object_path(record.object_name)
    path.parent.mkdir()
    os.mkfifo(path)  # opening it for reading waits for a writer
    with pytest.raises(StorageError, match="does not answer"):
        await store.fetch(record.object_name, record.size)
    before = count_descriptors()
    os.close(await asyncio.to_thread(os.open, path, os.O_WRONLY))
    await store.aclose()
    await until(lambda: count_descriptors() <= before, within_s=5)


def test_all_bytes_are_written_in_short_writes() -> None:
    data = random.Random(1).randbytes(1_000_000)
    received: list[bytes] = []
    near, far = os.pipe()

    def read_slowly() -> None:
        while piece := os.read(near, 65_536):
            received.append(piece)
            time.sleep(0.003)

    # A signal makes the system call return with what it has written so far.
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    reader = threading.Thread(target=read_slowly)
    reader.start()
    try:
        files.write_all(far, data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(far)
        reader.join()
        os.close(near)
    assert b"".join(received) == data


def test_partial_file_is_deleted_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.durable_partial(tmp_path / "partial", b"data"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


async def test_draft_is_shared_while_it_grows(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    copying, proceed = threading.Event(), threading.Event()
    write_all = files.write_all

    def held(descriptor: int, data: bytes) -> None:
        write_all(descriptor, data)
        copying.set()
        assert proceed.wait(10)

    monkeypatch.setattr(files, "write_all", held)
    whole = random.Random(3).randbytes(100_000)
    draft = await store.disk.begin(None)
    await draft.write(whole[:20_000])
    opening = asyncio.create_task(draft.share_file())
    await until(copying.is_set)
    writing = asyncio.create_task(draft.write(whole[20_000:30_000]))
    await asyncio.sleep(0)
    proceed.set()
    path = await opening
    await writing
    assert path.read_bytes() == whole[:30_000]
    body = await store.disk.open_shared(path)
    assert body is not None
    await draft.write(whole[30_000:])
    assert draft.digest == sha256(whole).hexdigest()
    assert await draft.share_file() == path
    await store.put(draft, record_of(whole))
    await draft.aclose()
    assert await store.disk.open_shared(path) is None, "it has its final name"
    assert await body.read(0, 200_000) == whole
    await body.aclose()


@pytest.mark.parametrize("flags", [None, 0x40000000], ids=["a system without", "a file system without"])
async def test_file_is_read_in_a_thread_where_page_cache_reads_fail(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, flags: int | None
) -> None:
    monkeypatch.setattr(open_files, "NO_WAIT", flags)
    record = await put_image(store, LARGE)
    body = await store.fetch(record.object_name, record.size)
    assert body is not None
    assert await body.read(3, 1000) == LARGE[3:1003]
    await body.aclose()


@pytest.mark.parametrize("size", [1000, 1_000_000], ids=["in groups", "one by one"])
async def test_concurrent_fills_of_one_link_return_one_record(tmp_path: Path, size: int) -> None:
    """As of two machines that share a folder."""
    body = bytes(size)
    stores = [local_store(tmp_path / "data") for _ in range(3)]
    drafts = []
    for store in stores:
        await store.open()
        drafts += [await store.disk.begin(size) for _ in range(3)]
    for draft in drafts:
        await draft.write(body)
    stored = await asyncio.gather(
        *(stores[n // 3].put(draft, record_of(body, etag=f'"{n}"')) for n, draft in enumerate(drafts))
    )
    assert set(stored) == {await stores[0].find(stored[0].key)}
    assert await fetch_image(stores[0], stored[0]) == body
    for draft in drafts:
        await draft.aclose()
    for store in stores:
        assert list((store.disk.root / "partial").iterdir()) == []
        await store.aclose()
