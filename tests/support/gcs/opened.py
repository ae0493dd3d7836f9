"""A client of Google Cloud Storage as tests open it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from imgkeep.core.store_url import GcsBucket
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.request_limits import REQUESTS_MAX
from imgkeep.storage.gcs import GcsClient
from tests.support.gcs.strict_server import BUCKET, PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

FIELDS = ObjectFields("image/png", "no-store", "attachment")
PATH = "v1/objects/00/a b%c.png"
NAME = f"{PREFIX}/{PATH}"
"""The name of that path in the bucket."""


@asynccontextmanager
async def opening(
    bucket: str = BUCKET, prefix: str = PREFIX, *, timeout_s: float = 10, **options: Any
) -> AsyncGenerator[GcsClient]:
    """Open a client; at its end no request may have a slot."""
    client = GcsClient(GcsBucket(bucket, prefix), timeout_s=timeout_s, **options)
    await client.open()
    try:
        yield client
    finally:
        await client.aclose()
    assert client._connection.limits._slots._value == REQUESTS_MAX


async def read(client: GcsClient, path: str = PATH, **part: Any) -> bytes | None:
    """Return the bytes of an object, or of a part of it; `None`: it is not there."""
    opened = await client.get(path, **part)
    return None if opened is None else await opened.stream.read_all(100_000_000)
