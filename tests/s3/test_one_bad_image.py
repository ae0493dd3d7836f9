"""One image that the bucket does not take: the others are stored all the same, and the operator learns its key."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.backoff import backoff_s
from imgkeep.replication.outbox_worker import DELAY_MIN_S, OWN_DELAY_MAX_S
from tests.support.clock import FakeClock
from tests.support.images import make_image, png_of
from tests.support.s3.misbehaving import NO_ETAG, Answer, Reset, only, s3_error
from tests.support.s3.remote import MULTIPART_SIZE, get, readyz
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.s3.misbehaving import Mischief
    from tests.support.s3.remote import Remote

BAD = make_image(seed=1)
FAILED = "upload of one image failed"


async def sleep_hardly(seconds: float) -> None:
    await asyncio.sleep(seconds / 100)


def failures(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.getMessage() == FAILED]


@pytest.mark.parametrize(
    "fault",
    [s3_error(400, "EntityTooLarge"), s3_error(500, "InternalError"), Reset(None), Answer(200, {}, b"<html>")],
    ids=["refused", "internal error", "reset", "swallowed"],
)
async def test_other_images_are_stored(
    remote: Remote, origin: FakeOrigin, caplog: pytest.LogCaptureFixture, fault: Mischief
) -> None:
    node = await remote.node(platform=Platform(sleep=sleep_hardly))
    await remote.gate.do(fault, match=only("PUT", sha256(BAD).hexdigest()))
    response, body = await get(node, origin.gives("/bad.png", BAD))
    assert (response.status, body) == (200, BAD)
    await until(lambda: bool(failures(caplog)))
    (key,) = [path.name.removesuffix(".json") for path in node.files("records")]
    assert failures(caplog)[0].key == key
    assert (await get(node, origin.gives("/good.png", make_image(seed=2))))[0].status == 200
    assert list((await remote.stored("objects")).values()) == [make_image(seed=2)]
    assert not any("circuit breaker" in record.getMessage() for record in caplog.records)

    async def is_told() -> bool:
        report = (await readyz(node))["fallback"]
        return bool(report["waiting"]) and str(report["last_error"]).startswith(f"image {key}: ")

    await until(is_told)
    assert (await readyz(node))["status"] == "ready"


async def test_delay_grows_to_an_hour(remote: Remote, origin: FakeOrigin, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    node = await remote.node(platform=Platform(clock=clock, sleep=sleep_hardly))
    await remote.gate.do(s3_error(400, "EntityTooLarge"), match=only("PUT", sha256(BAD).hexdigest()))
    await get(node, origin.gives("/bad.png", BAD))
    attempts = 13
    for attempt in range(1, attempts + 1):
        await until(lambda: len(failures(caplog)) == attempt)  # noqa: B023 - waited for at once
        delay_s = failures(caplog)[-1].retry_s
        least, most = (
            backoff_s(attempt - 1, first_s=DELAY_MIN_S, longest_s=OWN_DELAY_MAX_S, draw=draw) for draw in (0, 1)
        )
        assert round(least) <= delay_s <= round(most)
        clock.advance(delay_s + 1)
    delays = [record.retry_s for record in failures(caplog)]
    assert all(later >= earlier for earlier, later in pairwise(delays[:-2]))
    assert delays[-2] >= OWN_DELAY_MAX_S


async def test_large_image_without_an_etag_is_verified_and_stored(
    remote: Remote, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    node = await remote.node()
    body = png_of(MULTIPART_SIZE)
    await remote.gate.do(NO_ETAG, match=only("POST", "uploadId="))
    response, received = await get(node, origin.gives("/large.png", body))
    assert (response.headers["Cache-Status"], received) == ("imgkeep; fwd=uri-miss; stored", body)
    assert list((await remote.stored("objects")).values()) == [body]
    assert node.files("records") == []
    assert remote.gate.count("HEAD", sha256(body).hexdigest()) == 1
    assert not any("circuit breaker" in record.getMessage() for record in caplog.records)
