"""The delay of the image index: with a bucket the index finds local copies while the bucket is away, so it is short."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.storage import open_storage
from imgkeep.database.image_index import BATCH_DELAY_S, LOCAL_BATCH_DELAY_S
from tests.support.server import configuration

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLOSED = "s3://bucket/pre?endpoint=http://127.0.0.1:1&region=us-east-1"


@pytest.mark.parametrize(
    ("url", "batch_delay_s"), [("file:{}", LOCAL_BATCH_DELAY_S), (CLOSED, BATCH_DELAY_S)], ids=["disk", "bucket"]
)
async def test_long_delay_is_for_a_local_store_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, batch_delay_s: float
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    config = configuration(tmp_path, store={"url": url.format(tmp_path), "timeout_s": 1})
    async with open_storage(config, clock=lambda: NOON) as parts:
        assert parts.database.image_index._batch_delay_s == batch_delay_s
