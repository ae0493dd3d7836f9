"""For `pytest_plugins`: a server with Cloudinary's API for each test, and a store in a folder of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.core.store_url import CloudinaryFolder
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.cloudinary import CloudinaryClient
from tests.support.cloudinary.server import CloudinaryServer
from tests.support.s3.gate import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FOLDER = CloudinaryFolder("sites/imgkeep")
TIMEOUT_S = 10
"""Timeout for a request, which a busy machine needs."""


@pytest.fixture(scope="session", autouse=True)
def cloudinary_account_of_this_machine_is_hidden() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CLOUDINARY_URL", raising=False)
        yield


@pytest.fixture
async def cloudinary() -> AsyncIterator[CloudinaryServer]:
    server = CloudinaryServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def cloudinary_gate(cloudinary: CloudinaryServer) -> AsyncIterator[Gate]:
    """A gate before the server."""
    gate = Gate("127.0.0.1", cloudinary.port)
    await gate.start()
    yield gate
    await gate.stop()


@pytest.fixture
async def cloudinary_client(cloudinary: CloudinaryServer) -> AsyncIterator[CloudinaryClient]:
    client = CloudinaryClient(FOLDER, timeout_s=TIMEOUT_S, environment={"CLOUDINARY_URL": cloudinary.url()})
    await client.open()
    yield client
    await client.aclose()


@pytest.fixture
def cloudinary_store(cloudinary_client: CloudinaryClient) -> BucketStore:
    return BucketStore(cloudinary_client)
