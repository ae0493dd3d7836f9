"""Errors of Cloudinary are typed, have a remedy, and quote neither a secret nor the service's own words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.layout import RECORDS, object_path
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.cloudinary import CloudinaryClient
from imgkeep.storage.cloudinary.errors import read_refusal
from tests.support.cloudinary.fixtures import FOLDER
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.cloudinary.server import CloudinaryServer
    from tests.support.s3.gate import Gate

RECORD = f"{RECORDS}/ab/ab{'0' * 62}.json"
OBJECT = object_path(f"{'ab' * 32}.png")
FIELDS = ObjectFields("application/json")


async def listed(client: CloudinaryClient) -> list[tuple[str, int]]:
    return [entry async for entry in client.walk(RECORDS)]


CALLS: dict[str, Callable[[CloudinaryClient], Awaitable[object]]] = {
    "get": lambda client: client.get(OBJECT),
    "stat": lambda client: client.stat(OBJECT),
    "put": lambda client: client.put_bytes(RECORD, b"{}", FIELDS),
    "delete": lambda client: client.delete(OBJECT),
    "list": listed,
}
MISTAKES = {
    "secret": ("a-Secret_of-the-Service", "another-secret", {"InvalidSignature", "Unauthorized"}, "API secret"),
    "key": ("123456789012345", "543210987654321", {"UnknownApiKey", "Unauthorized"}, "API key"),
    "cloud": ("@demo", "@other", {"InvalidCloudName"}, "cloud name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("call", CALLS)
async def test_wrong_account_is_a_general_error_with_a_remedy(
    cloudinary: CloudinaryServer, call: str, mistake: str
) -> None:
    right, wrong, codes, remedy = MISTAKES[mistake]
    client = CloudinaryClient(FOLDER, environment={"CLOUDINARY_URL": cloudinary.url().replace(right, wrong)})
    await client.open()
    with pytest.raises(BucketError) as caught:
        await CALLS[call](client)
    assert caught.value.error_code in codes
    assert caught.value.general
    assert remedy in (caught.value.remedy or "").replace("API key and secret", "API key and API secret")
    assert caught.value.place == "folder sites/imgkeep of Cloudinary"
    assert not {"Signature ", "timestamp", wrong, cloudinary.secret} & set(caught.value.in_full.split())
    await client.aclose()


async def test_wrong_clock_is_a_general_error_with_a_remedy(cloudinary: CloudinaryServer) -> None:
    client = CloudinaryClient(
        FOLDER, environment={"CLOUDINARY_URL": cloudinary.url()}, clock=lambda: datetime(2020, 1, 1, tzinfo=UTC)
    )
    await client.open()
    with pytest.raises(BucketError) as caught:
        await client.stat(OBJECT)
    assert (caught.value.error_code, caught.value.general) == ("StaleRequest", True)
    assert "set the clock" in (caught.value.remedy or "")
    await client.aclose()


async def test_used_up_admin_api_concerns_listings_alone(
    cloudinary: CloudinaryServer, cloudinary_client: CloudinaryClient
) -> None:
    cloudinary.listings_left = 0
    with pytest.raises(BucketError) as caught:
        await listed(cloudinary_client)
    assert (caught.value.error_code, caught.value.general) == ("RateLimited", False)
    assert "wait for the next hour" in (caught.value.remedy or "")
    await cloudinary_client.put_bytes(RECORD, b"{}", FIELDS)
    assert await cloudinary_client.stat(RECORD) is not None


@table(
    ("status", "data", "code", "general"),
    [
        (404, b"<html>not here</html>", "404", False),
        (404, b'{"error": {"message": "Page missing"}}', "404", False),
        (401, b"<html>HTTP Basic: Access denied.</html>", "Unauthorized", True),
        (502, b"<html>Bad gateway</html>", "502", True),
        (302, b"", "302", True),
        (400, b'{"error": {"message": "something new"}}', "BadRequest", False),
        (400, b'{"error": "no object"}', "400", True),
        (409, b'{"error": {"message": "x already exists"}}', "AlreadyExists", False),
        (413, b"<html>Request entity too large</html>", "FileTooLarge", False),
        (500, b'{"error": {"message": "\xff"}}', "500", True),
        (500, b'{"a":' * 10_000, "500", True),
    ],
)
def test_any_refusal_is_typed(status: int, data: bytes, code: str, general: bool) -> None:  # noqa: FBT001
    error = read_refusal(status, {}, data)
    assert (error.error_code, error.general) == (code, general)


async def test_links_of_other_kinds_are_refused(cloudinary_client: CloudinaryClient) -> None:
    with pytest.raises(BucketError, match="no presigned links"):
        await cloudinary_client.presign(OBJECT, ttl_s=60, head=False)
    assert not cloudinary_client.features.presign
    assert not cloudinary_client.features.ranges
    assert await cloudinary_client.abort_uploads() == 0


ANSWERS = {
    "no JSON": b"<html>",
    "nothing": b"",
    "a list": b"[]",
    "another asset": b'{"public_id": "a", "resource_type": "raw", "type": "upload", "bytes": 1, "etag": "b"}',
    "a size that is a text": b'{"public_id": "a", "resource_type": "raw", "type": "upload", "bytes": "1", "etag": ""}',
    "an unknown result": b'{"result": "perhaps", "resources": 1}',
    "a text that is none": b'{"public_id": "\xff", "result": "\xff", "resources": [], "next_cursor": "\xff"}',
    "deep nesting": b'{"a":' + b"[" * 100_000,
    "more than there is room for": b'{"a": "' + b"x" * 5_000_000,
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_answer_that_is_none_of_the_service_is_an_error(
    cloudinary: CloudinaryServer, cloudinary_gate: Gate, answer: str
) -> None:
    client = CloudinaryClient(FOLDER, environment={"CLOUDINARY_URL": cloudinary.url(cloudinary_gate.endpoint)})
    await client.open()
    await cloudinary_gate.answer(200, {"Content-Type": "application/json"}, ANSWERS[answer])
    for name in ("stat", "put", "delete", "list"):
        with pytest.raises(BucketError, match=r"does not speak it|another asset"):
            await CALLS[name](client)
    await client.aclose()


async def test_listing_that_does_not_end_is_an_error(cloudinary: CloudinaryServer, cloudinary_gate: Gate) -> None:
    client = CloudinaryClient(FOLDER, environment={"CLOUDINARY_URL": cloudinary.url(cloudinary_gate.endpoint)})
    await client.open()
    page = b'{"resources": [{"public_id": "of/another/program", "bytes": 1}], "next_cursor": "again"}'
    await cloudinary_gate.answer(200, {"Content-Type": "application/json"}, page)
    with pytest.raises(BucketError, match="never ends"):
        await listed(client)
    await client.aclose()
