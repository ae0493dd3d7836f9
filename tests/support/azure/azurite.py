"""
Azurite: Azure Blob Storage on loopback, with containers that tests can look into past imgkeep.

Its habits:
- It checks the signatures of shared keys and SAS tokens. It checks no bearer token without TLS.
- It keeps blobs in memory and loses them at a stop; a freeze loses nothing.
- The account is the first part of the path (`/ACCOUNT/CONTAINER/BLOB`); on Azure it is in the host.
- `--skipApiVersionCheck` lets it answer clients that are newer than it is.
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import ContainerClient
from azure.storage.blob.aio import ContainerClient as AsyncContainerClient

from tests.support.installed import require
from tests.support.loopback import HOST, port_of, reserve
from tests.support.s3.process import ServerProcess
from tests.support.waiting import block_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

ACCOUNT = "imgkeeptests"
ACCOUNT_KEY = b64encode(b"the key of an account of tests").decode()
START_TIMEOUT_S = 60
"""Timeout on a machine that is busy with other tests."""

_NUMBERS = count(1)
_PLAIN: dict[str, Any] = {"retry_total": 0, "connection_verify": False}


@dataclass(frozen=True)
class Azurite:
    """
    One container of Azurite, the means to use it, and to look at its blobs past imgkeep.

    Attributes:
        process: The server; other containers are on it as well.
        endpoint: Where requests go: to the server itself, or to what stands before it.
    """

    process: ServerProcess
    endpoint: str
    container: str = ""
    account: str = ACCOUNT
    key: str = field(default=ACCOUNT_KEY, repr=False)

    @property
    def port(self) -> int:
        """The server's own port, whatever stands before it."""
        return port_of(self.process.holder)

    @property
    def connection_string(self) -> str:
        """What `AZURE_STORAGE_CONNECTION_STRING` holds."""
        return (
            f"DefaultEndpointsProtocol={self.endpoint.partition(':')[0]};AccountName={self.account};"
            f"AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint}/{self.account};"
        )

    def through(self, endpoint: str) -> Azurite:
        """Return the same container as seen through another endpoint."""
        return replace(self, endpoint=endpoint)

    def with_container(self) -> Azurite:
        """Return a new container on the server. It blocks."""
        made = replace(self, container=f"test-{next(_NUMBERS)}")
        with ContainerClient.from_connection_string(made.connection_string, made.container, **_PLAIN) as client:
            client.create_container()
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

    # --- the blobs

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[AsyncContainerClient]:
        """Give Microsoft's client of the container, without retries."""
        client = AsyncContainerClient.from_connection_string(self.connection_string, self.container, **_PLAIN)
        async with client:
            yield client

    async def put(self, name: str, body: bytes, **how: Any) -> None:
        """Put a blob, with parameters of `upload_blob`."""
        async with self.client() as client:
            await client.upload_blob(name, body, overwrite=True, **how)

    async def get(self, name: str) -> bytes | None:
        """Return the bytes of a blob, `None` where there is none."""
        async with self.client() as client:
            try:
                return await (await client.download_blob(name)).readall()
            except ResourceNotFoundError:
                return None

    async def head(self, name: str) -> Any:
        """Return the properties of a blob, `None` where there is none."""
        async with self.client() as client:
            try:
                return await client.get_blob_client(name).get_blob_properties()
            except ResourceNotFoundError:
                return None

    async def delete(self, name: str) -> None:
        async with self.client() as client:
            await client.delete_blob(name)

    async def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return everything in the container whose name begins with `prefix`."""
        found: dict[str, bytes] = {}
        async with self.client() as client:
            async for blob in client.list_blobs(name_starts_with=prefix or None):
                found[blob.name] = await (await client.download_blob(blob.name)).readall()
        return found


def azurite_in(folder: Path, *, certificate: Path | None = None, key: Path | None = None) -> Azurite:
    """Return a server that is not started; with a certificate it takes access tokens besides, over TLS."""
    program = require("azurite-blob")
    require("node")
    holder = reserve()
    port = port_of(holder)
    command = [
        *("env", f"AZURITE_ACCOUNTS={ACCOUNT}:{ACCOUNT_KEY}", program),
        *("--blobHost", HOST, "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"),
        *("--silent", "--disableTelemetry"),
    ]
    if certificate is not None:
        command += ["--cert", str(certificate), "--key", str(key), "--oauth", "basic"]
    scheme = "http" if certificate is None else "https"
    return Azurite(ServerProcess(command, folder, holder), f"{scheme}://{HOST}:{port}")
