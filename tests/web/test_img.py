"""The main story, end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.images import picture

if TYPE_CHECKING:
    from tests.conftest import Imgkeep
    from tests.origins import FakeOrigin


async def test_an_image_outlives_its_origin(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = picture("JPEG")
    url = origin.gives("/a.png?X-Signature=abc", body) + "?X-Signature=abc"
    origin.gives("/a.png", body, headers={"Content-Type": "binary/octet-stream"})
    first = await imgkeep.img(url)
    assert (first.status, await first.read()) == (200, body)
    assert first.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; stored"
    await origin.stop()
    second = await imgkeep.img(url)
    assert (second.status, await second.read()) == (200, body)
    assert second.headers["Cache-Status"] == "imgkeep; hit"
    assert second.headers["Content-Type"] == "image/jpeg"
    assert origin.asked("/a.png") == 1
