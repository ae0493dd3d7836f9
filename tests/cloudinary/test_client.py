"""The client of a Cloudinary folder, on a server that is as strict as their API reference."""

from __future__ import annotations

import asyncio
from hashlib import md5, sha256
from typing import TYPE_CHECKING

import aiohttp
import pytest

from imgkeep.core.layout import BLOCKED, OBJECTS, RECORDS, object_path
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.request_limits import REQUESTS_MAX
from imgkeep.storage.memory import MemorySpool
from tests.support.images import make_image

if TYPE_CHECKING:
    from imgkeep.storage.bucket.store import BucketStore
    from imgkeep.storage.cloudinary import CloudinaryClient
    from tests.support.cloudinary.server import CloudinaryServer

PNG = make_image()
RECORD = f"{RECORDS}/ab/ab{'0' * 62}.json"
FIELDS = ObjectFields("application/json", "no-store")
FOLDER = "sites/imgkeep"


def name_of(body: bytes, extension: str = "png") -> str:
    return f"{sha256(body).hexdigest()}.{extension}"


async def put(client: CloudinaryClient, body: bytes, extension: str = "png") -> str:
    """Put an object and return its path."""
    path = object_path(name_of(body, extension))
    draft = await MemorySpool(100_000_000).begin(len(body))
    try:
        await draft.write(body)
        await client.put_draft(path, draft, ObjectFields("image/png"))
    finally:
        await draft.aclose()
    return path


async def read(client: CloudinaryClient, path: str) -> bytes | None:
    opened = await client.get(path)
    return None if opened is None else await opened.stream.read_all(opened.size + 1)


async def fetch(url: str) -> tuple[int, bytes]:
    """Get a URL as a browser does."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.read()


# --- what is put


async def test_image_is_stored_byte_for_byte_at_its_delivery_url(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    path = await put(cloudinary_client, PNG)
    assert cloudinary.paths() == {f"{FOLDER}/{path}": PNG}
    assert await read(cloudinary_client, path) == PNG
    url = cloudinary_client.public_url(path)
    assert url == f"http://127.0.0.1:{cloudinary.port}/demo/image/upload/v1/{FOLDER}/{path}"
    assert await fetch(url) == (200, PNG)


@pytest.mark.parametrize("extension", ["apng", "heif", "cur", "tiff"])
async def test_format_with_another_name_there_is_stored_as_a_raw_file(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient, extension: str
) -> None:
    path = await put(cloudinary_client, b"some image of this format", extension)
    assert cloudinary.assets.keys() == {(("raw", "upload"), f"{FOLDER}/{path}")}
    assert await read(cloudinary_client, path) == b"some image of this format"
    assert await fetch(cloudinary_client.public_url(path)) == (200, b"some image of this format")


async def test_record_is_not_public(cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient) -> None:
    await cloudinary_client.put_bytes(RECORD, b"{}", FIELDS)
    assert cloudinary.assets.keys() == {(("raw", "authenticated"), f"{FOLDER}/{RECORD}")}
    host = f"http://127.0.0.1:{cloudinary.port}/demo"
    for place in ("raw/upload", "raw/authenticated"):
        assert (await fetch(f"{host}/{place}/v1/{FOLDER}/{RECORD}"))[0] in {401, 404}


async def test_second_upload_of_the_same_bytes_changes_nothing(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    for _ in range(2):
        await put(cloudinary_client, PNG)
    assert [asset.version for asset in cloudinary.assets.values()] == [1_700_000_001]


async def test_other_bytes_under_an_objects_name_are_replaced(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    path = await put(cloudinary_client, PNG)
    next(iter(cloudinary.assets.values())).data = PNG[:-1] + b"\0"
    assert await put(cloudinary_client, PNG) == path
    assert await read(cloudinary_client, path) == PNG


async def test_read_after_an_overwrite_returns_the_new_record(cloudinary_client: CloudinaryClient) -> None:
    for text in (b"one", b"two"):
        await cloudinary_client.put_bytes(RECORD, text, FIELDS)
        assert await read(cloudinary_client, RECORD) == text


async def test_condition_is_not_relied_on(cloudinary_client: CloudinaryClient, cloudinary_store: BucketStore) -> None:
    await cloudinary_store.probe()
    assert not cloudinary_client.features.conditional_put
    for text in (b"one", b"two"):
        await cloudinary_client.put_bytes(RECORD, text, FIELDS, only_if_absent=True)
    assert await read(cloudinary_client, RECORD) == b"two"


@pytest.mark.parametrize("knows", [True, False])
async def test_object_is_stored_whether_or_not_overwrite_has_an_effect(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient, *, knows: bool
) -> None:
    cloudinary.knows_overwrite = knows
    path = await put(cloudinary_client, PNG)
    assert await put(cloudinary_client, PNG) == path
    assert await read(cloudinary_client, path) == PNG


async def test_large_image_is_streamed(cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient) -> None:
    cloudinary.images_only = False
    body = bytes(range(256)) * 12_000
    path = await put(cloudinary_client, body)
    assert await read(cloudinary_client, path) == body


# --- what is refused


async def test_image_that_the_service_does_not_know_is_a_typed_error(cloudinary_client: CloudinaryClient) -> None:
    with pytest.raises(BucketError, match="does not take it for an image") as caught:
        await put(cloudinary_client, b"no image")
    assert (caught.value.error_code, caught.value.general) == ("FormatRefused", False)
    assert caught.value.remedy


async def test_image_that_is_larger_than_the_plan_allows_is_a_typed_error(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    cloudinary.size_max = len(PNG) - 1
    with pytest.raises(BucketError, match="larger than the account's plan allows") as caught:
        await put(cloudinary_client, PNG)
    assert (caught.value.error_code, caught.value.general) == ("FileTooLarge", False)


@pytest.mark.parametrize(
    "incoming", [lambda data: data + b"optimized", lambda _: make_image("JPEG")], ids=["other-bytes", "other-format"]
)
async def test_image_that_the_service_changes_is_deleted_and_refused(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient, incoming: object
) -> None:
    cloudinary.incoming = incoming  # type: ignore[assignment]
    with pytest.raises(BucketError, match="in another form") as caught:
        await put(cloudinary_client, PNG)
    assert (caught.value.error_code, caught.value.general) == ("Changed", False)
    assert cloudinary.assets == {}


async def test_image_of_another_format_under_the_digest_is_not_touched(cloudinary_client: CloudinaryClient) -> None:
    path = await put(cloudinary_client, PNG)
    with pytest.raises(BucketError, match="in another form"):
        await put(cloudinary_client, PNG, "jpg")
    assert await read(cloudinary_client, path) == PNG
    other = object_path(name_of(PNG, "jpg"))
    assert await cloudinary_client.get(other) is None
    assert await cloudinary_client.stat(other) is None


# --- what is found


@pytest.mark.parametrize("names_fields", [True, False], ids=["fields", "no-fields"])
async def test_size_and_etag_are_known_whatever_the_response_states(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient, *, names_fields: bool
) -> None:
    cloudinary.names_fields = names_fields
    path = await put(cloudinary_client, PNG)
    opened = await cloudinary_client.get(path)
    stat = await cloudinary_client.stat(path)
    assert opened is not None
    assert stat is not None
    assert (opened.size, opened.etag) == (stat.size, stat.etag) == (len(PNG), md5(PNG).hexdigest())
    assert await opened.stream.read_all(100_000) == PNG
    with pytest.raises(BucketError, match="changed during a read"):
        await cloudinary_client.get(path, etag="0" * 32)
    assert await cloudinary_client.get(object_path(name_of(b"missing"))) is None


async def test_many_reads_at_once_do_not_wait_for_each_other(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    cloudinary.names_fields = False
    path = await put(cloudinary_client, PNG)
    for _ in range(2):
        assert set(await asyncio.gather(*(read(cloudinary_client, path) for _ in range(REQUESTS_MAX)))) == {PNG}


async def test_missing_asset_is_none(cloudinary_client: CloudinaryClient) -> None:
    for path in (object_path(name_of(PNG)), object_path(name_of(PNG, "apng")), RECORD):
        assert await cloudinary_client.get(path) is None
        assert await cloudinary_client.stat(path) is None
        await cloudinary_client.delete(path)


async def test_deleted_image_is_gone_from_the_cdn_too(cloudinary_client: CloudinaryClient) -> None:
    path = await put(cloudinary_client, PNG)
    url = cloudinary_client.public_url(path)
    assert (await fetch(url))[0] == 200
    await cloudinary_client.delete(path)
    assert (await fetch(url))[0] == 404
    assert await cloudinary_client.get(path) is None


async def test_walk_lists_images_and_raw_files_in_order(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    cloudinary.page_max = 2
    images = [make_image(seed=seed) for seed in range(5)]
    put_paths = [await put(cloudinary_client, image) for image in images]
    put_paths += [await put(cloudinary_client, bytes([seed]) * 9, "tiff") for seed in range(5)]
    await cloudinary_client.put_bytes(RECORD, b"{}", FIELDS)
    listed = [path async for path, _ in cloudinary_client.walk(OBJECTS)]
    assert listed == sorted(put_paths)
    assert [entry async for entry in cloudinary_client.walk(RECORDS)] == [(RECORD, 2)]
    assert [entry async for entry in cloudinary_client.walk(f"{OBJECTS}/{put_paths[0][11:13]}")] != []
    assert [entry async for entry in cloudinary_client.walk(BLOCKED)] == []
    assert [path async for path, _ in cloudinary_client.walk("v1")] == sorted([*put_paths, RECORD])


async def test_folder_after_folder_costs_a_request_a_page(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    cloudinary.page_max = 4
    paths = [f"{RECORDS}/{folder}/{folder}{number:062x}.json" for folder in ("00", "0a", "ff") for number in range(3)]
    for path in paths:
        await cloudinary_client.put_bytes(path, b"{}", FIELDS)
    cloudinary.calls.clear()
    folders = [f"{RECORDS}/{folder:02x}" for folder in range(256)]
    assert [path for folder in folders async for path, _ in cloudinary_client.walk(folder)] == paths
    assert len(cloudinary.calls) == 3
    assert [path async for path, _ in cloudinary_client.walk(f"{RECORDS}/0a")] == paths[3:6]
    walks = [cloudinary_client.walk(f"{RECORDS}/{folder}") for folder in ("0a", "ff")]
    mixed = [await anext(walk) for walk in (*walks, *walks, *walks)]
    assert sorted(path for path, _ in mixed) == paths[3:]


async def test_listing_in_another_order_is_an_error(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    cloudinary.sorts = False
    for folder in ("ff", "00"):
        await cloudinary_client.put_bytes(f"{RECORDS}/{folder}/{folder * 32}.json", b"{}", FIELDS)
    with pytest.raises(BucketError, match="does not list in the order"):
        assert [entry for folder in ("00", "ff") async for entry in cloudinary_client.walk(f"{RECORDS}/{folder}")]


@pytest.mark.parametrize("extension", ["png", "tiff"])
async def test_object_is_found_by_its_digest_without_a_listing(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient, extension: str
) -> None:
    prefix = object_path(name_of(PNG, ""))
    assert not await cloudinary_client.has_any(prefix)
    path = await put(cloudinary_client, PNG, extension)
    assert await cloudinary_client.has_any(prefix)
    assert "list" not in [method for method, _ in cloudinary.calls]
    assert await cloudinary_client.has_any(path)
    assert cloudinary.calls[-1][0] == "list"
    assert not await cloudinary_client.has_any(RECORDS)


# --- quarantine


async def test_quarantined_image_is_out_of_every_readers_way(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    path = await put(cloudinary_client, PNG)
    await cloudinary_client.quarantine(path, "0" * 32)
    assert await read(cloudinary_client, path) == PNG
    await cloudinary_client.quarantine(path, md5(PNG).hexdigest())
    assert await cloudinary_client.get(path) is None
    [((kind, public_id), asset)] = cloudinary.assets.items()
    assert kind == ("image", "authenticated")
    assert public_id.startswith(f"{FOLDER}/damaged/{name_of(PNG)[:-4]}.")
    assert asset.data == PNG
    assert (await fetch(cloudinary_client.public_url(path)))[0] == 404
    await cloudinary_client.quarantine(path, md5(PNG).hexdigest())


async def test_version_that_another_process_stored_meanwhile_is_moved_back(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    await cloudinary_client.put_bytes(RECORD, b"damaged", FIELDS)

    def overtake() -> None:
        next(iter(cloudinary.assets.values())).data = b"good"

    cloudinary.before["rename"] = overtake
    await cloudinary_client.quarantine(RECORD, md5(b"damaged").hexdigest())
    assert cloudinary.paths() == {f"{FOLDER}/{RECORD}": b"good"}
