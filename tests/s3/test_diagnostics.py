"""`imgkeep check --live` on a bucket: every right is tried, and what is missing is told with its remedy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from imgkeep.storage.s3.errors import REMEDIES
from imgkeep.storage.s3.records import PROBE

from tests.support.program import run
from tests.support.s3.misbehaving import only, s3_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.s3.gate import Gate
    from tests.support.s3.servers import S3Server

    Check = Callable[..., Awaitable[tuple[int, list[str], str]]]

ALL = ["put", "head", "get", "range", "list", "multipart", "presign", "public", "delete"]
DENIED = ["the bucket answers AccessDenied", f"  remedy: {REMEDIES['AccessDenied']}"]


@pytest.fixture
def server(bucket: Callable[[str], S3Server], request: pytest.FixtureRequest) -> S3Server:
    return bucket(getattr(request, "param", "moto"))


@pytest.fixture
async def gate(server: S3Server, gate_to: Callable[[S3Server], Awaitable[Gate]]) -> Gate:
    return await gate_to(server)


@pytest.fixture
def check(server: S3Server, gate: Gate, tmp_path: Path) -> Check:
    """Run the command; return its status, the lines about the bucket, and standard error."""

    async def run_it(**settings: Any) -> tuple[int, list[str], str]:
        status, out, err = await run(
            tmp_path / "data",
            "check",
            "--live",
            store__url=f"s3://{server.bucket}/pre?endpoint={gate.endpoint}&region=us-east-1",
            store__fallback=f"file:{tmp_path / 'data'}",
            store__timeout_s="3",
            AWS_ACCESS_KEY_ID=server.key,
            AWS_SECRET_ACCESS_KEY=server.secret,
            **settings,
        )
        assert "Signature" not in out + err
        valid, fallback, database, store, *lines = out.splitlines()
        place = f"bucket {server.bucket} at {urlsplit(gate.endpoint).netloc}"
        assert store == f"store: {place}"
        lines = [line.removesuffix(f" ({place})") for line in lines]
        assert (valid, database) == ("configuration: valid", "database: works")
        assert fallback.startswith("fallback: works, ")
        return status, lines, err

    return run_it


async def make_public(server: S3Server) -> None:
    right = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{server.bucket}/*",
    }
    async with server.client() as client:
        policy = json.dumps({"Version": "2012-10-17", "Statement": [right]})
        await client.put_bucket_policy(Bucket=server.bucket, Policy=policy)


async def left(server: S3Server) -> list[str]:
    return [name for name in await server.objects() if name != f"pre/{PROBE}"]


@pytest.mark.parametrize("server", ["moto", "rclone"], indirect=True)
async def test_a_bucket_that_works_gets_all_ticks_and_nothing_stays_in_it(
    check: Check, server: S3Server, gate: Gate
) -> None:
    assert await check() == (0, [f"✓ {name}" for name in ALL if name != "public"], "")
    assert await left(server) == []
    places = {seen.path.partition("?")[0] for seen in gate.seen if "/v1/objects/" in seen.path}
    assert len(places) == 1
    await check()
    assert len({seen.path.partition("?")[0] for seen in gate.seen if "/v1/objects/" in seen.path}) == 2, "a new one"


@pytest.mark.parametrize("server", ["s3rver"], indirect=True)
async def test_a_service_that_cannot_break_uploads_off_is_told_of(check: Check, server: S3Server) -> None:
    status, lines, _ = await check()
    assert status == 1
    assert [line for line in lines if not line.startswith("✓")] == [
        "✗ multipart: the bucket answers MethodNotAllowed",
        f"  remedy: {REMEDIES['MethodNotAllowed']}",
    ]
    assert await left(server) == []


@pytest.mark.parametrize("how", [{"delivery__mode": "redirect"}, {"delivery__base_url": "{gate}/{bucket}"}])
async def test_a_public_bucket_is_tried_as_the_public_sees_it(
    check: Check, server: S3Server, gate: Gate, how: dict[str, str]
) -> None:
    await make_public(server)
    settings = {name: text.format(gate=gate.endpoint, bucket=server.bucket) for name, text in how.items()}
    assert await check(**settings) == (0, [f"✓ {name}" for name in ALL], "")
    plain = [seen for seen in gate.seen if "?" not in seen.path and "authorization" not in seen.headers]
    assert [seen.method for seen in plain] == ["GET"]


async def test_a_bucket_that_is_not_public_is_told(check: Check, server: S3Server) -> None:
    status, lines, _ = await check(delivery__mode="redirect")
    assert status == 1
    assert lines == [
        *(f"✓ {name}" for name in ALL[:-2]),
        "✗ public: a plain GET got status 403",
        "  remedy: make v1/objects/ public: docs/s3.md, or use delivery.mode presign",
        "✓ delete",
    ]
    assert await left(server) == []


async def test_without_the_right_to_put_the_rest_is_tried_as_far_as_possible(check: Check, gate: Gate) -> None:
    await gate.do(s3_error(403, "AccessDenied"), match=only("PUT"))
    status, lines, _ = await check(delivery__mode="redirect")
    untried = "not tried, because put failed"
    assert status == 1
    assert lines == [
        f"✗ put: {DENIED[0]}",
        DENIED[1],
        *(f"✗ {name}: {untried}" for name in ("head", "get", "range")),
        "✓ list",
        f"✗ multipart: {DENIED[0]}",
        DENIED[1],
        *(f"✗ {name}: {untried}" for name in ("presign", "public")),
        "✓ delete",
    ]
    assert gate.count("DELETE", "uploadId=") == 1, "the upload was broken off"


async def test_without_the_right_to_delete_that_is_told(check: Check, gate: Gate) -> None:
    await gate.do(s3_error(403, "AccessDenied"), match=only("DELETE"))
    status, lines, _ = await check()
    assert status == 1
    assert lines == [
        *(f"✓ {name}" for name in ("put", "head", "get", "range", "list")),
        f"✗ multipart: {DENIED[0]}",
        DENIED[1],
        "✓ presign",
        f"✗ delete: {DENIED[0]}",
        DENIED[1],
    ]


async def test_a_presigned_link_that_does_not_work_is_told_without_the_link(check: Check, gate: Gate) -> None:
    await gate.corrupt(50, match=only("GET", "X-Amz-Signature"))
    status, lines, _ = await check()
    assert status == 1
    assert lines[6] == "✗ presign: a plain GET returned other bytes than were put"
    assert lines[7].startswith("  remedy: set the clock")
    assert lines[8] == "✓ delete"
