"""Buckets as backends of the contract of all stores (`tests/storage/test_contract.py`)."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING

from imgkeep.core.store_url import S3Bucket
from imgkeep.storage.bucket.store import PROBE, BucketStore
from imgkeep.storage.local.disk import Disk
from imgkeep.storage.s3 import S3Client
from tests.support.s3.gate import Gate
from tests.support.s3.programs import KINDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from tests.support.s3.servers import S3Server

TIMEOUT_S = 10
"""Timeout for a request, which a busy machine needs."""

_NUMBERS = count(1)
_PROBED: dict[str, bool] = {}
"""By server: whether `If-None-Match` works on PUT."""


class SpooledBucket(BucketStore):
    """A bucket, and a disk for drafts on their way to it."""

    spool: Disk


class BucketBackend:
    """See `tests.storage.test_contract.Backend`."""

    def __init__(self, store: SpooledBucket, server: S3Server, gate: Gate) -> None:
        self.store = store
        self._server = server
        self._gate = gate
        self._breaking: asyncio.Task[None] | None = None

    def left(self) -> dict[str, list[str]]:
        prefix = f"{self.store.client.bucket.prefix}/"  # type: ignore[attr-defined]
        # In another thread: the server is another process, and the caller is no coroutine.
        with ThreadPoolExecutor(1) as pool:
            paths = sorted(pool.submit(asyncio.run, self._server.objects(prefix)).result())
        found: dict[str, list[str]] = {"objects": [], "records": [], "other": []}
        for path in (path.removeprefix(prefix) for path in paths):
            if path != PROBE:
                kind = path.split("/")[1] if path.startswith("v1/") else "other"
                found[kind].append(path.rpartition("/")[2])
        found["other"] += [path.name for path in (self.store.spool.root / "partial").iterdir()]
        return found

    def break_it(self) -> None:
        self._breaking = asyncio.ensure_future(self._gate.refuse())


async def open_bucket(name: str, request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[BucketBackend]:
    """Give a prefix of a new bucket. The first one on a server is probed: what it can do holds for all of them."""
    server: S3Server = request.getfixturevalue("s3_servers").with_bucket(name)  # a restart of moto loses its buckets
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    patch.setenv("AWS_ACCESS_KEY_ID", server.key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    gate = Gate("127.0.0.1", server.port)
    await gate.start()
    bucket = S3Bucket(server.bucket, f"contract-{next(_NUMBERS)}", region="us-east-1", endpoint=gate.endpoint)
    store = SpooledBucket(S3Client(bucket, timeout_s=TIMEOUT_S))
    store.spool = Disk(folder)
    await store.spool.open()
    await store.open()
    if name not in _PROBED:
        await store.probe()
        _PROBED[name] = store.client.features.conditional_put
        assert _PROBED[name] == KINDS[name].conditional
    store.client.features.conditional_put = _PROBED[name]
    yield BucketBackend(store, server, gate)
    await store.aclose()
    await store.spool.aclose()
    await gate.stop()
