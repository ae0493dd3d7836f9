"""The store on Cloudinary: `check --live`, removal and its undo, and `migrate` there and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap import storage as parts
from imgkeep.bootstrap.storage import open_storage
from imgkeep.cli.check import check as print_check
from imgkeep.cli.migrate import migrate
from imgkeep.clock import read_clock
from imgkeep.config import load
from imgkeep.core.derived.names import DERIVED, PictureName
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import BLOCKS_CHANGED, RECORDS
from imgkeep.core.records import Format, Tombstone
from imgkeep.core.store_url import CloudinaryFolder, Folder
from imgkeep.storage.bucket.live_check import check_bucket
from imgkeep.storage.bucket.store import PROBE
from imgkeep.storage.local.disk import Disk
from tests.support.cloudinary.backends import refusal
from tests.support.images import make_image
from tests.support.program import environment
from tests.support.s3.misbehaving import only
from tests.support.stores import NOON, fetch_image, local_store, put_image, record_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from imgkeep.storage.bucket.store import BucketStore
    from tests.support.cloudinary.server import CloudinaryServer
    from tests.support.s3.gate import Gate

    Check = Callable[[str], Awaitable[tuple[int, list[str]]]]

STEPS = ["put", "head", "get", "list", "private-file", "rename", "public", "public pictures", "delete"]
PLACE = CloudinaryFolder("images")
CONFIG = load({"store": {"free_bytes_min": 0, "timeout_s": 5}}, {})


@pytest.fixture
def check(
    cloudinary: CloudinaryServer, cloudinary_gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Check:
    """Diagnose the folder as the command does; return its status, and the lines about it."""
    monkeypatch.setenv("CLOUDINARY_URL", cloudinary.url(cloudinary_gate.endpoint))

    async def run_it(mode: str) -> tuple[int, list[str]]:
        settings = {"store__url": "cloudinary:images", "delivery__mode": mode, "store__timeout_s": "3"}
        variables = environment(tmp_path / "data", store__fallback=f"file:{tmp_path / 'data'}", **settings)
        out = StringIO()
        async with open_storage(load({}, variables), clock=read_clock) as storage:
            remote = storage.remote
            assert remote is not None
            place = remote.bucket.client.place
            steps = check_bucket(remote.bucket, public_url=remote.public_url, public_path=remote.public_path)
            status = await print_check({}, steps, as_json=False, place=place, out=out)
        valid, store, *lines = out.getvalue().splitlines()
        assert (valid, store) == ("configuration: valid", "store: folder images of Cloudinary")
        return status, [line.removesuffix(f" ({place})") for line in lines]

    return run_it


@pytest.mark.parametrize("mode", ["serve", "redirect"])
async def test_working_folder_passes_every_step_and_stays_empty(
    check: Check, cloudinary: CloudinaryServer, mode: str
) -> None:
    told = [f"✓ {name}" for name in STEPS if not name.startswith("public") or mode == "redirect"]
    assert await check(mode) == (0, told)
    assert cloudinary.assets == {}


async def test_missing_right_is_told_with_its_remedy(
    check: Check, cloudinary: CloudinaryServer, cloudinary_gate: Gate
) -> None:
    await cloudinary_gate.do(refusal(403, "Forbidden"), match=only("POST", "/rename"))
    status, lines = await check("serve")
    assert status == 1
    place = lines.index("✗ rename: Cloudinary answers NotAllowed")
    assert lines[place + 1].startswith("  remedy: give the API key the right")
    assert lines[-1] == "✓ delete"
    assert cloudinary.assets == {}


async def test_settings_of_the_account_that_change_images_are_told(check: Check, cloudinary: CloudinaryServer) -> None:
    cloudinary.incoming = lambda data: data + b"optimized"
    status, lines = await check("serve")
    assert status == 1
    assert lines[0] == "✗ put: Cloudinary stored the image in another form than it was sent"
    assert "default upload preset" in lines[1]


# --- the store


async def test_removal_and_its_undo(
    cloudinary: CloudinaryServer, cloudinary_store: BucketStore, tmp_path: Path
) -> None:
    cloudinary_store.spool = Disk(tmp_path)  # type: ignore[attr-defined]
    await cloudinary_store.spool.open()  # type: ignore[attr-defined]
    record = await put_image(cloudinary_store, make_image(), record_of(make_image()))
    assert await cloudinary_store.find(record.key) == record
    assert await fetch_image(cloudinary_store, record) == make_image()
    assert await cloudinary_store.has_object(record.digest)
    assert await cloudinary_store.has(record.object_name)
    name, draft = PictureName(record.digest, "w320", Format.WEBP), await cloudinary_store.spool.begin(7)  # type: ignore[attr-defined]
    await draft.write(b"picture")
    await cloudinary_store.pictures.put(draft, name)
    await draft.aclose()
    assert await cloudinary_store.pictures.has(name)
    assert [path async for path, _ in cloudinary_store.walk(DERIVED)] == [name.path]
    tombstone = Tombstone(record.key, datetime(2026, 11, 30, tzinfo=UTC), record.digest)
    await cloudinary_store.block(record.digest, tombstone.removed_at, [record.key])
    await cloudinary_store.put_tombstone(tombstone)
    await cloudinary_store.delete_object(record.digest)
    assert not await cloudinary_store.has_object(record.digest)
    assert not await cloudinary_store.has(record.object_name)
    assert await cloudinary_store.list_blocked() == {record.digest}
    assert await cloudinary_store.find_block(record.digest) == {record.key}
    with pytest.raises(Removed):
        await cloudinary_store.find(record.key)
    await cloudinary_store.delete_tombstone(tombstone)
    await cloudinary_store.unblock(record.digest)
    assert await cloudinary_store.find(record.key) is None
    assert list(cloudinary.paths()) == [f"sites/imgkeep/{BLOCKS_CHANGED}"]
    await cloudinary_store.spool.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 1, "key": "another"}', b"\x89PNG", b'{"a":' * 9000])
async def test_foreign_record_is_moved_to_quarantine(
    cloudinary: CloudinaryServer, cloudinary_store: BucketStore, content: bytes
) -> None:
    record = record_of(make_image())
    path = f"sites/imgkeep/{RECORDS}/{record.key[:2]}/{record.key}.json"
    cloudinary.put(("raw", "authenticated"), path, content)
    assert await cloudinary_store.find(record.key) is None
    [(kind, public_id)] = cloudinary.assets
    assert kind == ("raw", "authenticated")
    assert public_id.startswith(f"sites/imgkeep/damaged/{record.key}.json.")


async def copy(source: Folder | CloudinaryFolder, target: Folder | CloudinaryFolder) -> dict[str, int]:
    """Migrate in this process; return the summary without zeros."""
    out, err = StringIO(), StringIO()
    async with parts.open_migration(CONFIG, source, target, clock=lambda: NOON) as migration:
        assert await migrate(migration, as_json=True, out=out, err=err) == 0
    assert err.getvalue() == ""
    return {name: number for name, number in json.loads(out.getvalue()).items() if number}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("v1/**/*") if path.is_file()}


async def test_store_migrates_there_and_back(
    cloudinary: CloudinaryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDINARY_URL", cloudinary.url())
    store = local_store(tmp_path / "a")
    await store.open()
    for number in range(5):
        body = make_image(width=16, height=16, seed=number)
        await put_image(store, body, record_of(body, name=str(number)))
    await store.aclose()
    one, two = Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))
    assert await copy(one, PLACE) == {"copied_objects": 5, "copied_records": 5}
    stored = {path.removeprefix("images/"): body for path, body in cloudinary.paths().items()}
    assert {path: body for path, body in stored.items() if path != PROBE} == files(tmp_path / "a")
    assert await copy(PLACE, two) == {"copied_objects": 5, "copied_records": 5}
    assert files(tmp_path / "b") == files(tmp_path / "a")
    cloudinary.calls.clear()
    assert await copy(two, PLACE) == {"skipped": 5, "kept": 5}
    listings = [public_id for method, public_id in cloudinary.calls if method == "list"]
    assert sorted(listings) == [f"images/v1/{kind}/" for kind in ("objects", "objects", "records", "refused")]


async def test_migration_stops_where_the_admin_api_is_used_up(
    cloudinary: CloudinaryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDINARY_URL", cloudinary.url())
    cloudinary.listings_left = 1
    with pytest.raises(StorageError, match="RateLimited"):
        await copy(PLACE, Folder(str(tmp_path / "b")))
