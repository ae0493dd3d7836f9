"""Many links to one picture, as freshly signed ones are: they share what is at hand, and crowd nobody out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from imgkeep.web.fastpath.response_cache import TARGETS_MAX

from tests.support.image_requests import HandlerCalls, store_image
from tests.support.pictures import picture_of
from tests.support.raw_http import ask, connect, port_of, target_of
from tests.web.fastpath.test_response_cache import answer, table

if TYPE_CHECKING:
    from tests.conftest import Imgkeep
    from tests.support.origins import FakeOrigin

SMALL = picture_of(20_000)
LARGE = picture_of(3_000_000)


def signed(origin: FakeOrigin, number: int) -> str:
    """Return one of many links to `/a.png`, as S3 signs them."""
    return origin.url(
        "/a.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20261122%2Fus-east-1%2Fs3%2Faws4_request"
        f"&X-Amz-Date=20261122T100000Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host&X-Amz-Signature={number:064x}"
    )


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_links_to_one_image_share_its_bytes(imgkeep: Imgkeep, origin: FakeOrigin, body: bytes) -> None:
    origin.gives("/a.png", body)
    links = [signed(origin, number) for number in range(3)]
    await store_image(imgkeep, links[0])
    place = (await ask(imgkeep, target_of(links[0]))).headers["content-location"]
    targets = [*map(target_of, links), place]
    for target in targets:
        await ask(imgkeep, target)
    ways = HandlerCalls(imgkeep)
    async with connect(port_of(imgkeep)) as line:
        for target in targets * 3:
            assert (await line.ask(target)).body == body
    assert ways.number == 0
    assert origin.asked("/a.png") == 1


def test_cached_responses_of_one_image_are_bounded() -> None:
    answers = table(2**30)
    answers.prepare(b"/other", answer("two"))
    for number in range(TARGETS_MAX + 10):
        answers.prepare(b"/%d" % number, answer("one"))
    assert len(answers) == TARGETS_MAX + 1
    assert [answers.find(target, 0) is None for target in (b"/9", b"/10", b"/other")] == [True, False, False]
    answers.drop("one")
    answers.drop("two")
    assert (len(answers), answers.bytes) == (0, 0)
