"""`imgkeep migrate`: every image is copied from one store to another, once, whole, and never a damaged one."""

from __future__ import annotations

import json
from contextlib import aclosing
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
import rich.progress  # noqa: F401 - imported here, outside of the event loop, it is no blocking call

from imgkeep.__main__ import main
from imgkeep.bootstrap import storage as parts
from imgkeep.cli.migrate import migrate
from imgkeep.config import load
from imgkeep.core.errors import StorageError
from imgkeep.core.layout import object_path, record_path
from imgkeep.core.store_url import Folder, S3Bucket
from imgkeep.maintenance.migrate import FAILURES_MAX
from tests.support.images import make_image, png_of
from tests.support.program import run_here
from tests.support.s3.misbehaving import only, s3_error
from tests.support.stores import NOON, local_store, put_image, record_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from imgkeep.core.records import Record
    from imgkeep.maintenance.migrate import Migration
    from tests.support.s3.gate import Gate
    from tests.support.s3.servers import S3Server

NUMBER = 30
LARGE = 20_000_000
CONFIG = load({"store": {"free_bytes_min": 0, "timeout_s": 5}}, {})


@pytest.fixture
def server(
    bucket: Callable[[str], S3Server], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> S3Server:
    server = bucket(getattr(request, "param", "moto"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    return server


@pytest.fixture
async def gate(server: S3Server, gate_to: Callable[[S3Server], Awaitable[Gate]]) -> Gate:
    return await gate_to(server)


@pytest.fixture
def place(server: S3Server, gate: Gate) -> S3Bucket:
    return S3Bucket(server.bucket, "pre", region="us-east-1", endpoint=gate.endpoint)


async def stock(folder: Path, number: int = NUMBER, *, large: bool = False) -> list[Record]:
    """Store so many small images, and one that is uploaded in parts."""
    store = local_store(folder)
    await store.open()
    bodies = [make_image(width=16, height=16, seed=n) for n in range(number)]
    if large:
        bodies.append(png_of(LARGE))
    records = [await put_image(store, body, record_of(body, name=str(n))) for n, body in enumerate(bodies)]
    await store.aclose()
    return records


def files(folder: Path) -> dict[str, bytes]:
    """Return the stored files below a folder, and require that no partial file is left."""
    assert not list((folder / "partial").iterdir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("v1/**/*") if path.is_file()}


async def objects(server: S3Server) -> dict[str, bytes]:
    found = await server.objects("pre/v1/")
    return {name.removeprefix("pre/"): body for name, body in found.items() if not name.endswith("/probe")}


async def copy(source: Folder | S3Bucket, target: Folder | S3Bucket) -> tuple[int, dict[str, int], str]:
    """Migrate in this process; return status, summary and standard error."""
    out, err = StringIO(), StringIO()
    async with parts.open_migration(CONFIG, source, target, clock=lambda: NOON) as migration:
        status = await migrate(migration, as_json=True, out=out, err=err)
    summary: dict[str, int] = json.loads(out.getvalue())
    return status, summary, err.getvalue()


async def broken_off(migration: Migration, *, after: int) -> None:
    number = 0
    async with aclosing(migration.run()) as outcomes:
        async for _ in outcomes:
            number += 1
            if number == after:
                raise RuntimeError("half way")


def summary(**counts: int) -> dict[str, int]:
    names = ("copied_objects", "copied_records", "skipped", "kept", "damaged", "failed", "foreign")
    return dict.fromkeys(names, 0) | counts


@pytest.mark.parametrize("server", ["moto", "s3rver"], indirect=True)
async def test_store_migrates_to_a_bucket_and_back(
    server: S3Server, gate: Gate, place: S3Bucket, tmp_path: Path
) -> None:
    await stock(tmp_path / "a", large=True)
    original = files(tmp_path / "a")
    all_of_it = summary(copied_objects=NUMBER + 1, copied_records=NUMBER + 1)
    assert await copy(Folder(str(tmp_path / "a")), place) == (0, all_of_it, "")
    assert await objects(server) == original
    assert gate.count("PUT", "partNumber=3") == 1
    assert await copy(place, Folder(str(tmp_path / "b"))) == (0, all_of_it, "")
    assert files(tmp_path / "b") == original
    assert files(tmp_path / "a") == original, "and the source is what it was"
    puts = gate.count("PUT", "/v1/objects/") + gate.count("PUT", "/v1/records/")
    for ends in ((Folder(str(tmp_path / "b")), place), (place, Folder(str(tmp_path / "a")))):
        assert await copy(*ends) == (0, summary(skipped=NUMBER + 1, kept=NUMBER + 1), "")
    assert gate.count("PUT", "/v1/objects/") + gate.count("PUT", "/v1/records/") == puts


async def test_folder_and_bucket_migrate_to_their_like(server: S3Server, place: S3Bucket, tmp_path: Path) -> None:
    await stock(tmp_path / "a", 5)
    original = files(tmp_path / "a")
    all_of_it = summary(copied_objects=5, copied_records=5)
    assert await copy(Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))) == (0, all_of_it, "")
    assert files(tmp_path / "a") == files(tmp_path / "b") == original
    assert await copy(Folder(str(tmp_path / "a")), place) == (0, all_of_it, "")
    other = S3Bucket(place.name, "other", place.region, place.endpoint)
    assert await copy(place, other) == (0, all_of_it, "")
    found = await server.objects("other/v1/")
    assert {n.removeprefix("other/"): b for n, b in found.items() if not n.endswith("/probe")} == original


STRAY = [
    "v1/objects/",  # as consoles mark a folder
    "v1/objects/.minio.sys/format.json",
    "v1/objects/ab/.sgwtmp/multipart/1",
    "v1/objects/ab/readme.txt",
    f"v1/objects/ab/{'a' * 64}.exe",
    f"v1/objects/ab/{'c' * 64}.png",  # in the folder of others
    "v1/objects/page \x1b[2J.html",
    "v1/records/.keep",
    "v1/records/ab/index.html",
    f"v1/records/ab/{'c' * 64}.json",
    f"v1/records/ab/{'ab' * 32}.json.bak",
]


async def test_foreign_files_in_a_bucket_fail_neither_verify_nor_migrate(
    server: S3Server, gate: Gate, place: S3Bucket, tmp_path: Path
) -> None:
    await stock(tmp_path / "a", 3)
    await copy(Folder(str(tmp_path / "a")), place)
    for path in [".sgw/x", ".minio.sys/y", "z", *STRAY]:
        await server.put(f"pre/{path}", b"not of imgkeep")
    before = await server.objects("")
    status, counts, err = await copy(place, Folder(str(tmp_path / "b")))
    assert (status, counts) == (0, summary(copied_objects=3, copied_records=3, foreign=len(STRAY)))
    shown = sorted(path.replace("\x1b", "\\x1b") for path in STRAY)
    assert sorted(line.removeprefix("foreign     ") for line in err.splitlines()) == shown
    assert files(tmp_path / "b") == files(tmp_path / "a")
    settings: dict[str, Any] = {
        "store__url": f"s3://{server.bucket}/pre?endpoint={gate.endpoint}&region=us-east-1",
        "store__fallback": "",
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
    }
    status, out, _ = await run_here(tmp_path / "data", "verify", **settings)
    *lines, last = out.splitlines()
    assert last.endswith(
        f" 0 damaged, 0 missing, 0 unreadable, 0 orphan, 0 incomplete, {len(STRAY)} foreign, 0 removed"
    )
    assert last.startswith("6 good, ")
    assert (status, sorted(line.removeprefix("foreign     ") for line in lines)) == (0, shown)
    after = await server.objects("")
    assert {name: after.get(name) for name in before} == before, "what is foreign stays as it is"


async def test_foreign_files_in_a_folder_stay(place: S3Bucket, tmp_path: Path) -> None:
    await stock(tmp_path / "a", 3)
    part = next((tmp_path / "a" / "v1" / "objects").iterdir())
    (part / ".nfs0001").write_bytes(b"deleted, and still open elsewhere")
    (part / "thumbs").mkdir()
    (part / "lost").symlink_to(tmp_path / "nowhere")
    records = tmp_path / "a" / "v1" / "records"
    unused = next(path for number in range(256) if not (path := records / f"{number:02x}").exists())
    unused.write_bytes(b"no folder")
    (tmp_path / "a" / "v1" / "objects" / "000").mkdir()
    status, counts, _ = await copy(Folder(str(tmp_path / "a")), place)
    assert (status, counts) == (0, summary(copied_objects=3, copied_records=3, foreign=2))
    status, out, _ = await run_here(tmp_path / "a", "verify")
    assert (status, out.splitlines()[-1]) == (
        0,
        "6 good, 0 damaged, 0 missing, 0 unreadable, 0 orphan, 0 incomplete, 2 foreign, 0 removed",
    )
    assert (part / ".nfs0001").exists()


async def test_interrupted_migration_continues(server: S3Server, gate: Gate, place: S3Bucket, tmp_path: Path) -> None:
    await stock(tmp_path / "a")
    source = Folder(str(tmp_path / "a"))
    async with parts.open_migration(CONFIG, source, place, clock=lambda: NOON) as migration:
        assert await migration.count() == 2 * NUMBER
        with pytest.raises(RuntimeError, match="half way"):
            await broken_off(migration, after=NUMBER // 2)
    done = await objects(server)
    assert NUMBER // 2 <= len(done) < NUMBER
    assert not any("/records/" in name for name in done)
    before = [seen.path for seen in gate.seen if seen.method == "PUT" and "/v1/objects/" in seen.path]
    status, told, _ = await copy(source, place)
    assert (status, told) == (
        0,
        summary(copied_objects=NUMBER - len(done), copied_records=NUMBER, skipped=len(done)),
    )
    after = [seen.path for seen in gate.seen if seen.method == "PUT" and "/v1/objects/" in seen.path][len(before) :]
    assert not {path.rpartition("/")[2].partition("?")[0] for path in after} & {n.rpartition("/")[2] for n in done}
    assert len(after) == NUMBER - len(done)
    assert await objects(server) == files(tmp_path / "a")


@pytest.mark.parametrize("from_bucket", [False, True], ids=["folder", "bucket"])
async def test_damaged_object_is_reported_and_not_copied(
    server: S3Server, place: S3Bucket, tmp_path: Path, *, from_bucket: bool
) -> None:
    records = await stock(tmp_path / "a", 5)
    path = object_path(records[2].object_name)
    target: Folder | S3Bucket = place
    source: Folder | S3Bucket = Folder(str(tmp_path / "a"))
    body = bytearray((tmp_path / "a" / path).read_bytes())
    body[50] ^= 1
    if from_bucket:
        await copy(source, place)
        await server.put(f"pre/{path}", bytes(body))
        source, target = place, Folder(str(tmp_path / "b"))
    else:
        (tmp_path / "a" / path).write_bytes(body)
    status, told, err = await copy(source, target)
    assert (status, told) == (1, summary(copied_objects=4, copied_records=4, damaged=2))
    assert err == (
        f"damaged     {path}  the bytes are not those that were stored\n"
        f"damaged     {record_path(records[2].key)}  its object was not copied\n"
    )
    there = files(tmp_path / "b") if from_bucket else await objects(server)
    assert len(there) == 8
    assert path not in there
    here = await objects(server) if from_bucket else files(tmp_path / "a")
    assert here[path] == body, "the source is left as it is"


async def test_existing_record_stays(place: S3Bucket, tmp_path: Path) -> None:
    records = await stock(tmp_path / "a", 3)
    await copy(Folder(str(tmp_path / "a")), place)
    theirs = local_store(tmp_path / "b")
    await theirs.open()
    body = make_image(seed=99)
    await put_image(theirs, body, record_of(body, name="1"))
    await theirs.aclose()
    before = files(tmp_path / "b")[record_path(records[1].key)]
    status, told, _ = await copy(place, Folder(str(tmp_path / "b")))
    assert (status, told) == (0, summary(copied_objects=3, copied_records=2, kept=1))
    assert files(tmp_path / "b")[record_path(records[1].key)] == before


async def test_object_of_another_size_is_replaced(place: S3Bucket, server: S3Server, tmp_path: Path) -> None:
    records = await stock(tmp_path / "a", 3)
    await copy(Folder(str(tmp_path / "a")), place)
    await server.put(f"pre/{object_path(records[0].object_name)}", b"cut")
    assert (await copy(Folder(str(tmp_path / "a")), place))[1] == summary(copied_objects=1, skipped=2, kept=3)
    assert await objects(server) == files(tmp_path / "a")


async def test_one_failure_is_reported_and_many_end_the_migration(gate: Gate, place: S3Bucket, tmp_path: Path) -> None:
    records = await stock(tmp_path / "a")
    source = Folder(str(tmp_path / "a"))
    path = object_path(records[0].object_name)
    await gate.do(s3_error(403, "AccessDenied"), match=only("PUT", path))
    status, told, err = await copy(source, place)
    assert (status, told) == (1, summary(copied_objects=NUMBER - 1, copied_records=NUMBER - 1, failed=2))
    assert err.startswith(f"failed      {path}  the bucket answers AccessDenied (bucket {place.name} at ")
    other = S3Bucket(place.name, "other", place.region, place.endpoint)
    await gate.do(s3_error(403, "AccessDenied"), match=only("PUT", "/v1/objects/"))
    before = gate.count("PUT", "/v1/objects/")
    with pytest.raises(StorageError, match=r"failures in a row; the last: the bucket answers AccessDenied"):
        await copy(source, other)
    assert gate.count("PUT", "/v1/objects/") - before <= FAILURES_MAX + 4


async def test_command_prints_a_summary_and_a_status(server: S3Server, gate: Gate, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    await stock(folder, 3)
    url = f"s3://{server.bucket}/pre?endpoint={gate.endpoint}"
    keys: dict[str, Any] = {
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
        "AWS_REGION": "us-east-1",
    }
    line = "3 copied objects, 3 copied records, 0 skipped, 0 kept, 0 damaged, 0 failed, 0 foreign\n"
    assert await run_here(folder, "migrate", f"file:{folder}", url, **keys) == (0, line, "")
    status, out, err = await run_here(folder, "migrate", "--json", url, "file:b", **keys)
    assert (status, json.loads(out), err) == (0, summary(copied_objects=3, copied_records=3), "")
    assert files(tmp_path / "b") == files(folder)
    status, out, err = await run_here(folder, "migrate", "file:nothing", url, **keys)
    assert (status, err) == (2, f"imgkeep: FROM: there is no store in {tmp_path}/nothing; name its folder\n")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        pytest.param(("data", "s3://images"), "FROM: expected file:PATH, s3://BUCKET/PREFIX, ", id="no scheme"),
        pytest.param(("file:data", "ftp://images"), "TO: expected file:PATH, s3://BUCKET/PREFIX, ", id="no such store"),
        pytest.param(("file:data", "file:data"), "TO: is the same store as FROM", id="itself"),
    ],
)
def test_url_without_a_store_is_a_usage_error(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ends: tuple[str, str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["migrate", *ends]) == 2
    assert capfd.readouterr().err.startswith(f"imgkeep: {told}")


async def test_terminal_shows_a_progress_bar(tmp_path: Path) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    records = await stock(tmp_path / "a", 3)
    damaged = tmp_path / "a" / object_path(records[0].object_name)
    damaged.write_bytes(b"damage")
    out, err = StringIO(), Terminal()
    ends = Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))
    async with parts.open_migration(CONFIG, *ends, clock=lambda: NOON) as migration:
        assert await migrate(migration, as_json=False, out=out, err=err) == 1
    assert out.getvalue() == "2 copied objects, 2 copied records, 0 skipped, 0 kept, 2 damaged, 0 failed, 0 foreign\n"
    assert "6/6" in err.getvalue()
    assert f"damaged     {object_path(records[0].object_name)}" in err.getvalue()
