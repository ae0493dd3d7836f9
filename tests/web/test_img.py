"""The main story, end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.pictures import picture
from tests.support.program import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Imgkeep
    from tests.support.origins import FakeOrigin


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


async def test_what_is_kept_stays_whatever_may_be_fetched_today(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    kept, other = origin.gives("/a.png", picture()), origin.gives("/b.png", picture())
    await (await (await start()).img(kept)).read()
    narrow = await start(sources={"allow": ["known"]})
    assert (await narrow.img(kept)).headers["Cache-Status"] == "imgkeep; hit"
    assert (await narrow.img(other)).status == 403


async def test_of_a_denied_host_nothing_is_shown(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    kept = origin.gives("/a.png", picture())
    await (await (await start()).img(kept)).read()
    strict = await start(sources={"deny": ["127.0.0.1"]})
    assert (await strict.img(kept)).status == 403


async def test_files_are_nobody_elses_business(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", picture())
    async with serving(tmp_path / "data") as program:
        assert (await program.img(url)).status == 200
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
