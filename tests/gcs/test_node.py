"""imgkeep on a bucket of Google Cloud Storage: from the first request to removal, outage, migration and diagnosis."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import pytest
import rich.progress  # noqa: F401 - imported here, outside of the event loop, it is no blocking call
from yarl import URL

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.layout import BLOCKS_CHANGED
from tests.support.api_calls import REMOVED, remove, saved
from tests.support.gcs.strict_server import BUCKET, PREFIX, StrictGcs
from tests.support.images import make_image, png_of
from tests.support.loopback import HOST
from tests.support.program import run_here
from tests.support.s3.gate import Gate
from tests.support.s3.remote import get, public_access_of, replicated
from tests.support.stores import local_store, put_image, record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

STORE = f"gs://{BUCKET}/{PREFIX}"


@dataclass
class Nodes:
    """The bucket behind a gate, and means to start imgkeep on it."""

    server: StrictGcs
    gate: Gate
    _start: Callable[..., Awaitable[Imgkeep]]
    _folder: Path

    async def node(self, name: str = "a", *, mode: str = "serve", hurry: int = 10) -> Imgkeep:
        """Start a node whose background tasks run so many times as often."""
        folder = self._folder / name
        store = {"url": STORE, "fallback": f"file:{folder}", "timeout_s": 10}
        platform = Platform(sleep=lambda seconds: asyncio.sleep(seconds / hurry))
        node = await self._start(folder=folder, store=store, delivery={"mode": mode}, platform=platform)
        if (access := public_access_of(node)) is not None:
            await until(lambda: access.works is not None)
        return node

    def stored(self, kind: str) -> dict[str, bytes]:
        found = {name: found.data for name, found in self.server.objects.items()}
        marker = f"{PREFIX}/{BLOCKS_CHANGED}"
        return {name: data for name, data in found.items() if f"/v1/{kind}/" in name and name != marker}


@pytest.fixture
async def nodes(
    strict_gcs: StrictGcs,
    start: Callable[..., Awaitable[Imgkeep]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Nodes]:
    gate = Gate(HOST, strict_gcs.port)
    await gate.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gate.endpoint)
    yield Nodes(strict_gcs, gate, start, tmp_path)
    await gate.stop()


async def follow(location: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(URL(location, encoded=True)) as response:
        return response.status, await response.read()


async def test_image_is_stored_once_and_found_by_a_node_without_a_database(nodes: Nodes, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(3_000_000))
    assert (await get(await nodes.node(), url))[1] == png_of(3_000_000)
    assert list(nodes.stored("objects").values()) == [png_of(3_000_000)]
    (record,) = nodes.stored("records").values()
    assert json.loads(record)["size"] == 3_000_000
    other = await nodes.node("b")
    response, body = await get(other, url)
    assert (response.headers["Cache-Status"], body) == ("imgkeep; hit", png_of(3_000_000))
    assert origin.asked("/a.png") == 1


@pytest.mark.parametrize("mode", ["redirect", "presign"])
async def test_hit_redirects_to_the_bucket(nodes: Nodes, origin: FakeOrigin, mode: str) -> None:
    url = origin.gives("/a.png", make_image())
    node = await nodes.node(mode=mode)
    await get(node, url)
    response, _ = await get(node, url)
    assert response.status == 302
    location = response.headers["Location"]
    (name,) = nodes.stored("objects")
    assert location.startswith(f"{nodes.gate.endpoint}/{BUCKET}/{name}")
    assert ("X-Goog-Signature=" in location) is (mode == "presign")
    # The gate passes on the host that the link was signed for.
    assert await follow(location) == (200, make_image())


async def test_removal_holds_on_every_node(nodes: Nodes, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    one, other = await nodes.node(), await nodes.node("b", hurry=200)
    reply = await saved(one, url)
    await get(other, url)
    assert await remove(one, f"/{reply['key']}") == 200
    assert nodes.stored("objects") == {}
    assert len(nodes.stored("refused")) == 1
    for node in (one, other):
        await until(lambda node=node: _is_gone(node, url))  # type: ignore[misc]


async def _is_gone(node: Imgkeep, url: str) -> bool:
    response, _ = await get(node, url)
    return response.status == REMOVED[0]


async def test_image_of_an_outage_is_served_and_uploaded_later(nodes: Nodes, origin: FakeOrigin) -> None:
    node = await nodes.node()
    await nodes.gate.refuse()
    url = origin.gives("/a.png", make_image())
    for _ in range(2):
        response, body = await get(node, url)
        assert (response.status, body) == (200, make_image())
    assert nodes.stored("objects") == {}
    await nodes.gate.open()
    await replicated(node)
    assert list(nodes.stored("objects").values()) == [make_image()]
    assert len(nodes.stored("records")) == 1


async def test_damaged_object_is_quarantined_and_fetched_again(nodes: Nodes, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    await get(await nodes.node(), url)
    (name,) = nodes.stored("objects")
    nodes.server.store(name, b"damaged bytes", contentType="image/png")
    node = await nodes.node("b")
    assert (await get(node, url))[1] == make_image()
    assert nodes.stored("objects") == {name: make_image()}
    quarantine = [found.data for path, found in nodes.server.objects.items() if f"{PREFIX}/damaged/" in path]
    assert quarantine == [b"damaged bytes"]


async def test_images_migrate_there_and_back(nodes: Nodes, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    store = local_store(here)
    await store.open()
    for number in range(5):
        await put_image(store, make_image(seed=number), record_of(make_image(seed=number), name=str(number)))
    await store.aclose()
    nodes.server.page_size = 2
    for source, target in ((f"file:{here}", STORE), (STORE, f"file:{back}")):
        status, _, err = await run_here(tmp_path / "x", "migrate", source, target)
        assert status == 0, err

    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("v1/*/*/*") if path.is_file()}

    assert len(files(here)) == 10
    assert files(back) == files(here)


async def test_check_tries_every_right(nodes: Nodes, tmp_path: Path) -> None:
    status, out, err = await run_here(tmp_path / "data", "check", "--live", store__url=STORE, delivery__mode="redirect")
    assert (status, err) == (0, "")
    marks = [line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("✓")]
    assert marks == [
        "put",
        "head",
        "get",
        "range",
        "list",
        "copy",
        "conditional-put",
        "presign",
        "public",
        "delete",
    ]
    assert nodes.server.objects == {}


async def test_check_names_the_right_that_is_missing(nodes: Nodes, tmp_path: Path) -> None:
    nodes.server.denied = {"storage.objects.list"}
    status, out, _ = await run_here(tmp_path / "data", "check", "--live", store__url=STORE)
    assert status == 1
    assert "✗ list: the bucket answers forbidden" in out
    assert "remedy: grant storage.objects.list on the bucket; the role Storage Object User" in out


async def test_check_names_a_file_that_is_missing(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no-key.json"))
    status, out, err = await run_here(tmp_path / "data", "check", store__url=STORE)
    assert status == 2
    assert f"GOOGLE_APPLICATION_CREDENTIALS names {tmp_path}/no-key.json, which is not there" in out + err
    assert nodes.server.seen == []
