"""Many links to one image, as freshly signed ones are, share its bytes in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.image_requests import HandlerCalls, store_image
from tests.support.images import png_of
from tests.support.raw_http import ask, connect, port_of, target_of

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

SMALL = png_of(20_000)
LARGE = png_of(3_000_000)


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
    calls = HandlerCalls(imgkeep)
    async with connect(port_of(imgkeep)) as line:
        for target in targets * 3:
            assert (await line.ask(target)).body == body
    assert calls.number == 0
    assert origin.asked("/a.png") == 1
