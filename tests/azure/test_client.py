"""The client of a container, on Azurite, which checks its signatures."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from hashlib import md5
from typing import TYPE_CHECKING

import aiohttp
import pytest
from yarl import URL

from imgkeep.core.store_url import AzureContainer
from imgkeep.storage.azure import AzureClient
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import AlreadyThere, BucketError
from imgkeep.storage.bucket.live_check import check_bucket
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.memory import MemorySpool
from tests.support.azure.backends import azure_client, container_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.storage.interfaces import Draft
    from tests.support.azure.azurite import Azurite

IMAGE = ObjectFields(
    "image/svg+xml", "public, max-age=31536000, immutable", 'attachment; filename="0123456789abcdef.svg"'
)
PATH = "v1/objects/00/0000.svg"


@pytest.fixture
async def client(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AzureClient]:
    async with azure_client(azurite, monkeypatch, prefix="pre") as client:
        yield client


async def draft_of(data: bytes) -> Draft:
    draft = await MemorySpool(len(data) + 1).begin(len(data))
    await draft.write(data)
    return draft


async def read(client: AzureClient, path: str, **how: int | str) -> bytes | None:
    opened = await client.get(path, **how)  # type: ignore[arg-type]
    if opened is None:
        return None
    data = await opened.stream.read_all(50_000_000)
    assert len(data) == opened.size
    return data


# --- put


@pytest.mark.parametrize("size", [0, 1, 100_000, 1_048_577, 20_000_000], ids="{:_}".format)
async def test_draft_of_any_size_is_stored_with_its_fields(client: AzureClient, azurite: Azurite, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    await client.put_draft(PATH, await draft_of(data), IMAGE)
    stored = await azurite.head(f"pre/{PATH}")
    assert stored.size == size
    settings = stored.content_settings
    assert (settings.content_type, settings.cache_control, settings.content_disposition) == (
        IMAGE.content_type,
        IMAGE.cache_control,
        IMAGE.content_disposition,
    )
    assert bytes(settings.content_md5) == md5(data).digest()
    if size:
        assert await read(client, PATH) == data
        assert await read(client, PATH, start=size // 2) == data[size // 2 :]
        assert await read(client, PATH, end=1) == data[:1]


async def test_put_overwrites_unless_it_must_not(client: AzureClient) -> None:
    await client.put_bytes(PATH, b"one", IMAGE, only_if_absent=True)
    with pytest.raises(AlreadyThere):
        await client.put_bytes(PATH, b"two", IMAGE, only_if_absent=True)
    assert await read(client, PATH) == b"one"
    await client.put_bytes(PATH, b"three", IMAGE)
    assert await read(client, PATH) == b"three"


async def test_one_of_concurrent_conditional_puts_wins(client: AzureClient) -> None:
    async def put(data: bytes) -> bytes | None:
        try:
            await client.put_bytes(PATH, data, IMAGE, only_if_absent=True)
        except AlreadyThere:
            return None
        return data

    (winner,) = filter(None, await asyncio.gather(*(put(b"%d" % n) for n in range(1, 17))))
    assert await read(client, PATH) == winner


async def test_two_nodes_upload_the_blocks_of_one_image_at_once(client: AzureClient) -> None:
    data = bytes(range(250)) * 80_000
    await asyncio.gather(*(client.put_draft(PATH, draft, IMAGE) for draft in [await draft_of(data) for _ in range(3)]))
    assert await read(client, PATH) == data


# --- get, stat, delete


async def test_missing_blob_is_none_and_missing_container_is_a_failure(
    client: AzureClient, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get(PATH), await client.stat(PATH), await client.has_any("v1/")) == (None, None, False)
    await client.delete(PATH)
    async with azure_client(azurite, monkeypatch, container="there-is-none") as other:
        for call in (other.get(PATH), other.stat(PATH), other.delete(PATH), other.has_any("v1/")):
            with pytest.raises(BucketError) as failed:
                await call
            assert failed.value.error_code == "ContainerNotFound"
            assert failed.value.remedy is not None
            assert failed.value.place == other.place


async def test_read_of_another_version_fails(client: AzureClient) -> None:
    await client.put_bytes(PATH, b"one", IMAGE)
    first = await client.stat(PATH)
    assert first is not None
    assert first.size == 3
    assert await read(client, PATH, etag=first.etag) == b"one"
    await client.put_bytes(PATH, b"two", IMAGE)
    with pytest.raises(BucketError):
        await client.get(PATH, etag=first.etag)


async def test_blob_with_snapshots_is_deleted(client: AzureClient, azurite: Azurite) -> None:
    await client.put_bytes(PATH, b"one", IMAGE)
    async with azurite.client() as other:
        await other.get_blob_client(f"pre/{PATH}").create_snapshot()
    await client.delete(PATH)
    assert await client.stat(PATH) is None


# --- quarantine


async def test_only_the_named_version_is_quarantined(client: AzureClient, azurite: Azurite) -> None:
    await client.put_bytes(PATH, b"bad", IMAGE)
    bad = await client.stat(PATH)
    assert bad is not None
    await client.put_bytes(PATH, b"good", IMAGE)
    await client.quarantine(PATH, bad.etag)
    assert await azurite.objects() == {f"pre/{PATH}": b"good"}
    good = await client.stat(PATH)
    assert good is not None
    await client.quarantine(PATH, good.etag)
    ((name, body),) = (await azurite.objects()).items()
    assert (name.startswith("pre/damaged/0000.svg."), body) == (True, b"good")
    await client.quarantine(PATH, good.etag)


# --- list


async def test_walk_yields_paths_and_sizes_below_a_folder_in_order(client: AzureClient, azurite: Azurite) -> None:
    names = ["v1/objects/00/b", "v1/objects/00/a", "v1/objects/ff/ü &<x>.png", "v1/objects2/c", "v1/records/00/d"]
    for size, name in enumerate(names):
        await azurite.put(f"pre/{name}", b"x" * size)
    await azurite.put("v1/objects/00/other prefix", b"")
    found = [entry async for entry in client.walk("v1/objects")]
    assert found == [("v1/objects/00/a", 1), ("v1/objects/00/b", 0), ("v1/objects/ff/ü &<x>.png", 2)]
    assert await client.has_any("v1/objects/ff/")
    assert not await client.has_any("v1/objects/f0")


# --- links


async def test_presigned_link_reads_one_blob_until_it_ends(client: AzureClient) -> None:
    await client.put_bytes(PATH, b"<svg/>", IMAGE)
    await client.put_bytes(f"{PATH}2", b"other", IMAGE)
    url, life_s = await client.presign(PATH, ttl_s=100, head=False)
    assert life_s == 100
    async with aiohttp.ClientSession() as session:

        async def status(method: str, link: str) -> int:
            async with session.request(method, URL(link, encoded=True)) as response:
                return response.status

        async with session.get(URL(url, encoded=True)) as response:
            assert await response.read() == b"<svg/>"
            assert response.headers["Content-Type"] == IMAGE.content_type
            assert response.headers["Content-Disposition"] == IMAGE.content_disposition
        assert await status("HEAD", (await client.presign(PATH, ttl_s=100, head=True))[0]) == 200
        assert await status("GET", url.replace(PATH, f"{PATH}2")) == 403
        assert await status("DELETE", url) == 403
        assert await status("GET", client.public_url(PATH)) in {403, 404, 409}
        ended, _ = await client.presign(PATH, ttl_s=-10, head=False)
        assert await status("GET", ended) == 403


@pytest.mark.parametrize("prefix", ["", "a/b", "with space", "!_.*'()=@:,+ -x"], ids=repr)
async def test_any_allowed_prefix_works(azurite: Azurite, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    async with azure_client(azurite, monkeypatch, prefix=prefix) as client:
        await client.put_bytes(PATH, b"one", IMAGE)
        assert await azurite.objects() == {container_of(azurite, prefix).path(PATH): b"one"}
        assert await read(client, PATH) == b"one"
        assert [entry async for entry in client.walk("v1")] == [(PATH, 3)]
        status = await client.stat(PATH)
        assert status is not None
        url, _ = await client.presign(PATH, ttl_s=100, head=False)
        async with aiohttp.ClientSession() as session, session.get(URL(url, encoded=True)) as response:
            assert response.status == 200
        await client.quarantine(PATH, status.etag)
        assert [size async for _, size in client.walk("damaged")] == [3]


# --- other credentials


async def test_sas_token_reads_and_writes_and_signs_no_links(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    async with azure_client(azurite, monkeypatch, sas="racwdl") as client:
        assert not client.features.presign
        await client.put_bytes(PATH, b"one", IMAGE)
        await client.put_draft(PATH, await draft_of(bytes(17_000_000)), IMAGE)
        status = await client.stat(PATH)
        assert status is not None
        await client.quarantine(PATH, status.etag)
        assert await client.stat(PATH) is None
        with pytest.raises(BucketError) as refused:
            await client.presign(PATH, ttl_s=100, head=False)
        assert not refused.value.general


async def test_sas_token_without_a_right_is_a_failure_with_a_remedy(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with azure_client(azurite, monkeypatch, sas="r") as client:
        with pytest.raises(BucketError) as refused:
            await client.put_bytes(PATH, b"one", IMAGE)
        assert refused.value.error_code == "AuthorizationPermissionMismatch"
        assert "Storage Blob Data Contributor" in (refused.value.remedy or "")


async def test_wrong_key_is_a_failure_with_a_remedy(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    async with azure_client(azurite, monkeypatch, key=b64encode(b"wrong").decode()) as client:
        with pytest.raises(BucketError) as refused:
            await client.stat(PATH)
        assert refused.value.error_code in {"AuthorizationFailure", "AuthenticationFailed"}
        assert refused.value.remedy


# --- the store


async def test_diagnosis_finds_no_fault(client: AzureClient, azurite: Azurite) -> None:
    store = BucketStore(client)
    await store.probe()
    assert store.client.features.conditional_put
    steps = [step async for step in check_bucket(store, public_url=None)]
    assert {(step.error, step.note) for step in steps} == {(None, None)}
    assert {"blocks", "copy", "conditional-put", "presign", "put", "delete"} <= {step.name for step in steps}
    assert set(await azurite.objects()) == {"pre/v1/probe"}


def test_container_names_itself() -> None:
    assert AzureClient(AzureContainer("images")).place == "container images"
