"""
Real S3 servers on loopback, each a process that can be stopped, frozen, and started again on the same port.

`tests/support/s3/programs.py` has their names and habits.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

import botocore.session
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.loopback import HOST, port_of, reserve
from tests.support.s3.process import ServerProcess
from tests.support.s3.programs import BUCKET, KINDS
from tests.support.waiting import block_until, until

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator
    from pathlib import Path

START_TIMEOUT_S = 60
"""Timeout on a machine that is busy with other tests."""
CLIENT_TIMEOUT_S = 30
REGION = "us-east-1"

_NO_CREDENTIALS_LOOKUP = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}
"""Variables of a botocore session (`botocore.configprovider`): nothing of this machine changes what tests see."""

_PLAIN: dict[str, Any] = {
    "s3": {"addressing_style": "path"},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "retries": {"total_max_attempts": 1},
    "connect_timeout": CLIENT_TIMEOUT_S,
    "read_timeout": CLIENT_TIMEOUT_S,
    "proxies": {},
}


@dataclass(frozen=True)
class S3Server:
    """
    One bucket of a server, the means to use it, and to look at its objects past imgkeep.

    Attributes:
        process: The server; other buckets may be on it as well.
        endpoint: Where requests go: to the server itself, or to what stands before it.
    """

    name: str
    endpoint: str
    key: str
    secret: str
    bucket: str
    process: ServerProcess

    @property
    def port(self) -> int:
        """The server's own port, whatever stands before it."""
        return port_of(self.process.holder)

    def through(self, endpoint: str) -> S3Server:
        """Return the same bucket as seen through another endpoint."""
        return replace(self, endpoint=endpoint)

    # --- the process

    def start(self) -> None:
        """Start the server and wait until it has the bucket. It blocks; where a loop has other work, `restart`."""
        self.process.launch()
        block_until(self._is_ready, within_s=START_TIMEOUT_S)
        self.make_bucket()

    async def restart(self) -> None:
        """Start the server, again, and wait until it has the bucket."""
        self.process.stop()
        self.process.launch()
        await until(self._is_ready, within_s=START_TIMEOUT_S)
        self.make_bucket()

    def stop(self) -> None:
        self.process.stop()

    def freeze(self) -> None:
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()

    def make_bucket(self) -> None:
        """Make the bucket if there is none."""
        client = _blocking_client(self.endpoint, self.key, self.secret)
        try:
            client.create_bucket(Bucket=self.bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                raise

    def _is_ready(self) -> bool:
        if not self.process.ready or not KINDS[self.name].settles:
            return self.process.ready
        # An object from before the start, where there is one, can be read last.
        client = _blocking_client(f"http://{HOST}:{self.port}", self.key, self.secret)
        where = {"Bucket": "settled", "Key": "object"}
        try:
            try:
                client.get_object(**where)["Body"].read()
            except (client.exceptions.NoSuchBucket, client.exceptions.NoSuchKey):
                client.create_bucket(Bucket=where["Bucket"])
                client.put_object(**where, Body=b"body")
        except (ClientError, BotoCoreError):
            return False
        return True

    # --- the objects

    @asynccontextmanager
    async def client(self, service: str = "s3") -> AsyncGenerator[Any]:
        """
        Give a client with the simplest settings: path-style, no checksums beyond those required, no retries.

        It is given some time only. The client's own `read_timeout` does not begin before a server that was asked to
        (`Expect: 100-continue`) has told it to go on.
        """
        config = AioConfig(**_PLAIN)
        async with (
            asyncio.timeout(CLIENT_TIMEOUT_S),
            _session().create_client(service, **self._access(), config=config) as client,
        ):
            yield client

    async def put(self, key: str, body: bytes, **how: Any) -> dict[str, Any]:
        """
        Put an object, with parameters of `PutObject`; return what the server answered.

        Raises:
            ClientError: The server refused.
        """
        async with self.client() as client:
            answer: dict[str, Any] = await client.put_object(Bucket=self.bucket, Key=key, Body=body, **how)
            return answer

    async def get(self, key: str, **how: Any) -> bytes | None:
        """Return the bytes of an object, `None` where there is none."""
        async with self.client() as client:
            return await self._read(client, key, **how)

    async def head(self, key: str, **how: Any) -> dict[str, Any] | None:
        """Return the answer to `HeadObject`, `None` where there is no object."""
        async with self.client() as client:
            try:
                answer: dict[str, Any] = await client.head_object(Bucket=self.bucket, Key=key, **how)
            except ClientError as error:
                if not _is_miss(error):
                    raise
                return None
            return answer

    async def delete(self, key: str) -> None:
        async with self.client() as client:
            await client.delete_object(Bucket=self.bucket, Key=key)

    async def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return everything in the bucket whose name begins with `prefix`, in the order in which it is listed."""
        found: dict[str, bytes] = {}
        async with self.client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            async for page in pages:
                for item in page.get("Contents", ()):
                    body = await self._read(client, item["Key"])
                    assert body is not None, f"{item['Key']} is listed and not there"
                    found[item["Key"]] = body
        return found

    async def _read(self, client: Any, key: str, **how: Any) -> bytes | None:
        try:
            answer = await client.get_object(Bucket=self.bucket, Key=key, **how)
        except ClientError as error:
            if not _is_miss(error):
                raise
            return None
        async with answer["Body"] as stream:
            body: bytes = await stream.read()
        return body

    def _access(self) -> dict[str, Any]:
        return _access(self.endpoint, self.key, self.secret)


def _access(endpoint: str, key: str, secret: str) -> dict[str, Any]:
    return {
        "region_name": REGION,
        "endpoint_url": endpoint,
        "verify": False,  # reading all certificates takes longer than most requests
        "aws_access_key_id": key,
        "aws_secret_access_key": secret,
    }


def _is_miss(error: Any) -> bool:
    return error.response["Error"]["Code"] in {"NoSuchKey", "404"}


@cache
def _session() -> Any:
    """Return a session that reads the model of S3 once only."""
    return AioSession(_NO_CREDENTIALS_LOOKUP)


@cache
def _blocking_client(endpoint: str, key: str, secret: str) -> Any:
    """Return a client for buckets: making one takes longer than making a bucket."""
    session = botocore.session.Session(_NO_CREDENTIALS_LOOKUP)
    return session.create_client("s3", **_access(endpoint, key, secret), config=Config(**_PLAIN))


_CHOSEN = os.environ.get("IMGKEEP_TEST_SERVERS")  # noqa: TID251 - tests read what they run in
NAMES = tuple(_CHOSEN.split(",")) if _CHOSEN else tuple(name for name, kind in KINDS.items() if kind.is_in_ci)
"""The servers that the suite runs on; `python -m bench.stores` chooses others."""


@dataclass
class S3Servers:
    """The servers by name. Each starts when it is first asked for, and again if a test left it stopped or frozen."""

    folder: Path
    _made: dict[str, S3Server] = field(default_factory=dict)
    _holders: list[socket.socket] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def __getitem__(self, name: str) -> S3Server:
        if name not in self._made:
            self._made[name] = self._make(name)
        server = self._made[name]
        if server.process.running:
            server.thaw()
        else:
            server.start()
        return server

    def with_bucket(self, name: str) -> S3Server:
        """Return an empty bucket on a server."""
        server = replace(self[name], bucket=f"test-{next(self._numbers)}")
        server.make_bucket()
        return server

    def stop(self) -> None:
        """End all servers for good."""
        for server in self._made.values():
            server.stop()
        for holder in self._holders:
            holder.close()

    def _make(self, name: str) -> S3Server:
        kind = KINDS[name]
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        holders = [reserve() for _ in range(kind.ports)]
        self._holders += holders
        command = kind.command([port_of(holder) for holder in holders], folder)
        process = ServerProcess(command, folder, holders[0])
        endpoint = f"http://{HOST}:{port_of(holders[0])}"
        return S3Server(name, endpoint, kind.key, kind.secret, BUCKET, process)
