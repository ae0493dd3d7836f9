"""The client of a bucket on fake-gcs-server."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from imgkeep.core.store_url import GcsBucket
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import AlreadyThere, BucketError
from imgkeep.storage.bucket.live_check import check_bucket
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.gcs import GcsClient
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from tests.support.gcs.fake_gcs_server import FakeGcsServer

PATH = "v1/records/00/a b%c.json"
FIELDS = ObjectFields("application/json", "no-store", "attachment")


@asynccontextmanager
async def opening(bucket: GcsBucket) -> AsyncGenerator[GcsClient]:
    client = GcsClient(bucket, timeout_s=10)
    await client.open()
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def client(fake_gcs_server: FakeGcsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GcsClient]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs_server.endpoint)
    async with opening(GcsBucket(fake_gcs_server.bucket, "a prefix")) as client:
        yield client


async def read(client: GcsClient, path: str, **part: int) -> bytes | None:
    opened = await client.get(path, **part)  # type: ignore[arg-type]
    return None if opened is None else await opened.stream.read_all(1_000_000)


async def test_object_has_bytes_and_fields(client: GcsClient, fake_gcs_server: FakeGcsServer) -> None:
    await client.put_bytes(PATH, b"0123456789", FIELDS)
    assert await read(client, PATH) == b"0123456789"
    assert await read(client, PATH, start=3) == b"3456789"
    assert await read(client, PATH, start=3, end=5) == b"34"
    assert await read(client, PATH, end=1) == b"0"
    found = await fake_gcs_server.head(f"a prefix/{PATH}")
    assert found is not None
    assert (found["contentType"], found["cacheControl"], found["contentDisposition"]) == (
        "application/json",
        "no-store",
        "attachment",
    )
    stat = await client.stat(PATH)
    assert stat is not None
    assert (stat.size, stat.etag) == (10, found["generation"])


@pytest.mark.parametrize("size", [0, 1, 262_144, 3_000_001])
async def test_draft_is_stored_whole(client: GcsClient, fake_gcs_server: FakeGcsServer, size: int) -> None:
    body = random.Random(size).randbytes(size)
    draft = await MemorySpool(size).begin(size)
    await draft.write(body)
    await client.put_draft(PATH, draft, FIELDS)
    await draft.aclose()
    assert await fake_gcs_server.get(f"a prefix/{PATH}") == body


async def test_missing_object_is_a_miss(client: GcsClient) -> None:
    assert await client.get(PATH) is None
    assert await client.stat(PATH) is None
    await client.delete(PATH)
    await client.quarantine(PATH, "1")


async def test_missing_bucket_is_a_fault(client: GcsClient) -> None:
    del client  # for the endpoint
    async with opening(GcsBucket("no-such-bucket")) as client:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: client.get(PATH),
            lambda: client.stat(PATH),
            lambda: client.delete(PATH),
            lambda: client.has_any("v1/"),
            lambda: client.put_bytes(PATH, b"", FIELDS),
        ]
        for call in calls:
            with pytest.raises(BucketError) as caught:
                await call()
            assert caught.value.error_code == "noSuchBucket"
            assert caught.value.general
            assert caught.value.remedy == "create the bucket, or correct its name in store.url"


async def test_conditional_put_leaves_what_is_there(client: GcsClient) -> None:
    await client.put_bytes(PATH, b"first", FIELDS, only_if_absent=True)
    with pytest.raises(AlreadyThere):
        await client.put_bytes(PATH, b"second", FIELDS, only_if_absent=True)
    assert await read(client, PATH) == b"first"
    await client.probe_features(PATH)
    assert client.features.conditional_put
    assert await read(client, PATH) == b"first"


async def test_another_version_is_no_longer_read(client: GcsClient) -> None:
    await client.put_bytes(PATH, b"first", FIELDS)
    first = await client.stat(PATH)
    assert first is not None
    await client.put_bytes(PATH, b"second", FIELDS)
    with pytest.raises(BucketError, match="changed during a read"):
        await client.get(PATH, etag=first.etag)


async def test_quarantine_moves_only_the_version_that_was_read(
    client: GcsClient, fake_gcs_server: FakeGcsServer
) -> None:
    await client.put_bytes(PATH, b"first", FIELDS)
    first = await client.stat(PATH)
    assert first is not None
    await client.put_bytes(PATH, b"second", FIELDS)
    await client.quarantine(PATH, first.etag)
    assert await fake_gcs_server.objects() == {f"a prefix/{PATH}": b"second"}
    second = await client.stat(PATH)
    assert second is not None
    await client.quarantine(PATH, second.etag)
    ((name, body),) = (await fake_gcs_server.objects()).items()
    assert name.startswith("a prefix/damaged/a b%c.json.")
    assert body == b"second"


async def test_walk_is_about_the_folder_alone(client: GcsClient, fake_gcs_server: FakeGcsServer) -> None:
    assert not await client.has_any("v1/x/")
    for name in ("b", "a", "c/d"):
        await fake_gcs_server.put(f"a prefix/v1/x/{name}", name.encode())
    await fake_gcs_server.put("a prefix/v1/xy", b"")
    assert [found async for found in client.walk("v1/x")] == [("v1/x/a", 1), ("v1/x/b", 1), ("v1/x/c/d", 3)]
    assert await client.has_any("v1/x/")
    assert await client.has_any("v1/x")


async def test_public_url_leads_to_the_object(client: GcsClient) -> None:
    await client.put_bytes(PATH, b"body", FIELDS)
    async with aiohttp.ClientSession() as session, session.get(client.public_url(PATH)) as response:
        assert (response.status, await response.read()) == (200, b"body")


async def test_diagnosis_of_an_emulator_finds_no_fault(client: GcsClient) -> None:
    store = BucketStore(client)
    steps = [step async for step in check_bucket(store, public_url=store.public_url)]
    assert [step for step in steps if step.error] == []
    assert [step.name for step in steps if step.note] == ["presign"]
    assert {"put", "get", "range", "list", "conditional-put", "copy", "public", "delete"} <= {
        step.name for step in steps
    }
