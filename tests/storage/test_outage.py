"""An outage of the bucket under load; `python -m bench.outage` does this for ten minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.outage import outage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.outage import Bucket
    from tests.support.s3.servers import S3Server


@pytest.fixture(params=["rclone", "azurite"])
def any_bucket(request: pytest.FixtureRequest, bucket: Callable[[str], S3Server]) -> Bucket:
    made: Bucket = request.getfixturevalue("azurite") if request.param == "azurite" else bucket(request.param)
    return made


async def test_outage_under_load_loses_nothing(any_bucket: Bucket, tmp_path: Path) -> None:
    tally = await outage(tmp_path / "data", any_bucket, outage_s=3, rate=30, timeout_s=1)
    assert tally.availability("stored") == 1
    assert tally.availability("new") >= 0.99
    assert (tally.lacking, tally.wrong) == (0, 0)
    assert tally.objects == tally.records == tally.images, "each once"
    assert tally.images > 60
