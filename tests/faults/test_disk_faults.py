"""
Disks that fill up, fail, vanish or lie (rows D3 to D8 of the fault matrix).

Expected everywhere: the client gets its image where that is possible, nothing partial remains, `/readyz` reports the
fault at once, and the server recovers without a restart once the fault is gone.

The faults are real: small file systems, limits, flipped bits. strace injects those that cannot be made (EIO on fsync)
into the system calls of a running server.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import shutil
import sqlite3
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from imgkeep.bootstrap.server import SERVICES
from tests.support.image_requests import count_readers
from tests.support.images import png_of
from tests.support.program import cannot, injecting, need_strace, run, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

STORED = "imgkeep; fwd=uri-miss; stored"
NOT_STORED = "imgkeep; fwd=uri-miss; detail=not-stored"
HIT = "imgkeep; hit"
MEBIBYTE = 1_048_576
SMALL, LARGE = 20_000, 300_000


# --- helpers


@dataclass
class Disk:
    """A small file system of its own."""

    path: Path

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def fill(self) -> None:
        with (self.path / "filler").open("wb", buffering=0) as file:
            for size in (65_536, 4096, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue  # full, for writes of this size

    def use_up_inodes(self) -> None:
        try:
            for number in range(100_000):
                (self.path / f"inode-{number}").touch()
        except OSError:
            return
        raise AssertionError("there is always another inode")

    def tidy(self) -> None:
        for pattern in ("filler", "inode-*"):
            for path in self.path.glob(pattern):
                path.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=700", "tmpfs", str(path)], check=False, capture_output=True
    )
    if done.returncode != 0:
        cannot(f"a file system cannot be mounted: {done.stderr.decode().strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


def mount_by(*words: str | Path) -> None:
    subprocess.run(words, check=True)


def serve(origin: FakeOrigin, name: str, size: int = 20_000) -> tuple[str, bytes]:
    """Give the origin an image of its own under a name."""
    body = png_of(size, seed=sum(name.encode()) * 257 % 65_536)
    return origin.gives(f"/{name}.png", body), body


async def see(imgkeep: Imgkeep, url: str, body: bytes) -> str:
    """Fetch an image, require that it is the right one, and return its cache status."""
    response = await imgkeep.img(url)
    assert (response.status, await response.read()) == (200, body)
    return response.headers["Cache-Status"]


async def report(imgkeep: Imgkeep) -> dict[str, Any]:
    response = await imgkeep.client.get("/readyz")
    assert response.status == 200
    answer: dict[str, Any] = await response.json()
    return answer


async def nothing_partial(folder: Path) -> None:
    """Require that no draft outlives its fill, which ends a moment after the last byte of its last reader."""
    await until(lambda: not list((folder / "partial").iterdir()), within_s=30)


async def look(imgkeep: Imgkeep) -> None:
    """Check the health now, as the server does every few seconds."""
    await imgkeep.client.server.app[SERVICES].health.check()  # type: ignore[attr-defined]


# --- D3, D5: a full or read-only disk


@dataclass(frozen=True)
class Trouble:
    """
    A way for a disk to fail.

    Attributes:
        met: What a fill says that meets it.
        seen: What a look says that sees it.
    """

    met: str
    seen: str
    begin: Callable[[Disk], None]
    end: Callable[[Disk], None]


def _hide(disk: Disk) -> None:
    (disk.path / "data").rename(disk.path / "hidden")
    (disk.path / "data").write_bytes(b"a file where the folder was")


def _unhide(disk: Disk) -> None:
    (disk.path / "data").unlink()
    (disk.path / "hidden").rename(disk.path / "data")


TROUBLES = {
    "full": Trouble("free_bytes_min", "No space left on device", Disk.fill, Disk.tidy),
    "no inode left": Trouble("No space left on device", "No space left on device", Disk.use_up_inodes, Disk.tidy),
    "read-only": Trouble(
        "Read-only file system",
        "Read-only file system",
        begin=lambda disk: disk.change("ro"),
        end=lambda disk: disk.change("rw"),
    ),
    "a file in the folder's place": Trouble("Not a directory", "Not a directory", _hide, _unhide),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_full_disk_costs_no_client_its_image(
    trouble: Trouble, disk: Disk, start: Start, origin: FakeOrigin, tmp_path: Path
) -> None:
    database = {"url": f"sqlite:{tmp_path}/imgkeep.db"}
    imgkeep = await start(folder=disk.path / "data", database=database, store={"hot_bytes_max": 10_000_000})
    before, new, after = (serve(origin, name, 200_000) for name in ("before", "new", "after"))
    assert await see(imgkeep, *before) == STORED
    assert (await report(imgkeep))["status"] == "ready"

    trouble.begin(disk)
    assert await see(imgkeep, *new) == NOT_STORED
    state = await report(imgkeep)
    assert state["status"] == "degraded"
    assert trouble.met in state["store"]["reason"]
    stranger = await (await imgkeep.stranger.get("/readyz")).text()
    assert str(tmp_path) not in stranger, "where the folder is concerns the operator"
    await look(imgkeep)
    assert trouble.seen in (await report(imgkeep))["store"]["reason"]
    assert await see(imgkeep, *new) != HIT
    assert (await imgkeep.client.get("/healthz")).status == 200

    trouble.end(disk)
    await nothing_partial(imgkeep.folder)
    assert len(imgkeep.files("objects")) == len(imgkeep.files("records")) == 1
    await look(imgkeep)
    assert (await report(imgkeep))["status"] == "ready"
    assert await see(imgkeep, *after) == STORED
    assert await see(imgkeep, *new) == STORED
    await origin.stop()
    for image in (before, new, after):
        assert await see(imgkeep, *image) == HIT


async def test_full_disk_still_serves_stored_images(disk: Disk, start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(folder=disk.path / "data", store={"hot_bytes_max": 10_000_000})
    image = serve(origin, "a")
    await see(imgkeep, *image)
    disk.fill()
    again = await start(folder=disk.path / "data")  # with its database on the full disk too
    await origin.stop()
    assert await see(again, *image) == HIT
    assert (await report(again))["status"] == "degraded"


async def test_removed_folder_is_made_again(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    first, second, third = serve(origin, "first"), serve(origin, "second"), serve(origin, "third")
    await see(imgkeep, *first)
    shutil.rmtree(imgkeep.folder)
    assert await see(imgkeep, *second) == NOT_STORED, "the store could not tell whether it was there"
    assert (await report(imgkeep))["status"] == "degraded"
    await look(imgkeep)
    assert (await report(imgkeep))["status"] == "ready"
    assert await see(imgkeep, *third) == STORED
    again = await start(folder=imgkeep.folder)
    await origin.stop()
    assert await see(again, *third) == HIT


async def test_unmounted_volume_is_not_written_to(disk: Disk, tmp_path: Path, start: Start, origin: FakeOrigin) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mount_by("mount", "--bind", disk.path, elsewhere)
    imgkeep = await start(
        folder=disk.path / "data", database={"url": f"sqlite:{tmp_path}/imgkeep.db"}, store={"hot_bytes_max": 1_000_000}
    )
    first, second = serve(origin, "first"), serve(origin, "second")
    await see(imgkeep, *first)
    mount_by("umount", disk.path)
    try:
        assert await see(imgkeep, *second) == NOT_STORED
        await look(imgkeep)
        reason = (await report(imgkeep))["store"]["reason"]
        assert reason == f"the file system of the store is not mounted (folder {imgkeep.folder})"
        assert list(disk.path.iterdir()) == []
    finally:
        mount_by("mount", "--bind", elsewhere, disk.path)
        mount_by("umount", "-l", elsewhere)
    await look(imgkeep)
    assert (await report(imgkeep))["status"] == "ready"
    await origin.stop()
    assert await see(imgkeep, *first) == HIT


async def test_nothing_is_stored_below_free_bytes_min(disk: Disk, start: Start, origin: FakeOrigin) -> None:
    roomy = await start(folder=disk.path / "data", database={"url": f"sqlite:{disk.path.parent}/imgkeep.db"})
    old = serve(origin, "old")
    await see(roomy, *old)
    free = shutil.disk_usage(disk.path).free
    imgkeep = await start(
        folder=disk.path / "data",
        database={"url": f"sqlite:{disk.path.parent}/other.db"},
        store={"free_bytes_min": free - 100_000, "hot_bytes_max": 10_000_000},
    )
    large, small = serve(origin, "large", 300_000), serve(origin, "small", 10_000)
    assert await see(imgkeep, *large) == NOT_STORED, "its size alone would cross the line"
    assert "free_bytes_min" in (await report(imgkeep))["store"]["reason"]
    assert await see(imgkeep, *small) == STORED
    assert await see(imgkeep, *old) == HIT
    disk.fill()
    await look(imgkeep)
    state = await report(imgkeep)
    assert state["status"] == "degraded"
    assert "free" in json.dumps(state["disk"]) or "No space" in json.dumps(state["store"])
    assert await see(imgkeep, *serve(origin, "later", 10_000)) == NOT_STORED
    await nothing_partial(imgkeep.folder)


async def test_disk_failure_during_a_fill_spares_its_readers(
    disk: Disk, start: Start, origin: FakeOrigin, tmp_path: Path
) -> None:
    imgkeep = await start(
        folder=disk.path / "data",
        database={"url": f"sqlite:{tmp_path}/imgkeep.db"},
        store={"hot_bytes_max": 10_000_000},
    )
    body = png_of(1_500_000)
    sent_half, go_on = asyncio.Event(), asyncio.Event()

    async def in_two_halves(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        await exchange.send(body[:750_000])
        sent_half.set()
        await go_on.wait()
        await exchange.send(body[750_000:])

    url = origin.on("/a.png", in_two_halves)
    readers = [asyncio.create_task(see(imgkeep, url, body)) for _ in range(5)]
    await sent_half.wait()
    await until(lambda: count_readers(imgkeep) == len(readers))  # one that comes later makes a fill of its own
    disk.fill()
    go_on.set()
    await asyncio.gather(*readers)
    assert origin.asked("/a.png") == 1
    await nothing_partial(imgkeep.folder)
    assert imgkeep.files("objects") == imgkeep.files("records") == []


async def test_image_without_disk_or_memory_is_a_503(disk: Disk, start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(folder=disk.path / "data", store={"hot_bytes_max": 1000, "free_bytes_min": 2**50})
    url, _ = serve(origin, "a")
    response = await imgkeep.img(url)
    assert response.status == 503
    assert (await response.json())["code"] == "storage_unavailable"
    assert "Retry-After" in response.headers


async def test_file_size_limit_is_a_fault(tmp_path: Path, origin: FakeOrigin) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    folder = tmp_path / "data"
    large, small = serve(origin, "large", 600_000), serve(origin, "small")
    async with serving(folder, prepare=limit) as program:
        answer = await program.img(large[0])
        assert (answer.status, answer.body) == (200, large[1])
        assert "File too large" in str((await program.ready())["store"])
        assert (await program.img(small[0])).cache_status == STORED
        assert (await program.img(large[0])).cache_status != HIT
        await nothing_partial(folder)
        await origin.stop()
        assert (await program.img(small[0])).cache_status == HIT


# --- D3, D4, D5: a system call that fails in a running server


FAILING_CALLS = {
    # Two in a row have different errors: a report of the one is none of the other.
    "open: disk full": ("openat", "ENOSPC", SMALL),
    "open: quota used up": ("openat", "EDQUOT", LARGE),
    "open: permission lost": ("openat", "EACCES", SMALL),
    "lock: none left": ("flock", "ENOLCK", LARGE),
    "fsync: broken disk": ("fsync,fdatasync", "EIO", SMALL),
    "rename: quota used up": ("rename,renameat,renameat2", "EDQUOT", LARGE),
    "fsync of a large image: broken disk": ("fsync,fdatasync", "EIO", LARGE),
    "link: quota used up": ("linkat", "EDQUOT", SMALL),
    "mkdir: disk full": ("mkdir,mkdirat", "ENOSPC", SMALL),
}


async def test_failed_system_call_means_not_stored(
    tmp_path: Path, origin: FakeOrigin, subtests: pytest.Subtests
) -> None:
    need_strace()
    folder = tmp_path / "data"
    async with serving(folder) as program:
        assert (await program.ready())["status"] == "ready"
        for number, (name, (calls, error, size)) in enumerate(FAILING_CALLS.items()):
            with subtests.test(name):
                url, body = serve(origin, f"image-{number}", size)
                before = sorted((folder / "v1" / "records").rglob("*.json"))
                async with injecting(program, calls, error):
                    answer = await program.img(url)
                    assert (answer.status, answer.body) == (200, body)
                    state = await program.ready()
                    assert state["status"] == "degraded"
                    assert os.strerror(getattr(errno, error)) in str(state["store"])
                    assert (await program.img(url)).cache_status != HIT
                    assert (await program.img(url)).body == body
                await nothing_partial(folder)
                assert sorted((folder / "v1" / "records").rglob("*.json")) == before
                assert (await program.img(url)).cache_status == STORED
                asked = origin.asked(f"/image-{number}.png")
                answer = await program.img(url)
                assert (answer.body, answer.cache_status) == (body, HIT)
                assert origin.asked(f"/image-{number}.png") == asked


async def test_failed_read_is_no_miss(tmp_path: Path, origin: FakeOrigin) -> None:
    need_strace()
    url, body = serve(origin, "a")
    async with serving(tmp_path / "data") as program:
        await program.img(url)
        async with injecting(program, "pread64", "EIO"):
            answer = await program.img(url)
            assert (answer.status, answer.body) == (200, body), "the origin still has it"
            await origin.stop()
            answer = await program.img(url)
            assert (answer.status, json.loads(answer.body)["code"]) == (503, "storage_unavailable")
        answer = await program.img(url)
        assert (answer.status, answer.body, answer.cache_status) == (200, body, HIT)
        assert not (tmp_path / "data" / "damaged").exists()


async def test_restored_permission_needs_no_restart(tmp_path: Path, origin: FakeOrigin) -> None:
    # Without these two capabilities root is a user like any other.
    drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    if drop and shutil.which("setpriv") is None:
        cannot("permissions do not bind root, and setpriv is not installed")
    folder = tmp_path / "data"
    first, second = serve(origin, "first"), serve(origin, "second")
    async with serving(folder, under=drop, database__url=f"sqlite:{tmp_path}/imgkeep.db") as program:
        await program.img(first[0])
        folder.chmod(0)
        try:
            answer = await program.img(second[0])
            assert (answer.status, answer.body, answer.cache_status) == (200, second[1], NOT_STORED)
            assert "Permission denied" in str((await program.becomes("degraded"))["store"])
            status, out, err = await run(folder, "stats", database__url=f"sqlite:{tmp_path}/imgkeep.db")
            assert status == 0, (out, err)
        finally:
            folder.chmod(0o755)
        assert (await program.img(second[0])).cache_status == STORED
        await origin.stop()
        assert (await program.img(first[0])).cache_status == HIT


async def test_readyz_recovers_with_the_next_check(tmp_path: Path, origin: FakeOrigin) -> None:
    need_strace()

    async def store_fails() -> None:
        url, _ = serve(origin, "a")
        async with serving(tmp_path / "store") as program:
            async with injecting(program, "fsync,fdatasync", "EIO"):
                await program.img(url)
                assert (await program.ready())["status"] == "degraded"
            await program.becomes("ready")

    async def catalog_vanishes() -> None:
        url, _ = serve(origin, "b")
        folder = tmp_path / "database"
        async with serving(folder) as program:
            await program.img(url)
            for path in folder.glob("imgkeep.db*"):
                path.unlink()
            await until(lambda: rows(folder) == 1, within_s=30)
            assert (await program.ready())["status"] == "ready"

    async with asyncio.TaskGroup() as group:
        group.create_task(store_fails())
        group.create_task(catalog_vanishes())


def rows(folder: Path) -> int:
    """Return how many images the database knows; -1 while there is none."""
    path = folder / "imgkeep.db"
    if not path.exists():
        return -1
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        number = connection.execute("SELECT count(*) FROM images").fetchone()[0]
        assert isinstance(number, int)
    except sqlite3.OperationalError:
        return -1
    else:
        return number
    finally:
        connection.close()


# --- D6: no file descriptor left


async def test_exhausted_descriptors_recover(tmp_path: Path, origin: FakeOrigin) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (56, 56))

    folder = tmp_path / "data"
    crowd = [serve(origin, f"crowd-{number}", 30_000 + number) for number in range(60)]
    old = serve(origin, "old")
    async with serving(folder, prepare=limit, fetch__per_host_max="64", limits__fills_concurrent="0") as program:
        await program.img(old[0])

        async def request(url: str, body: bytes) -> str:
            try:
                async with asyncio.timeout(20):
                    answer = await program.img(url)
            except aiohttp.ClientConnectionError:
                return "closed"  # libuv closes the connections that it cannot accept
            if answer.status == 200:
                assert answer.body == body
                return "served"
            assert answer.status == 503, answer
            return str(json.loads(answer.body)["code"])

        outcomes = await asyncio.gather(*(request(*image) for image in crowd))
        assert set(outcomes) <= {"served", "busy", "storage_unavailable", "closed"}
        assert set(outcomes) != {"served"}, "the limit was never reached, so this test shows nothing"
        assert program.process.returncode is None
        await nothing_partial(folder)
        for image in (old, *crowd):
            assert await request(*image) == "served"
        await origin.stop()
        assert (await program.img(crowd[-1][0])).cache_status == HIT


# --- D7: flipped bits


def flip_a_bit(path: Path) -> bytes:
    """Flip one bit in the middle; return the former bytes of the file."""
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    return good


async def test_corrupt_small_object_is_quarantined_and_fetched_again(start: Start, origin: FakeOrigin) -> None:
    first = await start()
    url, body = serve(origin, "a")
    await see(first, url, body)
    (path,) = first.files("objects")
    flip_a_bit(path)
    imgkeep = await start(folder=first.folder)
    assert await see(imgkeep, url, body) == STORED
    assert path.read_bytes() == body
    (damaged,) = (first.folder / "damaged").iterdir()
    assert damaged.name.startswith(path.name)
    assert await see(imgkeep, url, body) == HIT


async def test_corrupt_object_is_never_served(start: Start, origin: FakeOrigin) -> None:
    first = await start()
    url, body = serve(origin, "a")
    await see(first, url, body)
    (path,) = first.files("objects")
    flip_a_bit(path)
    await origin.stop()
    imgkeep = await start(folder=first.folder)
    answers = await asyncio.gather(*(imgkeep.client.get(f"/images/{path.name}") for _ in range(5)))
    assert {answer.status for answer in answers} == {404}
    assert (await imgkeep.img(url)).status == 502
    assert len(list((first.folder / "damaged").iterdir())) == 1


async def test_verify_quarantines_a_corrupt_large_object(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    url, body = serve(origin, "a", 3 * MEBIBYTE)
    await see(imgkeep, url, body)
    assert (await run(imgkeep.folder, "verify"))[0] == 0
    (path,) = imgkeep.files("objects")
    flip_a_bit(path)
    status, out, _ = await run(imgkeep.folder, "verify", "--json")
    assert status == 1
    assert [json.loads(line) for line in out.splitlines()] == [
        {"kind": "damaged", "path": f"v1/objects/{path.parent.name}/{path.name}"},
        {
            "good": 1,
            "damaged": 1,
            "missing": 0,
            "unreadable": 0,
            "orphan": 0,
            "incomplete": 0,
            "foreign": 0,
            "removed": 0,
        },
    ]
    assert await see(imgkeep, url, body) == STORED
    assert (await run(imgkeep.folder, "verify"))[0] == 0


# --- D8: records and databases that are damaged or of a newer version


async def test_truncated_record_is_quarantined_and_the_image_fetched_again(start: Start, origin: FakeOrigin) -> None:
    first = await start()
    url, body = serve(origin, "a")
    await see(first, url, body)
    image_index = first.client.server.app[SERVICES].storage.database.image_index  # type: ignore[attr-defined]
    await image_index.count()  # waits for rows that are not written yet
    (path,) = first.files("records")
    os.truncate(path, path.stat().st_size // 2)
    # The database still has the record.
    assert await see(await start(folder=first.folder), url, body) == HIT
    imgkeep = await start(folder=first.folder, database={"url": f"sqlite:{first.folder}/other.db"})
    assert await see(imgkeep, url, body) == STORED
    (damaged,) = (first.folder / "damaged").iterdir()
    assert damaged.name.startswith(path.name)


async def test_record_of_a_newer_version_is_left_alone(start: Start, origin: FakeOrigin) -> None:
    first = await start()
    url, body = serve(origin, "a")
    await see(first, url, body)
    (path,) = first.files("records")
    newer = path.read_text("utf-8").replace('"version": 1', '"version": 2, "more": "than we know"')
    path.write_text(newer, "utf-8")
    imgkeep = await start(folder=first.folder, database={"url": f"sqlite:{first.folder}/other.db"})
    response = await imgkeep.img(url)
    assert (response.status, await response.read()) == (200, body)
    assert path.read_text("utf-8") == newer
    assert "newer version" in (await report(imgkeep))["store"]["reason"]
    await origin.stop()
    again = await start(folder=first.folder, database={"url": f"sqlite:{first.folder}/third.db"})
    response = await again.img(url)
    assert (response.status, (await response.json())["code"]) == (503, "storage_unavailable")
    assert path.read_text("utf-8") == newer
    assert not (first.folder / "damaged").exists()
    status, out, _ = await run(first.folder, "verify")
    assert status == 1
    assert f"unreadable  v1/records/{path.parent.name}/{path.name}" in out


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\xa5" * 40_000),
    "empty": lambda path: os.truncate(path, 0),
    "cut in the first page": lambda path: os.truncate(path, 1000),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "deleted": lambda path: path.unlink(),
    "without its tables": lambda path: _execute(path, "DROP TABLE images"),
}


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_database_damaged_before_the_start_is_rebuilt(
    damage: Callable[[Path], object], start: Start, origin: FakeOrigin
) -> None:
    first = await start()
    url, body = serve(origin, "a")
    await see(first, url, body)
    await first.client.close()  # the last connection writes the log back into the file
    damage(first.folder / "imgkeep.db")
    await origin.stop()
    imgkeep = await start(folder=first.folder)
    assert await see(imgkeep, url, body) == HIT
    await until(lambda: rows(first.folder) == 1)
    await look(imgkeep)
    assert (await report(imgkeep))["status"] == "ready"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_database_damaged_while_running_still_serves_images(
    damage: Callable[[Path], object], start: Start, origin: FakeOrigin
) -> None:
    imgkeep = await start()
    old, new = serve(origin, "old"), serve(origin, "new")
    await see(imgkeep, *old)
    _execute(imgkeep.folder / "imgkeep.db", "PRAGMA wal_checkpoint(TRUNCATE)")
    damage(imgkeep.folder / "imgkeep.db")
    assert await see(imgkeep, *new) == STORED
    await look(imgkeep)
    assert await see(imgkeep, *old) == HIT
    await origin.stop()
    for image in (old, new):
        assert await see(await start(folder=imgkeep.folder), *image) == HIT


async def test_database_of_a_newer_version_stays_as_it_is(start: Start, origin: FakeOrigin) -> None:
    first = await start()
    await see(first, *serve(origin, "a"))
    await first.client.close()
    path = first.folder / "imgkeep.db"
    _execute(path, "UPDATE alembic_version SET version_num = '9999'")
    _execute(path, "UPDATE state SET value = '9999' WHERE name = 'compatible_from'")
    before = path.read_bytes()
    for status, out, err in await asyncio.gather(*(run(first.folder, name) for name in ("serve", "list", "reindex"))):
        assert (status, out) == (2, "")
        assert (
            err == "imgkeep: the database was written by a newer version of imgkeep (schema 9999), "
            f"or by another program: run that version, or name another database in database.url (file {path})\n"
        )
    assert path.read_bytes() == before
