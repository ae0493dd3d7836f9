"""The store in a bucket, where another program has put something under our names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.layout import object_path
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.store import HASH_BYTES_MAX, BucketStore
from tests.support.memory_bucket import MemoryBucket, MemoryClient
from tests.support.stores import record_of

if TYPE_CHECKING:
    from imgkeep.storage.bucket.client import ObjectResponse

RECORD = record_of(b"an image")
NAME = RECORD.object_name


class Huge(MemoryClient):
    """A client whose objects say that they are huge."""

    async def get(self, path: str, *, start: int = 0, end: int | None = None, etag: str = "") -> ObjectResponse | None:
        found = await super().get(path, start=start, end=end, etag=etag)
        return None if found is None else replace(found, size=HASH_BYTES_MAX + 1)


async def test_huge_object_of_another_program_is_not_read() -> None:
    bucket = MemoryBucket({object_path(NAME): b"not an image"})
    client = Huge(bucket)
    with pytest.raises(BucketError, match="not ours"):
        await BucketStore(client).fetch(NAME, RECORD.size)
    assert client.asked == [("GET", object_path(NAME))]
    assert object_path(NAME) in bucket.objects
