"""The contract of every client of a bucket (`BucketClient`), on real servers."""

from __future__ import annotations

import random
import tracemalloc
from hashlib import sha256
from typing import TYPE_CHECKING

import aiohttp
import pytest
from yarl import URL

from imgkeep.core.layout import object_path, record_path
from imgkeep.core.records import Key
from imgkeep.storage.bucket.body import PIECE_BYTES
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import AlreadyThere, BucketError
from imgkeep.storage.s3.uploads import MULTIPART_BYTES_MIN
from tests.support.remote_services import SERVERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from imgkeep.storage.bucket.client import BucketClient
    from tests.support.bucket_backends import BucketBackend

BODY = random.Random(1).randbytes(1000)
OBJECT = object_path(f"{sha256(BODY).hexdigest()}.png")
RECORD = record_path(Key("ab" * 32))
PNG = ObjectFields("image/png", "public, max-age=31536000, immutable")
JSON = ObjectFields("application/json", "no-store")
TTL_S = 900
ONE_EACH = ["rclone", "fake-gcs-server", "azurite", "cloudinary"]
"""One server of each service, for what depends on the client alone."""
PLAN_BYTES_MAX = 10_000_000
"""Size of an image that Cloudinary's smallest plan takes."""


@pytest.fixture(scope="module", params=SERVERS)
def place(request: pytest.FixtureRequest) -> str:
    """Return the name of a server. All tests of one come after each other, so few processes start it."""
    return str(request.param)


@pytest.fixture
async def backend(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BucketBackend]:
    async for backend in SERVERS[place](place, request, tmp_path):
        yield backend


@pytest.fixture
def client(backend: BucketBackend) -> BucketClient:
    return backend.store.client


async def read(client: BucketClient, path: str, **how: int) -> bytes | None:
    opened = await client.get(path, **how)  # type: ignore[arg-type] # `etag` is no number
    if opened is None:
        return None
    data = await opened.stream.read_all(10_000)
    assert len(data) == opened.size
    return data


async def test_object_is_overwritten_unless_the_condition_forbids_it(client: BucketClient) -> None:
    await client.put_bytes(RECORD, b"first", JSON, only_if_absent=True)
    first = await client.stat(RECORD)
    assert first is not None
    assert first.size == len(b"first")
    if client.features.conditional_put:
        with pytest.raises(AlreadyThere) as fault:
            await client.put_bytes(RECORD, b"second one", JSON, only_if_absent=True)
        assert not fault.value.general
        assert (await read(client, RECORD), await client.stat(RECORD)) == (b"first", first)
    await client.put_bytes(RECORD, b"second one", JSON)
    second = await client.stat(RECORD)
    assert second is not None
    assert (second.size, second.etag != first.etag) == (len(b"second one"), True)
    opened = await client.get(RECORD)
    assert opened is not None
    assert (opened.etag, await opened.stream.read_all(100)) == (second.etag, b"second one")


async def test_missing_object_is_none_and_a_missing_bucket_is_a_fault(
    client: BucketClient, backend: BucketBackend, place: str
) -> None:
    assert await read(client, OBJECT) is None
    assert await read(client, OBJECT, end=1) is None
    assert await client.stat(OBJECT) is None
    await client.delete(OBJECT)
    await client.quarantine(OBJECT, "0" * 32)
    missing = backend.missing()
    await missing.open()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: missing.get(OBJECT),
        "stat": lambda: missing.stat(OBJECT),
        "has_any": lambda: missing.has_any("v1/objects/"),
        "walk": lambda: anext(aiter(missing.walk("v1/objects"))),
        "put_bytes": lambda: missing.put_bytes(OBJECT, BODY, PNG),
    }
    if place == "seaweedfs":
        del calls["put_bytes"]  # it makes the bucket
    for name, call in calls.items():
        with pytest.raises(BucketError) as fault:
            await call()
        assert (name, fault.value.general, fault.value.remedy is not None) == (name, True, True)
    await missing.aclose()


async def test_part_of_an_object_or_the_whole_is_read(client: BucketClient) -> None:
    await client.put_bytes(OBJECT, BODY, PNG)
    stat = await client.stat(OBJECT)
    assert stat is not None
    for start, end in [(0, 1), (10, 20), (990, None), (999, None)]:
        expected = BODY[start:end] if client.features.ranges else BODY
        opened = await client.get(OBJECT, start=start, end=end, etag=stat.etag)
        assert opened is not None
        assert opened.etag == stat.etag
        received = await opened.stream.read_all(10_000)
        # A service may also ignore the range (RFC 9110, 14.2): then it says so by the size.
        assert (opened.size, received) in [(len(expected), expected), (len(BODY), BODY)]
    with pytest.raises(BucketError) as fault:
        await client.get(OBJECT, start=10, etag="another-version")
    assert not fault.value.general


async def test_walk_is_complete_and_ordered(client: BucketClient) -> None:
    rng = random.Random(2)
    paths = sorted(
        {object_path(f"{rng.randbytes(32).hex()}.png") for _ in range(5)} | {object_path(f"{'00' * 32}.png")}
    )
    sizes = dict(zip(paths, range(1, 7), strict=True))
    for path in reversed(paths):
        await client.put_bytes(path, BODY[: sizes[path]], PNG)
    await client.put_bytes(RECORD, b"record", JSON)
    assert [found async for found in client.walk("v1/objects")] == list(sizes.items())
    assert [found async for found in client.walk("v1/records")] == [(RECORD, len(b"record"))]
    assert [found async for found in client.walk("v1/blocked")] == []
    assert await client.has_any("v1/objects/")
    assert await client.has_any(paths[0].removesuffix("png"))
    assert not await client.has_any("v1/blocked/")
    assert not await client.has_any(object_path(f"{'01' * 32}."))


async def test_only_the_given_version_goes_to_quarantine(client: BucketClient, backend: BucketBackend) -> None:
    await client.put_bytes(RECORD, b"good", JSON)
    good = await client.stat(RECORD)
    assert good is not None
    await client.quarantine(RECORD, "0" * 32)
    assert await read(client, RECORD) == b"good"
    await client.quarantine(RECORD, good.etag)
    assert await client.stat(RECORD) is None
    # A service that ignores the condition of a copy (moto, rclone, s3rver) has made a copy before, too.
    assert {(path.partition("/")[0], body) for path, body in (await backend.stored()).items()} == {("damaged", b"good")}


async def test_signed_link_leads_to_the_object_alone(client: BucketClient) -> None:
    await client.put_bytes(OBJECT, BODY, PNG)
    if not client.features.presign:
        with pytest.raises(BucketError):
            await client.presign(OBJECT, ttl_s=TTL_S, head=False)
        return
    url, life_s = await client.presign(OBJECT, ttl_s=TTL_S, head=False)
    head_url, _ = await client.presign(OBJECT, ttl_s=TTL_S, head=True)
    assert 0 < life_s <= TTL_S
    async with aiohttp.ClientSession() as session:
        async with session.get(URL(url, encoded=True)) as response:
            assert (response.status, await response.read()) == (200, BODY)
            assert response.headers["Content-Type"] == PNG.content_type
        async with session.head(URL(head_url, encoded=True)) as response:
            assert response.status == 200
            assert response.headers["Content-Length"] == str(len(BODY))
        async with session.get(URL(url.replace(OBJECT, RECORD), encoded=True)) as response:
            assert response.status in {403, 404}


@pytest.mark.parametrize("place", ONE_EACH, indirect=True, scope="module")
async def test_large_draft_is_never_whole_in_memory(backend: BucketBackend, place: str) -> None:
    client, size = backend.store.client, PLAN_BYTES_MAX if place == "cloudinary" else MULTIPART_BYTES_MIN + 1
    draft = await backend.store.spool.begin(size)
    for start in range(0, size, PIECE_BYTES):
        await draft.write(bytes(min(PIECE_BYTES, size - start)))
    tracemalloc.start()
    try:
        await client.put_draft(OBJECT, draft, PNG)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await draft.aclose()
    stat = await client.stat(OBJECT)
    assert stat is not None
    assert stat.size == size
    # One part of an upload. A server in this process holds what it has received.
    assert peak < 9_000_000 or place in {"cloudinary", "strict-gcs"}
