"""Uploads in parts that a kill interrupted: imgkeep aborts its own, once no node can still be at work on them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.store_url import S3Bucket
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.s3 import S3Client
from tests.support.s3.misbehaving import only, s3_error
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.s3.remote import Remote

OURS = f"pre/v1/objects/ab/ab{'0' * 62}.png"
FOREIGN = [f"other/v1/objects/ab/ab{'0' * 62}.png", "pre/v1/objects/ab/report.pdf", "pre/backup.tar"]
LISTING = "uploads&"


@pytest.fixture
async def client(remote: Remote) -> AsyncIterator[S3Client]:
    client = S3Client(S3Bucket(remote.server.bucket, "pre", "us-east-1", remote.gate.endpoint), timeout_s=5)
    await client.open()
    yield client
    await client.aclose()


async def sleep_hardly(seconds: float) -> None:
    await asyncio.sleep(seconds / 1000)


async def begin(remote: Remote, *keys: str) -> None:
    """Begin uploads and send a part of each, as a process that is killed then."""
    async with remote.server.client() as s3:
        for key in keys:
            place = {"Bucket": remote.server.bucket, "Key": key}
            upload = (await s3.create_multipart_upload(**place))["UploadId"]
            await s3.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"part")


async def unfinished(remote: Remote) -> list[str]:
    async with remote.server.client() as s3:
        answer: dict[str, Any] = await s3.list_multipart_uploads(Bucket=remote.server.bucket)
        return sorted(upload["Key"] for upload in answer.get("Uploads", []))


async def test_node_aborts_what_a_kill_left_and_nothing_else(remote: Remote) -> None:
    await begin(remote, OURS, f"{OURS}.parts", *FOREIGN)
    await remote.node(platform=Platform(sleep=sleep_hardly))  # moto's uploads began in 2010

    async def is_done() -> bool:
        return await unfinished(remote) == sorted(FOREIGN)

    await until(is_done)


@pytest.mark.parametrize(
    ("date", "aborted"),
    [
        ("Thu, 11 Nov 2010 20:48:32 GMT", 0),
        ("Thu, 11 Nov 2010 20:48:33 GMT", 1),
        ("Thu, 11 Nov 2010 20:48:33 -0000", 0),
        ("yesterday", 0),
        (None, 0),
    ],
    ids=str,
)
async def test_upload_of_the_last_day_may_be_under_way(
    remote: Remote, client: S3Client, date: str | None, aborted: int
) -> None:
    await begin(remote, OURS)
    if date is None:
        await remote.gate.strip_header("Date")
    else:
        await remote.gate.set_header("Date", date)
    assert await client.abort_uploads() == aborted
    assert await unfinished(remote) == [OURS] * (1 - aborted)


async def test_upload_that_another_node_aborted_is_no_fault(remote: Remote, client: S3Client) -> None:
    await begin(remote, OURS)
    await remote.gate.do(s3_error(404, "NoSuchUpload"), match=only("DELETE"))
    assert await client.abort_uploads() == 0


async def test_list_without_an_end_is_read_once(remote: Remote, client: S3Client) -> None:
    listing = (
        b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>same</NextKeyMarker>"
        b"</ListMultipartUploadsResult>"
    )
    await remote.gate.answer(200, {"Content-Type": "application/xml"}, listing, match=only("GET", LISTING))
    assert await client.abort_uploads() == 0
    assert remote.gate.count("GET", LISTING) == 2


async def test_missing_right_is_a_typed_error(remote: Remote, client: S3Client) -> None:
    await remote.gate.do(s3_error(403, "AccessDenied"), match=only("GET", LISTING))
    with pytest.raises(BucketError, match="AccessDenied"):
        await client.abort_uploads()
