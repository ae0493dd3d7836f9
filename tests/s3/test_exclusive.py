"""`store.exclusive`: no image stays on a local disk, whatever happens to the bucket."""

from __future__ import annotations

import logging
import re
from hashlib import sha256
from io import StringIO
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import pytest

from imgkeep.bootstrap.banner import make_banner
from imgkeep.bootstrap.opening_log import tell_opening
from imgkeep.bootstrap.storage import open_storage
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError
from tests.support.api_calls import problem_code, save
from tests.support.images import make_image, png_of
from tests.support.program import run
from tests.support.s3.remote import get, readyz
from tests.support.server import configuration
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

EXCLUSIVE: dict[str, Any] = {"exclusive": True, "fallback": "", "cache_bytes_max": 0}
PNG = b"\x89PNG\r\n"
LARGE = 12_000_000
"""Size of an image that no socket buffers whole."""


@pytest.fixture
def start_node(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a node whose data folder is the default one."""
    monkeypatch.chdir(tmp_path)

    async def start_node(**store: Any) -> Imgkeep:
        fetch = {"body_bytes_max": LARGE}
        return await remote.node("data", store={**EXCLUSIVE, **store}, fetch=fetch)

    return start_node


def images_below(folder: Path) -> list[Path]:
    """Return the files that have bytes of an image."""
    return [path for path in folder.rglob("*") if path.is_file() and PNG in path.read_bytes()]


async def test_images_are_in_the_bucket_alone(
    remote: Remote, start_node: Start, origin: FakeOrigin, tmp_path: Path
) -> None:
    node = await start_node()
    images = {"/small.png": make_image(), "/large.png": png_of(LARGE)}
    urls = {origin.gives(path, body): body for path, body in images.items()}
    for url, body in urls.items():
        assert (await get(node, url))[1] == body
    await until(lambda: node.files("partial") == [])
    assert images_below(tmp_path) == []
    assert sorted((await remote.stored("objects")).values()) == sorted(urls.values())
    await node.client.close()
    (tmp_path / "data" / "imgkeep.db").unlink()
    node = await start_node()
    for url, body in urls.items():
        response, received = await get(node, url)
        assert (received, response.headers["Cache-Status"]) == (body, "imgkeep; hit")
        assert images_below(tmp_path) == []
    assert {origin.asked(path) for path in images} == {1}


async def test_image_that_is_read_has_no_file(start_node: Start, origin: FakeOrigin, tmp_path: Path) -> None:
    node = await start_node()
    url = origin.gives("/large.png", png_of(LARGE))
    await get(node, url)
    await until(lambda: node.files("partial") == [])
    async with await node.img(url) as response:
        received = await response.content.readexactly(10)
        assert images_below(tmp_path) == []
        assert received + await response.read() == png_of(LARGE)


async def test_reads_share_the_memory_that_there_is(start_node: Start, origin: FakeOrigin) -> None:
    node = await start_node(hot_bytes_max=LARGE)
    bodies = [png_of(LARGE, seed=seed) for seed in (1, 2)]
    first, second = [f"/images/{sha256(body).hexdigest()}.png" for body in bodies]
    for number, body in enumerate(bodies):
        await get(node, origin.gives(f"/{number}.png", body))
    async with node.client.get(first) as response:
        await response.content.readexactly(10)
        async with node.client.get(second) as refused:
            assert (refused.status, (await refused.json())["code"]) == (503, "storage_unavailable")
        await response.read()
    async with node.client.get(second) as response:
        assert await response.read() == bodies[1]


async def test_outage_leaves_no_image_on_the_disk(
    remote: Remote, start_node: Start, origin: FakeOrigin, tmp_path: Path
) -> None:
    node = await start_node()
    stored, new = (origin.gives(f"/{seed}.png", make_image(seed=seed)) for seed in (1, 2))
    await get(node, stored)
    response, _ = await get(node, stored)
    permanent = response.headers["Content-Location"]
    await remote.gate.refuse()
    for seed, url in ((1, stored), (2, new)):
        response, body = await get(node, url)
        assert (response.status, body) == (200, make_image(seed=seed)), "streamed from its origin"
        assert response.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; detail=not-stored"
    assert await save(node, {"url": new}) == (503, ANY)
    upload = await node.client.post("/api/save-image", data=make_image(seed=3), headers={"Content-Type": "image/png"})
    assert await problem_code(upload) == (503, "storage_unavailable")
    assert (await node.client.get(permanent)).status == 503
    report = await readyz(node)
    assert (report["status"], report["fallback"]) == ("degraded", {"status": "unused"})
    origin.gives("/1.png", b"gone", status="404 Not Found")
    response, _ = await get(node, stored)
    assert (response.status, (await response.json())["code"]) == (503, "storage_unavailable")
    await until(lambda: node.files("partial") == [])
    assert images_below(tmp_path) == []
    await node.client.close()
    await remote.gate.open()
    node = await start_node()
    assert (await get(node, stored))[1] == make_image(seed=1), "stored before the outage"
    response, _ = await get(node, new)
    assert response.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; stored"
    assert images_below(tmp_path) == []


async def test_copies_of_an_earlier_configuration_are_deleted(
    remote: Remote, start_node: Start, origin: FakeOrigin, tmp_path: Path
) -> None:
    url = origin.gives("/a.png", make_image())
    node = await remote.node("data")
    await get(node, url)
    await until(lambda: node.files("objects") == [])
    assert len(images_below(tmp_path / "data" / "cache")) == 1
    await node.client.close()
    await start_node()
    await until(lambda: images_below(tmp_path) == [])


@pytest.mark.parametrize("folder", ["v1/objects/aa", "damaged"])
async def test_images_of_an_earlier_configuration_are_refused_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "data" / folder / f"{'a' * 64}.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(make_image())
    config = configuration(tmp_path / "data", store={**EXCLUSIVE, "url": "s3://images"})
    message = (
        f"store.exclusive: there are images in {tmp_path}/data; copy them by `imgkeep migrate file:data s3://images`"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        async with open_storage(config, clock=read_clock):
            pytest.fail("opened")
    assert image.read_bytes() == make_image()


async def test_check_finds_images_of_an_earlier_configuration(tmp_path: Path) -> None:
    image = tmp_path / "data" / "v1" / "objects" / "aa" / f"{'a' * 64}.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(make_image())
    settings: dict[str, Any] = {"store__url": "s3://images", "store__exclusive": "true", "AWS_REGION": "us-east-1"}
    status, _, err = await run(tmp_path / "data", "check", **settings)
    assert (status, f"store.exclusive: there are images in {tmp_path}/data; " in err) == (2, True), err


def test_start_says_that_no_image_stays_on_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(tmp_path / "data", store={**EXCLUSIVE, "url": "gs://images"})
    text = make_banner(StringIO(), config, [("127.0.0.1", 8080)], version="1", open_to={}, log_in=None)
    images, folder = [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(("images", "folder"))]
    assert (images, folder.endswith("/data (drafts alone)")) == ("bucket images of Google Cloud Storage", True)
    with caplog.at_level(logging.INFO):
        tell_opening(config, [("127.0.0.1", 8080)], None)
    (record,) = [record for record in caplog.records if record.message == "listening"]
    assert vars(record)["exclusive"] is True
