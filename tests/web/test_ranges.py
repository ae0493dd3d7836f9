"""Ranges (RFC 9110, 14; the cases of nginx's `range.t`), alike on a hit and on a miss of known or unknown size."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.fast_path import WITH_AND_WITHOUT_FAST_PATH
from tests.support.image_requests import IMAGE_FIELDS, fills_done, store_image
from tests.support.images import png_of
from tests.support.origins import gated_body
from tests.support.raw_http import get, target_of

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.raw_http import Answer
    from tests.support.server import Imgkeep

pytestmark = WITH_AND_WITHOUT_FAST_PATH

IMAGE = png_of(1000)
WHOLE = (0, 1000)
NINES = "9" * 30

RANGES: dict[str, tuple[list[str], tuple[int, int] | None]] = {
    "0-8": (["bytes=0-8"], (0, 9)),
    "-10": (["bytes=-10"], (990, 1000)),
    "990-": (["bytes=990-"], (990, 1000)),
    "990-1990": (["bytes=990-1990"], (990, 1000)),
    "0-": (["bytes=0-"], (0, 1000)),
    "-5000": (["bytes=-5000"], (0, 1000)),
    "0-0": (["bytes=0-0"], (0, 1)),
    "999-999": (["bytes=999-999"], (999, 1000)),
    "two": (["bytes=0-8,10-12"], WHOLE),
    "three": (["bytes=0-10, -10, 500-"], WHOLE),
    "two lines": (["bytes=0-8", "bytes=10-12"], WHOLE),
    "1000-": (["bytes=1000-"], None),
    "1000-1001": (["bytes=1000-1001"], None),
    "-0": (["bytes=-0"], None),
    "alpha": (["bytes=alpha"], WHOLE),
    "10": (["bytes=10"], WHOLE),
    "10-11 12-": (["bytes=10-11 12-"], WHOLE),
    "8-0": (["bytes=8-0"], WHOLE),
    "overlong end": ([f"bytes=0-{NINES}"], WHOLE),
    "overlong start": ([f"bytes={NINES}-"], WHOLE),
    "5,000 digits": (["bytes=" + "0" * 5000 + "-"], WHOLE),
    "another unit": (["items=0-8"], WHOLE),
    "empty": ([""], WHOLE),
}


@pytest.mark.parametrize("way", ["hit", "declared", "undeclared"])
async def test_range(imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests, way: str) -> None:
    gate = asyncio.Event()
    gate.set()
    for number, (name, (fields, span)) in enumerate(RANGES.items()):
        with subtests.test(name):
            path, image = f"/{number}.png", png_of(1000, seed=number)
            url = origin.on(path, gated_body(image, gate, ahead=500, declared=way != "undeclared"))
            before = imgkeep.files("objects")
            if way == "hit":
                await store_image(imgkeep, url)
            answer = await get(imgkeep, target_of(url), *(f"Range: {field}" for field in fields))
            check_range(answer, image, span, declared=way != "undeclared")
            # Whatever the range, the whole image is stored.
            await fills_done(imgkeep)
            assert [file.read_bytes() for file in imgkeep.files("objects") if file not in before] == [image]
            assert origin.asked(path) == 1


def check_range(answer: Answer, image: bytes, span: tuple[int, int] | None, *, declared: bool) -> None:
    if span is None:
        assert (answer.status, answer.headers["content-range"], answer.body) == (416, "bytes */1000", b"")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-length"] == "0"
    elif answer.status == 200:
        assert span == WHOLE
        assert answer.headers.items() >= IMAGE_FIELDS.items()
        assert "content-range" not in answer.headers
        assert answer.body == image
        if declared:
            assert answer.headers["content-length"] == "1000"
    else:
        start, end = span
        assert answer.status == 206
        assert answer.headers.items() >= IMAGE_FIELDS.items()
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1000"
        assert answer.headers["content-length"] == str(end - start)
        assert answer.headers["content-type"] == "image/png"
        assert "transfer-encoding" not in answer.headers
        assert answer.body == image[start:end]


IF_RANGE = {
    "the tag": ("{}", 206),
    "weak": ("W/{}", 200),
    "another": ('"x"', 200),
    "a date": ("Sun, 22 Nov 2026 10:00:00 GMT", 200),
    "a date to come": ("Sun, 22 Nov 2099 10:00:00 GMT", 200),
    "a list": ('{}, "x"', 200),
    "star": ("*", 200),
}


async def test_if_range(imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests) -> None:
    for number, (name, (field, status)) in enumerate(IF_RANGE.items()):
        with subtests.test(name):
            url = origin.gives(f"/{number}.png", IMAGE)
            etag = (await store_image(imgkeep, url)).headers["etag"]
            answer = await get(imgkeep, target_of(url), "Range: bytes=0-8", f"If-Range: {field.format(etag)}")
            assert (answer.status, answer.body) == (status, IMAGE[:9] if status == 206 else IMAGE)
            # If the range does not apply, neither does its being unsatisfiable.
            answer = await get(imgkeep, target_of(url), "Range: bytes=5000-", f"If-Range: {field.format(etag)}")
            assert answer.status == (416 if status == 206 else 200)


async def test_if_none_match_precedes_range(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    etag = (await store_image(imgkeep, url)).headers["etag"]
    for field in ("bytes=0-8", "bytes=5000-"):
        assert (await get(imgkeep, target_of(url), f"Range: {field}", f"If-None-Match: {etag}")).status == 304


async def test_head_ignores_range(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    for _ in range(2):
        answer = await get(imgkeep, target_of(url), "Range: bytes=0-8", method="HEAD")
        assert (answer.status, answer.headers["content-length"]) == (200, "1000")
        await fills_done(imgkeep)


async def test_range_of_a_running_fill_streams(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(200_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=100_000))
    leader = await imgkeep.img(url)
    ahead = await imgkeep.img(url, headers={"Range": "bytes=50000-50099"})
    assert (ahead.status, await ahead.read()) == (206, body[50_000:50_100])
    across = await imgkeep.img(url, headers={"Range": "bytes=90000-109999"})
    assert (across.status, across.headers["Content-Range"]) == (206, "bytes 90000-109999/200000")
    assert await across.content.readexactly(9_999) == body[90_000:99_999]
    refused = await imgkeep.img(url, headers={"Range": "bytes=200000-"})
    assert refused.status == 416
    tail = asyncio.create_task(imgkeep.img(url, headers={"Range": "bytes=-1"}))
    _, waiting = await asyncio.wait([tail], timeout=0.05)
    assert waiting
    gate.set()
    last = await tail
    assert await last.read() == body[-1:]
    assert await across.read() == body[99_999:110_000]
    assert await leader.read() == body
    assert len(origin.seen) == 1


async def test_range_of_a_cut_image_is_an_error(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    async def cut(exchange: object) -> None:
        from tests.support.origins import Exchange  # noqa: PLC0415 - for the type alone

        assert isinstance(exchange, Exchange)
        await exchange.send_head("Transfer-Encoding: chunked")
        await exchange.send(b"1f4\r\n" + IMAGE[:500])
        exchange.finish()

    answer = await get(imgkeep, target_of(origin.on("/a.png", cut)), "Range: bytes=0-8")
    assert (answer.status, answer.headers["content-type"]) == (502, "application/problem+json")
    await fills_done(imgkeep)
    assert imgkeep.files("objects") == imgkeep.files("partial") == []
