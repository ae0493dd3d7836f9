"""imgkeep on a bucket, with a gate between the two."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.replication import make_record_settler
from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.layout import BLOCKS_CHANGED
from imgkeep.storage.bucket.unsettled_records import SETTLE_AFTER_S
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aiohttp import ClientResponse

    from imgkeep.replication.public_access import PublicAccess
    from tests.support.s3.gate import Gate
    from tests.support.s3.servers import S3Server
    from tests.support.server import Imgkeep

PATIENT_S = 10
"""Timeout for a healthy server on a machine that is busy with other tests."""
SERVERS = ["moto", "rclone", "s3rver"]
ALL = pytest.mark.parametrize("remote", SERVERS, indirect=True)
MULTIPART_SIZE = 20_000_000
"""Size of an image that goes into a bucket in parts."""
HURRIED = {"timeout_s": 1.5}
"""Settings of the store for tests in which the bucket does not answer."""


async def sleep_briefly(seconds: float) -> None:
    """Sleep a tenth of the time: background tasks retry ten times as often."""
    await asyncio.sleep(seconds / 10)


@dataclass
class Remote:
    """A fresh bucket behind a gate, and means to start imgkeep on it, as many nodes as wanted."""

    server: S3Server
    gate: Gate
    _start: Callable[..., Awaitable[Imgkeep]]
    _folder: Path

    async def node(
        self, name: str = "a", *, mode: str = "serve", waits_for_probe: bool = True, **sections: Any
    ) -> Imgkeep:
        """Start a node, and wait until it has tried the public URLs of its bucket, where it has any."""
        store = {
            "url": f"s3://{self.server.bucket}/pre?endpoint={self.gate.endpoint}&region=us-east-1",
            "fallback": f"file:{self._folder / name}",
            "timeout_s": PATIENT_S,
            **sections.pop("store", {}),
        }
        sections.setdefault("platform", Platform(sleep=sleep_briefly))
        delivery = {"mode": mode, **sections.pop("delivery", {})}
        node = await self._start(folder=self._folder / name, store=store, delivery=delivery, **sections)
        if waits_for_probe and (access := public_access_of(node)) is not None:
            await until(lambda: access.works is not None)
        return node

    async def make_public(self) -> None:
        """Let all clients read the objects of the bucket."""
        await make_public(self.server)

    async def stored(self, kind: str) -> dict[str, bytes]:
        """Return the files under `objects`, `records` or `refused` in the bucket, without the marker of the blocks."""
        found = await self.server.objects(f"pre/v1/{kind}/")
        return {path: data for path, data in found.items() if path != f"pre/{BLOCKS_CHANGED}"}


@pytest.fixture
async def remote(  # noqa: PLR0917 - a fixture is an argument
    request: pytest.FixtureRequest,
    bucket: Callable[[str], S3Server],
    gate_to: Callable[[S3Server], Awaitable[Gate]],
    start: Callable[..., Awaitable[Imgkeep]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Remote:
    """On moto, or the server that the test is parametrized with."""
    server = bucket(getattr(request, "param", "moto"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    return Remote(server, await gate_to(server), start, tmp_path)


async def make_public(server: S3Server) -> None:
    """Let all clients read the objects of a bucket."""
    right = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{server.bucket}/*",
    }
    async with server.client() as client:
        policy = json.dumps({"Version": "2012-10-17", "Statement": [right]})
        await client.put_bucket_policy(Bucket=server.bucket, Policy=policy)


def public_access_of(node: Imgkeep) -> PublicAccess | None:
    """Return the node's finding about the public URLs of its bucket, where it has any."""
    assert node.client.app is not None
    remote = node.client.app[SERVICES].storage.remote
    return None if remote is None else remote.public_access


async def get(imgkeep: Imgkeep, url: str, **how: Any) -> tuple[ClientResponse, bytes]:
    response = await imgkeep.img(url, allow_redirects=False, **how)
    return response, await response.read()


async def readyz(imgkeep: Imgkeep) -> dict[str, Any]:
    response = await imgkeep.client.get("/readyz")
    found: dict[str, Any] = await response.json()
    return found


async def settle(imgkeep: Imgkeep) -> None:
    """Have a node read again what another node may have overwritten, as it does half a minute later."""
    assert imgkeep.client.app is not None
    settler = make_record_settler(imgkeep.client.app[SERVICES])
    assert settler is not None
    await settler.settle_due(asyncio.get_running_loop().time() + SETTLE_AFTER_S)


async def replicated(imgkeep: Imgkeep) -> None:
    """Wait until the bucket is used again and the outbox is empty."""

    async def done() -> bool:
        report = await readyz(imgkeep)
        return report["status"] == "ready" and not imgkeep.files("records")

    await until(done)


def only_aws(server: S3Server, endpoint: str) -> dict[str, Any]:
    """Return settings that name the bucket as any AWS program would be told."""
    return {
        "store__url": "",
        "store__timeout_s": "10",
        "AWS_S3_BUCKET_NAME": server.bucket,
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
    }
