"""`migrate` copies every store to every other, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import count, permutations
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.storage import open_migration
from imgkeep.cli.migrate import migrate
from imgkeep.config import load
from imgkeep.core.layout import BLOCKED, OBJECTS, RECORDS, read_block_path
from imgkeep.core.records import Digest, Key, Tombstone
from imgkeep.core.store_url import AzureContainer, CloudinaryFolder, Folder, GcsBucket, S3Bucket
from imgkeep.images.record_json import STORES
from tests.support.images import make_image
from tests.support.remote_services import SERVICES
from tests.support.stores import NOON, local_store, put_image, record_of

if TYPE_CHECKING:
    from pathlib import Path

    from imgkeep.core.store_url import StorePlace
    from tests.support.azure.azurite import Azurite
    from tests.support.cloudinary.server import CloudinaryServer
    from tests.support.gcs.fake_gcs_server import FakeGcsServer
    from tests.support.s3.servers import S3Server

CONFIG = load({"store": {"free_bytes_min": 0, "timeout_s": 20}}, {})
IMAGES = 2
REMOVED = Tombstone(Key("ab" * 32), NOON, Digest("cd" * 32))

Objects = Callable[[str], Awaitable[Mapping[str, bytes]]]


@dataclass(frozen=True)
class Service:
    """A service with a server: its places by their prefixes, and what is under a prefix."""

    place: Callable[[str], StorePlace]
    objects: Objects


@pytest.fixture
def services(  # noqa: PLR0917 - a fixture is an argument
    bucket: Callable[[str], S3Server],
    azurite: Azurite,
    fake_gcs_server: FakeGcsServer,
    cloudinary: CloudinaryServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Service]:
    """Services by their names, all of which the environment leads to."""
    s3 = bucket("moto")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs_server.endpoint)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    monkeypatch.setenv("CLOUDINARY_URL", cloudinary.url())

    async def assets(prefix: str) -> dict[str, bytes]:
        return {path: body for path, body in cloudinary.paths().items() if path.startswith(prefix)}

    async def files(prefix: str) -> dict[str, bytes]:
        folder = tmp_path / prefix
        return {
            str(path.relative_to(tmp_path)): path.read_bytes() for path in folder.rglob("v1/**/*") if path.is_file()
        }

    return {
        "local": Service(lambda prefix: Folder(str(tmp_path / prefix)), files),
        "s3": Service(lambda prefix: S3Bucket(s3.bucket, prefix, "us-east-1", s3.endpoint), s3.objects),
        "gcs": Service(lambda prefix: GcsBucket(fake_gcs_server.bucket, prefix), fake_gcs_server.objects),
        "azure": Service(lambda prefix: AzureContainer(azurite.container, prefix), azurite.objects),
        "cloudinary": Service(CloudinaryFolder, assets),
    }


async def stock(folder: Path) -> None:
    """Store images, a tombstone and a blocked digest."""
    store = local_store(folder)
    await store.open()
    for number in range(IMAGES):
        body = make_image(width=16, height=16, seed=number)
        await put_image(store, body, record_of(body, name=str(number)))
    await store.put_tombstone(REMOVED)
    await store.block(Digest("cd" * 32), NOON, [REMOVED.key])
    await store.aclose()


async def copy(source: StorePlace, target: StorePlace) -> dict[str, int]:
    """Migrate in this process; return the summary without zeros."""
    out, err = StringIO(), StringIO()
    async with open_migration(CONFIG, source, target, clock=lambda: NOON) as migration:
        assert await migrate(migration, as_json=True, out=out, err=err) == 0, err.getvalue()
    return {name: number for name, number in json.loads(out.getvalue()).items() if number}


async def stored(service: Service, prefix: str) -> dict[str, bytes]:
    """Return objects, records and tombstones by their paths, and the names of blocked digests."""
    found = {name.removeprefix(f"{prefix}/"): body for name, body in (await service.objects(f"{prefix}/")).items()}
    kept = {path: body for path, body in found.items() if path.startswith((f"{OBJECTS}/", f"{RECORDS}/"))}
    return kept | {path: b"" for path in found if path.startswith(f"{BLOCKED}/") and read_block_path(path)}


def test_answers_name_every_store() -> None:
    assert set(STORES) == {"local", *SERVICES}


async def test_every_store_migrates_to_every_other(services: dict[str, Service], tmp_path: Path) -> None:
    assert set(services) == {"local", *SERVICES}
    await stock(tmp_path / "first")
    original = await stored(services["local"], "first")
    assert len(original) == 2 * IMAGES + 2
    prefixes = {"local": "first"}
    number = count()
    everything = {"copied_objects": IMAGES, "copied_records": IMAGES + 1}
    for name in SERVICES:
        prefixes[name] = f"m{next(number)}"
        summary = await copy(services["local"].place("first"), services[name].place(prefixes[name]))
        assert (name, summary) == (name, everything)
        assert await stored(services[name], prefixes[name]) == original, name
    for source, target in permutations(services, 2):
        if source != "local":
            prefix = f"m{next(number)}"
            summary = await copy(services[source].place(prefixes[source]), services[target].place(prefix))
            assert (source, target, summary) == (source, target, everything)
            assert await stored(services[target], prefix) == original, (source, target)
