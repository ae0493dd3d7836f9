"""The background task that tries the public URLs of a bucket: what ends it, and what does not."""

from __future__ import annotations

import asyncio

import pytest

from imgkeep.core.errors import Busy, StorageError
from imgkeep.replication.public_access import FAULT_INTERVAL_S, PUBLIC_INTERVAL_S, PublicAccess


async def test_busy_or_failing_bucket_is_tried_again() -> None:
    faults: list[Exception | None] = [Busy("too many requests are under way"), StorageError("away"), None]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not faults:
            raise asyncio.CancelledError

    async def probe() -> None:
        if (fault := faults.pop(0)) is not None:
            raise fault

    access = PublicAccess(sleep)
    with pytest.raises(asyncio.CancelledError):
        await access.run(probe)
    assert slept == [FAULT_INTERVAL_S, FAULT_INTERVAL_S, PUBLIC_INTERVAL_S]
    assert access.works
