"""
Try servers of stores: `imgkeep check --live`, the contract suite, and the commands of docs/s3.md. Print a row for each.

    python -m bench.stores versitygw seaweedfs        any of NAMES, each if it is installed
    python -m bench.stores --no-suite ceph            without the contract suite

The table in docs/s3.md is made of the rows. `scripts/install-test-programs` installs all but Ceph, Garage and MinIO.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import md5
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.azure.azurite import azurite_in
from tests.support.gcs.fake_gcs_server import fake_gcs_server_in
from tests.support.installed import find
from tests.support.program import ROOT, run
from tests.support.s3.programs import KINDS
from tests.support.s3.servers import S3Servers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from tests.support.s3.servers import S3Server

NAMES: Final = (*KINDS, "azurite", "fake-gcs-server")
FAILED: Final = (ClientError, BotoCoreError, TimeoutError, AssertionError)
OF_THIS_MACHINE: Final = frozenset({"configuration", "fallback", "database", "store"})
"""Parts of `imgkeep check --live` that are not about the bucket."""
PART_BYTES: Final = 5 * 1024 * 1024
OBJECT, RECORD = "v1/objects/ab/object.png", "v1/records/ab/record.json"


@dataclass
class Row:
    """
    What one server did.

    Attributes:
        failed: Steps of `imgkeep check --live` that failed, with their errors.
        habits: By the name of a habit: what was seen.
        commands: By a command of docs/s3.md: `works`, or what the server said.
    """

    name: str
    version: str
    started_s: float
    steps: int = 0
    failed: list[str] = field(default_factory=list)
    contract: str = "not run"
    habits: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        checked = f"{self.steps} steps" if not self.failed else "; ".join(self.failed)
        seen = [f"{name}: {what}" for name, what in {**self.habits, **self.commands}.items()]
        return " | ".join(
            ("", self.name, self.version, f"{self.started_s:.1f} s", checked, self.contract, "; ".join(seen), "")
        ).strip(" ")


# --- servers


def version_of(name: str) -> str:
    """Return the version of a server, as it or its package tells."""
    if name == "moto":
        return version("moto")
    program = {"seaweedfs": "weed", "azurite": "azurite-blob", "ceph": "radosgw"}.get(name, name)
    found = find(program)
    assert found is not None, f"{program} is not installed"
    if name == "s3rver":
        return str(json.loads((Path(found).resolve().parents[1] / "package.json").read_text())["version"])
    told = _told("go", "version", "-m", found) if name in {"fake-gcs-server", "versitygw", "minio"} else ""
    if match := re.search(r"^\s+mod\s+\S+\s+v(\S+)", told, re.MULTILINE):
        return match[1]
    flag = {"rclone": "version", "seaweedfs": "version"}.get(name, "--version")
    match = re.search(r"\d+(\.\d+)+", _told(found, flag))
    return match[0] if match else "unknown"


def _told(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@contextmanager
def store_on(name: str, folder: Path) -> Iterator[tuple[Mapping[str, str], S3Server | None]]:
    """Start a server; give the settings of imgkeep for a new bucket on it, and the bucket if it is one of S3."""
    if name == "azurite":
        azurite = azurite_in(folder)
        azurite.start()
        try:
            made = azurite.with_container()
            text = made.connection_string
            yield {"store__url": f"az://{made.container}", "AZURE_STORAGE_CONNECTION_STRING": text}, None
        finally:
            azurite.stop()
        return
    if name == "fake-gcs-server":
        server = fake_gcs_server_in(folder)
        server.start()
        try:
            yield {"store__url": f"gs://{server.with_bucket().bucket}", "STORAGE_EMULATOR_HOST": server.endpoint}, None
        finally:
            server.stop()
        return
    servers = S3Servers(folder)
    try:
        bucket = servers.with_bucket(name)
        yield (
            {
                "store__url": f"s3://{bucket.bucket}?region=us-east-1&endpoint={bucket.endpoint}",
                "AWS_ACCESS_KEY_ID": bucket.key,
                "AWS_SECRET_ACCESS_KEY": bucket.secret,
            },
            bucket,
        )
    finally:
        servers.stop()


# --- what is tried


async def check_live(row: Row, folder: Path, settings: Mapping[str, str]) -> None:
    """Run `imgkeep check --live` with the store's settings."""
    fallback = folder / "data"
    fallback.mkdir()
    _, out, err = await run(
        fallback, "check", "--live", "--json", stdin=b"", store__fallback=f"file:{fallback}", **settings
    )
    reports = [report for report in map(json.loads, out.splitlines()) if report["part"] not in OF_THIS_MACHINE]
    row.steps = len(reports)
    row.failed = [f"{report['part']}: {report['error']}" for report in reports if not report["works"]]
    if not reports:
        row.failed = [err.strip().splitlines()[-1] if err.strip() else "no answer"]


async def try_habits(row: Row, bucket: S3Server) -> None:
    """See what the server does that others do not."""
    body = b"an image"
    put = await bucket.put(OBJECT, body)
    await bucket.put(RECORD, body)
    row.habits["tag of a PUT"] = _tag(put.get("ETag"), body)
    row.habits["conditional PUT"] = await _outcome(
        lambda: bucket.put(OBJECT, b"other", IfNoneMatch="*"), works="ignored"
    )
    row.habits["tag of a multipart upload"] = await _outcome(lambda: _multipart(bucket))
    wrong = replace(bucket, secret="wrong")
    row.habits["wrong secret"] = await _outcome(lambda: wrong.put("a", b"b"), works="accepted")
    row.habits["GET without signature"] = f"{await _plain_get(bucket, OBJECT)}"


async def _multipart(bucket: S3Server) -> str:
    async with bucket.client() as client:
        where = {"Bucket": bucket.bucket, "Key": "parts"}
        upload = {**where, "UploadId": (await client.create_multipart_upload(**where))["UploadId"]}
        parts = []
        for number, body in enumerate((bytes(PART_BYTES), b"end"), 1):
            answer = await client.upload_part(**upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        done = await client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        left = await client.create_multipart_upload(**where)
        listed = await client.list_multipart_uploads(Bucket=bucket.bucket)
        await client.abort_multipart_upload(**where, UploadId=left["UploadId"])
    tag = str(done.get("ETag", "")).strip('"')
    return (tag and "as on AWS" if tag.endswith("-2") else tag or "empty") + (
        "" if listed.get("Uploads") else ", unlisted"
    )


async def try_commands(row: Row, bucket: S3Server) -> None:
    """Carry out what docs/s3.md tells an operator to do."""
    blocks = re.findall(r"^```json\n(.+?)^```", (ROOT / "docs" / "s3.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    policy, lifecycle, public, cors, _ = (text.replace("my-images", bucket.bucket) for text in blocks)
    block = {"BlockPublicAcls": True, "IgnorePublicAcls": True}
    block |= {"BlockPublicPolicy": False, "RestrictPublicBuckets": False}
    async with bucket.client() as client:
        calls = {
            "put-bucket-lifecycle-configuration": lambda: client.put_bucket_lifecycle_configuration(
                Bucket=bucket.bucket, LifecycleConfiguration=json.loads(lifecycle)
            ),
            "put-public-access-block": lambda: client.put_public_access_block(
                Bucket=bucket.bucket, PublicAccessBlockConfiguration=block
            ),
            "put-bucket-policy": lambda: client.put_bucket_policy(Bucket=bucket.bucket, Policy=public),
            "put-bucket-cors": lambda: client.put_bucket_cors(Bucket=bucket.bucket, CORSConfiguration=json.loads(cors)),
        }
        for name, call in calls.items():
            row.commands[name] = await _outcome(call, works="works")
    row.commands["put-user-policy"] = await _outcome(lambda: _make_user(bucket, policy), works="works")
    statuses = [await _plain_get(bucket, name) for name in (OBJECT, RECORD)]
    row.commands["public afterwards"] = "objects {}, records {}".format(*statuses)


async def _make_user(bucket: S3Server, policy: str) -> None:
    async with bucket.client("iam") as client:
        await client.create_user(UserName="imgkeep")
        await client.put_user_policy(UserName="imgkeep", PolicyName="imgkeep", PolicyDocument=policy)


async def _plain_get(bucket: S3Server, name: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{bucket.endpoint}/{bucket.bucket}/{name}") as answer:
        return answer.status


async def _outcome(call: Callable[[], Awaitable[Any]], *, works: str = "") -> str:
    try:
        result = await call()
    except ClientError as error:
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", HTTPStatus.OK)
        return f"refused ({status} {error.response.get('Error', {}).get('Code', 'without a code')})"
    except FAILED as error:
        return f"failed ({type(error).__name__})"
    return works or str(result)


def _tag(etag: str | None, body: bytes) -> str:
    if not etag:
        return "none"
    return "MD5" if etag.strip('"') == md5(body, usedforsecurity=False).hexdigest() else "not MD5"


def run_contract(name: str) -> str:
    """Run the contract suite on a server; return what pytest counted."""
    variables = os.environ | {"IMGKEEP_TEST_SERVERS": name if name in KINDS else "moto"}  # noqa: TID251
    suite = ("-n0", "-rfE", "tests/storage/test_contract.py", "-k", name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *suite], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout.strip().rpartition("\n")[2])
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", done.stdout, re.MULTILINE)
    return ", ".join([*(f"{number} {kind}" for number, kind in counts), *failed]) or "did not run"


async def measure(name: str, *, with_suite: bool) -> Row:
    """Return the row of a server."""
    with tempfile.TemporaryDirectory(prefix="imgkeep-stores-") as folder:
        start = time.monotonic()
        with store_on(name, Path(folder)) as (settings, bucket):
            row = Row(name, version_of(name), time.monotonic() - start)
            await check_live(row, Path(folder), settings)
            if bucket is not None:
                await try_habits(row, bucket)
                await try_commands(row, bucket)
        if with_suite:
            row.contract = run_contract(name)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stores", description="Try servers of stores.")
    parser.add_argument("name", nargs="+", choices=NAMES)
    parser.add_argument("--no-suite", action="store_true", help="leave the contract suite out")
    arguments = parser.parse_args()
    status = 0
    for name in arguments.name:
        try:
            row = asyncio.run(measure(name, with_suite=not arguments.no_suite))
        except (pytest.skip.Exception, pytest.fail.Exception) as missing:
            print(f"{name}: {missing}", file=sys.stderr)
            status = 1
            continue
        print(row, flush=True)
        status |= bool(row.failed or "failed" in row.contract or "error" in row.contract)
    return status


if __name__ == "__main__":
    sys.exit(main())
