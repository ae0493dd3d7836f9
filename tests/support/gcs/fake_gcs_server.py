"""
fake-gcs-server: Google Cloud Storage on loopback, with buckets that tests can look into past imgkeep.

Its habits:
- It checks no credentials and no signatures: what it accepts proves nothing about either.
- It keeps objects in memory and loses them at a stop; a freeze loses nothing.
- The address of a resumable upload leads to the server itself, past what stands before it.
"""

from __future__ import annotations

import json
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from tests.support.installed import require
from tests.support.loopback import HOST, port_of, reserve
from tests.support.s3.process import ServerProcess
from tests.support.waiting import block_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

START_TIMEOUT_S = 30
"""Timeout on a machine that is busy with other tests."""
CLIENT_TIMEOUT_S = 30

_NUMBERS = count(1)


@dataclass(frozen=True)
class FakeGcsServer:
    """
    One bucket of fake-gcs-server, the means to use it, and to look at its objects past imgkeep.

    Attributes:
        process: The server; other buckets are on it as well.
        endpoint: Where requests go (`STORAGE_EMULATOR_HOST`): to the server itself, or to what stands before it.
    """

    process: ServerProcess
    endpoint: str
    bucket: str = ""

    @property
    def port(self) -> int:
        """The server's own port, whatever stands before it."""
        return port_of(self.process.holder)

    def through(self, endpoint: str) -> FakeGcsServer:
        """Return the same bucket as seen through another endpoint."""
        return replace(self, endpoint=endpoint)

    def with_bucket(self) -> FakeGcsServer:
        """Return a new bucket on the server. It blocks."""
        made = replace(self, bucket=f"test-{next(_NUMBERS)}")
        request = urllib.request.Request(
            f"{self.endpoint}/storage/v1/b?project=tests",
            json.dumps({"name": made.bucket}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=CLIENT_TIMEOUT_S):
            return made

    # --- the process

    def start(self) -> None:
        """Start the server and wait until it listens. It blocks."""
        self.process.launch()
        block_until(lambda: self.process.ready, within_s=START_TIMEOUT_S)

    def stop(self) -> None:
        self.process.stop()

    def freeze(self) -> None:
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()

    # --- the objects

    async def put(self, name: str, body: bytes, content_type: str = "application/octet-stream") -> None:
        """Put an object."""
        path = f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={quote(name, safe='')}"
        async with self._asking("POST", path, data=body, headers={"Content-Type": content_type}) as answer:
            answer.raise_for_status()

    async def get(self, name: str) -> bytes | None:
        """Return the bytes of an object, `None` where there is none."""
        async with self._asking("GET", f"{self._path(name)}?alt=media") as answer:
            return await answer.read() if _is_there(answer) else None

    async def head(self, name: str) -> dict[str, Any] | None:
        """Return the metadata of an object, `None` where there is none."""
        async with self._asking("GET", self._path(name)) as answer:
            return await answer.json() if _is_there(answer) else None

    async def delete(self, name: str) -> None:
        async with self._asking("DELETE", self._path(name)) as answer:
            answer.raise_for_status()

    async def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return everything in the bucket whose name begins with `prefix`."""
        async with self._asking("GET", f"/storage/v1/b/{self.bucket}/o?prefix={quote(prefix, safe='')}") as answer:
            answer.raise_for_status()
            names = [item["name"] for item in (await answer.json()).get("items", ())]
        found: dict[str, bytes] = {}
        for name in names:
            body = await self.get(name)
            assert body is not None, f"{name} is listed and not there"
            found[name] = body
        return found

    def _path(self, name: str) -> str:
        return f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}"

    @asynccontextmanager
    async def _asking(self, method: str, path: str, **how: Any) -> AsyncGenerator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=CLIENT_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, URL(self.endpoint + path, encoded=True), **how) as answer,
        ):
            yield answer


def _is_there(answer: aiohttp.ClientResponse) -> bool:
    if answer.status == HTTPStatus.NOT_FOUND:
        return False
    answer.raise_for_status()
    return True


def fake_gcs_server_in(folder: Path) -> FakeGcsServer:
    """Return a server that is not started."""
    program = require("fake-gcs-server")
    holder = reserve()
    port = port_of(holder)
    command = [
        *(program, "-backend", "memory", "-scheme", "http", "-host", HOST, "-port", str(port)),
        *("-public-host", HOST, "-external-url", f"http://{HOST}:{port}", "-log-level", "warn"),
    ]
    return FakeGcsServer(ServerProcess(command, folder, holder), f"http://{HOST}:{port}")
