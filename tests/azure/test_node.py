"""imgkeep on Azure: the first request, a lost database, redirects, presigned links, removal, and an outage."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from imgkeep.bootstrap.platform import Platform
from tests.support.images import make_image
from tests.support.loopback import HOST
from tests.support.s3.gate import Gate
from tests.support.s3.remote import get, readyz, replicated, sleep_briefly
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.azure.azurite import Azurite
    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Node = Callable[..., Awaitable[Imgkeep]]

IMAGE = make_image()
DIGEST = sha256(IMAGE).hexdigest()
OBJECT = f"pre/v1/objects/{DIGEST[:2]}/{DIGEST}.png"


@pytest.fixture
async def gate(azurite: Azurite) -> AsyncIterator[Gate]:
    gate = Gate(HOST, azurite.port)
    await gate.start()
    yield gate
    await gate.stop()


@pytest.fixture
def node(
    azurite: Azurite,
    gate: Gate,
    start: Callable[..., Awaitable[Imgkeep]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Node:
    """Start nodes, each on a folder of its own."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.through(gate.endpoint).connection_string)

    async def begin(name: str = "a", *, mode: str = "serve", **store: Any) -> Imgkeep:
        folder = tmp_path / name
        section = {"url": f"az://{azurite.container}/pre", "fallback": f"file:{folder}", "timeout_s": 10, **store}
        return await start(
            folder=folder, store=section, delivery={"mode": mode}, platform=Platform(sleep=sleep_briefly)
        )

    return begin


async def test_image_outlives_its_origin_and_the_database(azurite: Azurite, node: Node, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    first = await node()
    response, body = await get(first, url)
    assert (response.status, body) == (200, IMAGE)
    assert (await azurite.objects())[OBJECT] == IMAGE
    headers = {"Authorization": f"Bearer {first.token}"}
    saved = await first.client.post("/api/save-image", json={"url": url}, headers=headers)
    assert (await saved.json())["storage"] == "azure"
    await origin.stop()
    response, body = await get(await node("b"), url)
    assert (body, response.headers["Cache-Status"]) == (IMAGE, "imgkeep; hit")


async def test_presigned_redirect_leads_to_the_image(node: Node, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    imgkeep = await node(mode="presign")
    await get(imgkeep, url)
    response, _ = await get(imgkeep, url)
    assert (response.status, "private" in response.headers["Cache-Control"]) == (302, True)
    link = response.headers["Location"]
    assert "sp=r&" in link
    async with imgkeep.stranger.get(URL(link, encoded=True)) as delivered:
        assert (delivered.status, await delivered.read()) == (200, IMAGE)
        assert delivered.headers["Content-Type"] == "image/png"


async def test_redirect_leads_into_a_public_container_until_the_removal(
    azurite: Azurite, node: Node, origin: FakeOrigin
) -> None:
    async with azurite.client() as client:
        await client.set_container_access_policy({}, public_access="blob")
    url = origin.gives("/a.png", IMAGE)
    imgkeep = await node(mode="redirect")
    await get(imgkeep, url)
    response, _ = await get(imgkeep, url)
    permanent = response.headers["Location"]
    assert (response.status, permanent.endswith(f"/{azurite.account}/{azurite.container}/{OBJECT}")) == (302, True)
    async with imgkeep.stranger.get(permanent) as delivered:
        assert await delivered.read() == IMAGE
    headers = {"Authorization": f"Bearer {imgkeep.token}"}
    removed = await imgkeep.client.delete("/api/images", params={"src": url}, headers=headers)
    assert removed.status in {200, 204}
    async with imgkeep.stranger.get(permanent) as delivered:
        assert delivered.status == 404
    assert (await get(imgkeep, url))[0].status == 410


async def test_private_container_is_served_and_the_remedy_is_a_cdn(
    node: Node, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    url = origin.gives("/a.png", IMAGE)
    imgkeep = await node(mode="redirect")

    def told() -> list[str]:
        return [vars(record)["remedy"] for record in caplog.records if record.message.startswith("public URLs refused")]

    await until(lambda: bool(told()))
    assert told() == ["set delivery.base_url to a CDN for v1/objects/: docs/azure.md, or use delivery.mode presign"]
    await get(imgkeep, url)
    assert (await get(imgkeep, url))[0].status == 200


async def test_images_of_an_outage_are_uploaded_afterwards(
    azurite: Azurite, gate: Gate, node: Node, origin: FakeOrigin
) -> None:
    imgkeep = await node(timeout_s=2)
    await gate.refuse()
    response, body = await get(imgkeep, origin.gives("/a.png", IMAGE))
    assert (response.status, body) == (200, IMAGE)

    async def degraded() -> bool:
        return bool((await readyz(imgkeep))["status"] == "degraded")

    await until(degraded)
    await gate.open()
    await replicated(imgkeep)
    assert (await azurite.objects())[OBJECT] == IMAGE
