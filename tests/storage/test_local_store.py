"""What the local store promises beyond the contract: its layout, what becomes of damage, who may use it at once."""

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
from imgkeep.storage.local import draft as disk
from imgkeep.storage.local.store import HASHED_BYTES_MAX, LocalStore
from imgkeep.storage.memory import MemoryBody, MemorySpool

from tests.storage.test_contract import fetch, keep
from tests.support.pictures import picture
from tests.support.program import until
from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")

WHEN = datetime(2026, 11, 22, 10, tzinfo=UTC)
SMALL = random.Random(1).randbytes(10_000)
LARGE = random.Random(2).randbytes(HASHED_BYTES_MAX + 1000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "store")
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


async def test_objects_and_records_lie_where_the_public_layout_says(store: LocalStore) -> None:
    record = await keep(store, SMALL)
    paths = sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())
    digest, key = record.digest, record.key
    assert paths == [f"v1/objects/{digest[:2]}/{digest}.png", f"v1/records/{key[:2]}/{key}.json"]
    assert (store.root / paths[0]).read_bytes() == SMALL
    assert (store.root / paths[1]).read_bytes() == encode_record(record)


async def test_the_walk_finds_everything_in_order(store: LocalStore) -> None:
    records = {
        record_path(record.key): record
        for record in [await keep(store, bytes([n]) * 50, record_of(bytes([n]) * 50, name=str(n))) for n in range(40)]
    }
    assert await walk(read_records(store)) == sorted(records.items())
    assert await walk(store.walk(OBJECTS)) == sorted(
        (object_path(record.object_name), 50) for record in records.values()
    )


async def test_the_walk_passes_over_what_is_not_ours(store: LocalStore) -> None:
    record = await keep(store, SMALL)
    strange = store.root / OBJECTS / "lost+found"
    strange.mkdir()
    (strange / "x.png").write_bytes(SMALL)
    (store.root / OBJECTS / "notes.txt").write_bytes(b"")
    assert [path for path, _ in await walk(store.walk(OBJECTS))] == [object_path(record.object_name)]


async def test_a_root_that_is_gone_cannot_be_walked(store: LocalStore) -> None:
    await keep(store, SMALL)
    store.root.rename(store.root.with_name("moved"))
    with pytest.raises(StorageError):
        await walk(read_records(store))
    with pytest.raises(StorageError):
        await walk(store.walk(OBJECTS))


# --- memory


async def test_a_small_object_is_read_whole_and_stays_in_memory_and_a_large_one_is_read_in_pieces(
    tmp_path: Path,
) -> None:
    store = LocalStore(tmp_path, hot_bytes_max=10_000_000)
    await store.open()
    small, large = await keep(store, SMALL), await keep(store, LARGE, record_of(LARGE, name="large"))
    assert isinstance(await store.fetch(small.object_name, None), MemoryBody)
    (tmp_path / object_path(small.object_name)).unlink()
    assert await fetch(store, small) == SMALL
    body = await store.fetch(large.object_name, large.size)
    assert not isinstance(body, MemoryBody)
    assert body is not None
    assert len(await body.read(0, 1000)) == 1000
    await body.aclose()
    await store.aclose()


async def test_an_object_larger_than_the_memory_for_them_is_served_nevertheless(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, hot_bytes_max=100)
    await store.open()
    record = await keep(store, SMALL)
    assert [await fetch(store, record) for _ in range(2)] == [SMALL, SMALL]
    await store.aclose()


async def test_the_budget_for_drafts_in_memory_is_kept_and_given_back() -> None:
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


async def test_an_object_that_is_not_what_its_name_says_is_a_miss_and_set_aside(store: LocalStore) -> None:
    record = await keep(store, SMALL)
    path = store.root / object_path(record.object_name)
    change(path, at=5000)
    found = await asyncio.gather(*(store.fetch(record.object_name, None) for _ in range(10)))
    assert found == [None] * 10
    assert not path.exists()
    (damaged,) = (store.root / "damaged").iterdir()
    assert damaged.name.startswith(path.name)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_a_truncated_object_is_a_miss_and_set_aside(store: LocalStore, body: bytes) -> None:
    record = await keep(store, body)
    path = store.root / object_path(record.object_name)
    os.truncate(path, HASHED_BYTES_MAX + 10 if body is LARGE else 10)
    assert await store.fetch(record.object_name, record.size) is None
    assert not path.exists()


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_a_record_that_lies_about_the_size_costs_us_no_good_object(store: LocalStore, body: bytes) -> None:
    record = await keep(store, body)
    found = await store.fetch(record.object_name, record.size + 1)
    assert found is not None
    assert found.size == len(body)
    await found.aclose()
    assert not (store.root / "damaged").exists()


async def test_an_object_that_shrinks_while_it_is_read_is_a_fault(store: LocalStore) -> None:
    record = await keep(store, LARGE)
    body = await store.fetch(record.object_name, record.size)
    assert body is not None
    os.truncate(store.root / object_path(record.object_name), 5000)
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
async def test_a_damaged_record_is_a_miss_and_set_aside(store: LocalStore, data: bytes) -> None:
    record = await keep(store, SMALL)
    path = store.root / record_path(record.key)
    path.write_bytes(data)
    assert not any(isinstance(found, Record) for _, found in await walk(read_records(store)))
    assert await store.find(record.key) is None
    assert not path.exists()
    (damaged,) = (store.root / "damaged").iterdir()
    assert damaged.read_bytes() == data


async def test_a_record_cut_anywhere_is_a_miss(store: LocalStore) -> None:
    record = await keep(store, SMALL)
    path = store.root / record_path(record.key)
    data = path.read_bytes()
    for cut in range(0, len(data.rstrip()), 7):
        path.write_bytes(data[:cut])
        assert await store.find(record.key) is None


async def test_a_record_of_a_newer_version_is_a_fault_and_neither_overwritten_nor_deleted(store: LocalStore) -> None:
    record = await keep(store, SMALL)
    path = store.root / record_path(record.key)
    newer = path.read_bytes().replace(b'"version": 1', b'"version": 2')
    path.write_bytes(newer)
    with pytest.raises(StorageError, match="newer version"):
        await store.find(record.key)
    with pytest.raises(StorageError, match="newer version"):
        await keep(store, SMALL, record)
    with pytest.raises(StorageError, match="newer version"):
        await store.delete(record.key)
    assert path.read_bytes() == newer
    assert [type(found) for _, found in await walk(read_records(store))] == [RecordTooNew]


async def noted(record: Record) -> None:
    raise AssertionError(f"{record.key} is not incomplete")


async def test_verify_tells_all_kinds_of_trouble_and_sets_aside_what_is_damaged(store: LocalStore) -> None:
    bodies = {name: name.encode() * 100 for name in ("good", "flipped", "missing", "orphan", "newer", "cut")}
    records = {name: await keep(store, body, record_of(body, name=name)) for name, body in bodies.items()}
    at = {name: object_path(record.object_name) for name, record in records.items()}
    under = {name: record_path(record.key) for name, record in records.items()}
    change(store.root / at["flipped"], at=3)
    (store.root / at["missing"]).unlink()
    (store.root / under["orphan"]).unlink()
    newer = (store.root / under["newer"]).read_bytes().replace(b'"version": 1', b'"version": 9')
    (store.root / under["newer"]).write_bytes(newer)
    os.truncate(store.root / under["cut"], 20)
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
    assert len(list((store.root / "damaged").iterdir())) == 2
    assert not any(finding and finding.kind == "damaged" for finding in await walk(verify(store, noted)))


async def test_verify_marks_incomplete_images_but_those_that_are_confirmed(store: LocalStore) -> None:
    whole, half = picture(seed=1), picture(seed=2)[:-20]
    refetches = Refetches(8, 3, WHEN, WHEN)
    records = {
        "whole": record_of(whole, name="whole"),
        "half": record_of(half, name="half"),
        "known": replace(record_of(half, name="known"), doubts=frozenset({Doubt.INCOMPLETE})),
        "confirmed": replace(record_of(half, name="confirmed"), refetches=refetches),
        "uploaded": replace(record_of(half, name="uploaded"), host=""),
    }
    for name, record in records.items():
        await keep(store, whole if name == "whole" else half, record)
    told: list[Record] = []

    async def note(record: Record) -> None:
        told.append(record)

    for looks in (1, 2):
        findings = [finding for finding in await walk(verify(store, note)) if finding is not None]
        assert {finding.key for finding in findings} == {records[n].key for n in ("half", "known", "uploaded")}
        assert {finding.kind for finding in findings} == {"incomplete"}
        assert told == [replace(records["half"], doubts=frozenset({Doubt.INCOMPLETE}))], looks
    assert await store.find(records["half"].key) == told[0]
    assert await store.find(records["confirmed"].key) == records["confirmed"]
    assert await store.find(records["uploaded"].key) == records["uploaded"]


# --- partial files


async def test_a_sweep_takes_what_nobody_writes_any_more_and_nothing_else(store: LocalStore) -> None:
    draft = await store.begin(None)
    await draft.write(LARGE)  # a small one has no file
    (store.root / "partial" / "dead").write_bytes(b"left behind")
    other = LocalStore(store.root)
    await other.open()
    await other.aclose()
    assert [path.name for path in (store.root / "partial").iterdir()] == [draft.path.name]
    await store.put(draft, record_of(LARGE))
    await draft.aclose()
    assert await fetch(store, record_of(LARGE)) == LARGE


SWEEPER = """
import sys, pathlib
from imgkeep.storage.local import atomic_files as files
print("sweeping", flush=True)
while True:
    files.sweep(pathlib.Path(sys.argv[1]))
"""


def test_many_processes_sweep_and_write_in_one_folder_and_no_draft_is_lost(tmp_path: Path) -> None:
    # Between its creation and its lock a partial file looks abandoned; the writer has to notice when it was swept.
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


async def test_a_draft_is_not_closed_under_a_write_that_nobody_waits_for_any_more(store: LocalStore) -> None:
    # The descriptor's number would be given to the next draft, and the rest of the bytes with it.
    chunk = bytes(64_000_000)
    draft = await store.begin(None)
    draft.kept = True  # its removal would wait for the write by itself
    write = asyncio.create_task(draft.write(chunk))
    async with asyncio.timeout(20):
        while not (draft.path.exists() and draft.path.stat().st_size):  # noqa: ASYNC110 - its thread tells nobody
            await asyncio.sleep(0)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    await draft.aclose()
    assert draft.digest == sha256(chunk).hexdigest(), "the write was over before the file was closed"
    with pytest.raises(StorageError):
        await draft.write(b"more")


async def test_a_write_that_fails_leaves_size_and_digest_as_they_were(store: LocalStore) -> None:
    draft = await store.begin(None)
    await draft.write(SMALL)
    with pytest.raises(StorageError, match="free_bytes_min"):
        await LocalStore(store.root, free_bytes_min=2**60).begin(None)
    assert (draft.size, draft.digest) == (len(SMALL), sha256(SMALL).hexdigest())
    await draft.aclose()


async def test_the_probe_leaves_nothing_and_tells_what_is_free(store: LocalStore) -> None:
    assert await store.check() > 0
    assert list((store.root / "partial").iterdir()) == []


async def test_a_fault_names_the_trouble_and_no_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(tmp_path / "file" / "store")
    with pytest.raises(StorageError) as caught:
        await store.open()
    assert os.strerror(errno.ENOTDIR) in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    await store.aclose()


# --- full devices


def test_a_write_to_a_full_device_fails_and_is_not_believed() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            files.write_all(descriptor, b"data")
    finally:
        os.close(descriptor)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_disk_that_hangs_is_a_fault_and_what_it_opens_too_late_is_closed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "data", timeout_s=0.05)
    await store.open()
    record = record_of(b"body")
    path = store.root / object_path(record.object_name)
    path.parent.mkdir()
    os.mkfifo(path)  # opening it for reading waits for a writer
    with pytest.raises(StorageError, match="does not answer"):
        await store.fetch(record.object_name, record.size)
    before = open_files()
    os.close(await asyncio.to_thread(os.open, path, os.O_WRONLY))
    await store.aclose()
    await until(lambda: open_files() <= before, within_s=5)


def test_all_bytes_are_written_where_the_system_takes_few_at_a_time() -> None:
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


def test_a_partial_record_never_gets_a_final_name_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.durable_partial(tmp_path / "partial", b"data"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


async def test_a_draft_is_laid_open_while_more_is_written(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    copying, go_on = threading.Event(), threading.Event()
    write_all = files.write_all

    def held(descriptor: int, data: bytes) -> None:
        write_all(descriptor, data)
        copying.set()
        assert go_on.wait(10)

    monkeypatch.setattr(files, "write_all", held)
    whole = random.Random(3).randbytes(100_000)
    draft = await store.begin(None)
    await draft.write(whole[:20_000])
    opening = asyncio.create_task(draft.share_file())
    await until(copying.is_set)
    writing = asyncio.create_task(draft.write(whole[20_000:30_000]))
    await asyncio.sleep(0)
    go_on.set()
    path = await opening
    await writing
    assert path.read_bytes() == whole[:30_000]
    body = await store.open_shared(path)
    assert body is not None
    await draft.write(whole[30_000:])
    assert draft.digest == sha256(whole).hexdigest()
    assert await draft.share_file() == path
    await store.put(draft, record_of(whole))
    await draft.aclose()
    assert await store.open_shared(path) is None, "it is where it belongs"
    assert await body.read(0, 200_000) == whole
    await body.aclose()


@pytest.mark.parametrize("flags", [None, 0x40000000], ids=["a system without", "a file system without"])
async def test_what_the_kernel_cannot_be_asked_for_alone_is_read_in_a_thread(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, flags: int | None
) -> None:
    monkeypatch.setattr(disk, "CACHED_ONLY", flags)
    record = await keep(store, LARGE)
    body = await store.fetch(record.object_name, record.size)
    assert body is not None
    assert await body.read(3, 1000) == LARGE[3:1003]
    await body.aclose()
