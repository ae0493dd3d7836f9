"""`/img`, end to end: an image is stored, and shown for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.fast_path import WITH_AND_WITHOUT_FAST_PATH
from tests.support.images import make_image
from tests.support.program import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep


@WITH_AND_WITHOUT_FAST_PATH
async def test_image_outlives_its_origin(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = make_image("JPEG")
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


@WITH_AND_WITHOUT_FAST_PATH
async def test_stored_image_outlives_the_permission_to_fetch_it(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    stored, other = origin.gives("/a.png", make_image()), origin.gives("/b.png", make_image())
    await (await (await start()).img(stored)).read()
    narrow = await start(sources={"allow": ["known"]})
    assert (await narrow.img(stored)).headers["Cache-Status"] == "imgkeep; hit"
    assert (await narrow.img(other)).status == 403


@WITH_AND_WITHOUT_FAST_PATH
async def test_denied_host_hides_stored_images(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    stored = origin.gives("/a.png", make_image())
    await (await (await start()).img(stored)).read()
    strict = await start(sources={"deny": ["127.0.0.1"]})
    assert (await strict.img(stored)).status == 403


async def test_other_users_cannot_read_files(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    async with serving(tmp_path / "data") as program:
        assert (await program.img(url)).status == 200
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
