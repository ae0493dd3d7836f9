"""`imgkeep check --live` on a bucket: every right is tried, and a missing one is reported with its remedy."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from imgkeep.bootstrap.storage import open_storage
from imgkeep.cli.check import check as print_check
from imgkeep.clock import read_clock
from imgkeep.config import load
from imgkeep.storage.bucket.live_check import check_bucket
from imgkeep.storage.bucket.store import PROBE
from imgkeep.storage.s3.errors import NOT_S3, REMEDIES
from imgkeep.storage.s3.live_checks import NO_CONDITION, NO_LIST, NO_RIGHT
from tests.support.program import environment, run
from tests.support.s3.misbehaving import NO_ETAG, Answer, only, s3_error
from tests.support.s3.remote import make_public

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.s3.gate import Gate
    from tests.support.s3.servers import S3Server

    Check = Callable[..., Awaitable[tuple[int, list[str]]]]

OWN = ["multipart", "copy", "conditional-put", "unfinished-uploads"]
ALL = ["put", "head", "get", "range", "list", *OWN, "presign", "public", "delete"]
PORTAL = Answer(200, {"Content-Type": "text/html"}, b"<html>sign in</html>")
DENIED = ["the bucket answers AccessDenied", f"  remedy: {REMEDIES['AccessDenied']}"]


@pytest.fixture
def server(bucket: Callable[[str], S3Server], request: pytest.FixtureRequest) -> S3Server:
    return bucket(getattr(request, "param", "moto"))


@pytest.fixture
async def gate(server: S3Server, gate_to: Callable[[S3Server], Awaitable[Gate]]) -> Gate:
    return await gate_to(server)


@pytest.fixture
def settings(server: S3Server, gate: Gate, tmp_path: Path) -> dict[str, Any]:
    return {
        "store__url": f"s3://{server.bucket}/pre?endpoint={gate.endpoint}&region=us-east-1",
        "store__fallback": f"file:{tmp_path / 'data'}",
        "store__timeout_s": "3",
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
    }


@pytest.fixture
def check(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Diagnose the bucket as the command does; return its status, and the lines about the bucket."""

    async def run_it(**more: str) -> tuple[int, list[str]]:
        variables = environment(tmp_path / "data", **settings, **more)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, variables[name])
        out = StringIO()
        config = load({}, variables)
        async with open_storage(config, clock=read_clock) as storage:
            remote = storage.remote
            assert remote is not None
            public_path = remote.public_path if config.derive.store else None
            steps = check_bucket(remote.bucket, public_url=remote.public_url, public_path=public_path)
            status = await print_check({}, steps, as_json=False, place=remote.bucket.client.place, out=out)
            return status, lines_about(out.getvalue().splitlines()[1:], remote.bucket.client.place)

    return run_it


def lines_about(lines: list[str], place: str) -> list[str]:
    """Return the lines about a bucket, without its name."""
    assert not any("Signature" in line for line in lines)
    assert lines[0] == f"store: {place}"
    return [line.removesuffix(f" ({place})") for line in lines[1:]]


async def left(server: S3Server) -> list[str]:
    return [name for name in await server.objects() if name != f"pre/{PROBE}"]


async def test_command_reports_every_step(
    settings: dict[str, Any], server: S3Server, gate: Gate, tmp_path: Path
) -> None:
    status, out, err = await run(tmp_path / "data", "check", "--live", **settings)
    assert (status, err) == (0, "")
    valid, fallback, database, *lines = [line for line in out.splitlines() if not line.startswith("derived pictures: ")]
    assert (valid, database) == ("configuration: valid", "database: works")
    assert fallback.startswith("fallback: works, ")
    place = f"bucket {server.bucket} at {urlsplit(gate.endpoint).netloc}"
    assert lines_about(lines, place) == [f"✓ {name}" for name in ALL if name != "public"]


async def test_disk_without_a_fallback_is_called_so(settings: dict[str, Any], tmp_path: Path) -> None:
    alone = settings | {"store__fallback": "", "store__exclusive": "true"}
    status, out, _ = await run(tmp_path / "data", "check", "--live", **alone)
    assert (status, out.splitlines()[1].partition(", ")[0]) == (0, "disk: works")


@pytest.mark.parametrize("server", ["moto", "rclone"], indirect=True)
async def test_working_bucket_passes_every_step_and_stays_empty(check: Check, server: S3Server, gate: Gate) -> None:
    note = "" if server.name == "moto" else f": {NO_CONDITION}"
    told = [f"✓ {name}{note if name == 'conditional-put' else ''}" for name in ALL if name != "public"]
    assert await check() == (0, told)
    assert await left(server) == []
    assert len(images_in(gate)) == 1
    await check()
    assert len(images_in(gate)) == 2, "each run has an image of its own"


def images_in(gate: Gate) -> set[str]:
    """Return the images of all requests so far; objects beside one have its name and a further ending."""
    return {seen.path.partition(".png")[0] for seen in gate.seen if "/v1/objects/" in seen.path}


async def test_missing_right_to_list_uploads_is_told_and_no_failure(check: Check, gate: Gate) -> None:
    await gate.do(s3_error(403, "AccessDenied"), match=lambda method, path: method == "GET" and "uploads" in path)
    status, lines = await check()
    assert (status, lines[8]) == (0, f"✓ unfinished-uploads: {NO_RIGHT}, {NO_LIST}")


async def test_service_that_lists_no_uploads_is_told_with_its_code(check: Check, gate: Gate) -> None:
    await gate.do(s3_error(501, "NotImplemented"), match=lambda method, path: method == "GET" and "uploads" in path)
    status, lines = await check()
    assert (status, lines[8]) == (0, f"✓ unfinished-uploads: the bucket answers NotImplemented, {NO_LIST}")


async def test_page_of_a_portal_is_no_list_of_uploads(check: Check, gate: Gate) -> None:
    await gate.do(PORTAL, match=lambda method, path: method == "GET" and "uploads" in path)
    status, lines = await check()
    assert (status, lines[8]) == (1, f"✗ unfinished-uploads: {NOT_S3}")


async def test_upload_in_parts_without_an_etag_passes(check: Check, gate: Gate, server: S3Server) -> None:
    await gate.do(NO_ETAG, match=only("POST", "uploadId="))
    status, lines = await check()
    assert (status, lines[5]) == (0, "✓ multipart")
    assert gate.count("HEAD", ".parts") == 1
    assert await left(server) == []


async def test_upload_in_parts_that_is_not_there_is_reported(check: Check, gate: Gate) -> None:
    await gate.answer(200, {}, b"<CompleteMultipartUploadResult/>", match=only("POST", "uploadId="))
    status, lines = await check()
    assert (status, lines[5]) == (1, "✗ multipart: the bucket does not have what it said it took")


@pytest.mark.parametrize("server", ["s3rver"], indirect=True)
async def test_missing_abort_of_uploads_is_reported(check: Check, server: S3Server) -> None:
    status, lines = await check()
    assert status == 1
    assert [line for line in lines if not line.startswith("✓")] == [
        "✗ multipart: the bucket answers MethodNotAllowed",
        f"  remedy: {REMEDIES['MethodNotAllowed']}",
    ]
    assert await left(server) == []


@pytest.mark.parametrize("how", [{"delivery__mode": "redirect"}, {"delivery__base_url": "{gate}/{bucket}"}])
async def test_public_bucket_is_read_without_credentials(
    check: Check, server: S3Server, gate: Gate, how: dict[str, str]
) -> None:
    await make_public(server)
    delivery = {name: text.format(gate=gate.endpoint, bucket=server.bucket) for name, text in how.items()}
    assert await check(**delivery) == (0, [f"✓ {name}" for name in ALL])
    plain = [seen for seen in gate.seen if "?" not in seen.path and "authorization" not in seen.headers]
    assert [seen.method for seen in plain] == ["GET"]


async def test_private_bucket_is_reported_in_redirect_mode(check: Check, server: S3Server) -> None:
    status, lines = await check(delivery__mode="redirect")
    assert status == 1
    assert lines == [
        *(f"✓ {name}" for name in ALL[:-2]),
        "✗ public: a plain GET got status 403",
        "  remedy: make v1/objects/ public: docs/s3.md, or use delivery.mode presign",
        "✓ delete",
    ]
    assert await left(server) == []


async def test_pictures_that_are_not_public_are_reported(check: Check, server: S3Server, gate: Gate) -> None:
    """The policy of an earlier version makes objects public alone."""
    await make_public(server)
    settings = {"delivery__mode": "redirect", "derive__store": "true"}
    assert (await check(**settings))[0] == 0
    await gate.do(s3_error(403, "AccessDenied"), match=lambda method, path: method == "GET" and "/derived/" in path)
    status, lines = await check(**settings)
    assert status == 1
    assert lines[-4:] == [
        "✓ public",
        "✗ public pictures: a plain GET got status 403",
        "  remedy: make v1/derived/ public: docs/s3.md, or use delivery.mode presign",
        "✓ delete",
    ]
    assert await left(server) == []


async def test_failed_put_skips_only_steps_that_need_it(check: Check, gate: Gate) -> None:
    await gate.do(s3_error(403, "AccessDenied"), match=only("PUT"))
    status, lines = await check(delivery__mode="redirect")
    untried = "not tried, because put failed"
    assert status == 1
    assert lines == [
        f"✗ put: {DENIED[0]}",
        DENIED[1],
        *(f"✗ {name}: {untried}" for name in ("head", "get", "range")),
        "✓ list",
        *(line for name in ("multipart", "copy", "conditional-put") for line in (f"✗ {name}: {DENIED[0]}", DENIED[1])),
        "✓ unfinished-uploads",
        *(f"✗ {name}: {untried}" for name in ("presign", "public")),
        "✓ delete",
    ]
    assert gate.count("DELETE", "uploadId=") == 1, "the upload was aborted"


async def test_missing_right_to_delete_is_reported(check: Check, gate: Gate) -> None:
    await gate.do(s3_error(403, "AccessDenied"), match=only("DELETE"))
    status, lines = await check()
    assert status == 1
    assert lines == [
        *(f"✓ {name}" for name in ("put", "head", "get", "range", "list")),
        *(line for name in ("multipart", "copy", "conditional-put") for line in (f"✗ {name}: {DENIED[0]}", DENIED[1])),
        "✓ unfinished-uploads",
        "✓ presign",
        f"✗ delete: {DENIED[0]}",
        DENIED[1],
    ]


async def test_broken_presigned_link_is_reported_without_the_link(check: Check, gate: Gate) -> None:
    await gate.corrupt(50, match=only("GET", "X-Amz-Signature"))
    status, lines = await check()
    assert status == 1
    assert lines[9] == "✗ presign: a plain GET returned other bytes than were put"
    assert lines[10].startswith("  remedy: set the clock")
    assert lines[11] == "✓ delete"
