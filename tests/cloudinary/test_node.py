"""imgkeep on Cloudinary: the first request, redirects, a lost database, removal, and an outage."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.platform import Platform
from tests.support.images import make_image
from tests.support.s3.remote import get, readyz, replicated, sleep_briefly
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.cloudinary.server import CloudinaryServer
    from tests.support.origins import FakeOrigin
    from tests.support.s3.gate import Gate
    from tests.support.server import Imgkeep

    Node = Callable[..., Awaitable[Imgkeep]]

IMAGE = make_image()
DIGEST = sha256(IMAGE).hexdigest()
OBJECT = f"images/v1/objects/{DIGEST[:2]}/{DIGEST}.png"


@pytest.fixture
def node(
    cloudinary: CloudinaryServer,
    cloudinary_gate: Gate,
    start: Callable[..., Awaitable[Imgkeep]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Node:
    """Start nodes on one folder."""
    monkeypatch.setenv("CLOUDINARY_URL", cloudinary.url(cloudinary_gate.endpoint))

    async def begin(name: str = "a", *, mode: str = "serve", **store: Any) -> Imgkeep:
        folder = tmp_path / name
        section = {"url": "cloudinary:images", "fallback": f"file:{folder}", "timeout_s": 10, **store}
        return await start(
            folder=folder, store=section, delivery={"mode": mode}, platform=Platform(sleep=sleep_briefly)
        )

    return begin


async def test_image_outlives_its_origin_and_the_database(
    cloudinary: CloudinaryServer, node: Node, origin: FakeOrigin
) -> None:
    url = origin.gives("/a.png", IMAGE)
    first = await node()
    response, body = await get(first, url)
    assert (response.status, body) == (200, IMAGE)
    assert cloudinary.paths()[OBJECT] == IMAGE
    saved = await first.client.post(
        "/api/save-image", json={"url": url}, headers={"Authorization": f"Bearer {first.token}"}
    )
    assert (await saved.json())["storage"] == "cloudinary"
    await origin.stop()
    response, body = await get(await node("b"), url)
    assert (body, response.headers["Cache-Status"]) == (IMAGE, "imgkeep; hit")
    assert "list" not in [method for method, public_id in cloudinary.calls if "refused" not in public_id]


async def test_redirect_leads_to_the_delivery_url(node: Node, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    imgkeep = await node(mode="redirect")
    response, body = await get(imgkeep, url)
    assert (response.status, body) == (200, IMAGE)
    response, _ = await get(imgkeep, url)
    permanent = response.headers["Location"]
    assert response.status == 302
    assert permanent.endswith(f"/demo/image/upload/v1/{OBJECT}")
    async with imgkeep.stranger.get(permanent) as delivered:
        assert await delivered.read() == IMAGE
    response, body = await get(imgkeep, permanent)
    assert (response.status, body) == (200, IMAGE), "its own URL is no origin"


async def test_removed_image_is_gone_from_the_delivery_url(
    cloudinary: CloudinaryServer, node: Node, origin: FakeOrigin
) -> None:
    url = origin.gives("/a.png", IMAGE)
    imgkeep = await node(mode="redirect")
    await get(imgkeep, url)
    permanent = (await get(imgkeep, url))[0].headers["Location"]
    async with imgkeep.stranger.get(permanent) as delivered:
        assert delivered.status == 200
    headers = {"Authorization": f"Bearer {imgkeep.token}"}
    removed = await imgkeep.client.delete("/api/images", params={"src": url}, headers=headers)
    assert removed.status in {200, 204}
    assert OBJECT not in cloudinary.paths()
    async with imgkeep.stranger.get(permanent) as delivered:
        assert delivered.status == 404
    assert (await get(imgkeep, url))[0].status == 410


async def test_images_of_an_outage_are_uploaded_afterwards(
    cloudinary: CloudinaryServer, cloudinary_gate: Gate, node: Node, origin: FakeOrigin
) -> None:
    imgkeep = await node(timeout_s=2)
    await cloudinary_gate.refuse()
    response, body = await get(imgkeep, origin.gives("/a.png", IMAGE))
    assert (response.status, body) == (200, IMAGE)
    assert OBJECT not in cloudinary.paths()

    async def degraded() -> bool:
        return bool((await readyz(imgkeep))["status"] == "degraded")

    await until(degraded)
    await cloudinary_gate.open()
    await replicated(imgkeep)
    assert cloudinary.paths()[OBJECT] == IMAGE


async def test_image_that_is_refused_is_served_and_does_not_stop_others(
    cloudinary: CloudinaryServer, node: Node, origin: FakeOrigin
) -> None:
    cloudinary.size_max = len(IMAGE)
    large = make_image(width=200, height=200)
    imgkeep = await node()
    for path, body in (("/large.png", large), ("/a.png", IMAGE)):
        response, received = await get(imgkeep, origin.gives(path, body))
        assert (response.status, received) == (200, body)
    assert [path for path in cloudinary.paths() if "/objects/" in path] == [OBJECT]
    assert [path.stat().st_size for path in imgkeep.files("objects")] == [len(large)], "it waits in the fallback"
    assert (await get(imgkeep, origin.gives("/large.png", b"gone")))[1] == large


async def test_image_that_is_refused_without_a_fallback_leaves_the_store_ready(
    cloudinary: CloudinaryServer, node: Node, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    cloudinary.size_max = len(IMAGE)
    large = make_image(width=200, height=200)
    imgkeep = await node(fallback="")
    response, received = await get(imgkeep, origin.gives("/large.png", large))
    assert (response.status, received) == (200, large)
    await until(lambda: "image delivered but not stored" in caplog.messages)
    assert (await readyz(imgkeep))["status"] == "ready"
    assert (await get(imgkeep, origin.gives("/a.png", IMAGE)))[1] == IMAGE
