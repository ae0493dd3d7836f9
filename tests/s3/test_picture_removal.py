"""Derived pictures of images in a bucket go with their original: in the bucket, and at every node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from tests.support.images import make_image
from tests.support.picture_program import COMMAND, picture_of
from tests.support.s3.remote import sleep_briefly
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep

PLATFORM = Platform(sleep=sleep_briefly, derive_command=COMMAND)
STORE = {"store": True}


async def ask(node: Imgkeep, url: str) -> tuple[int, bytes, str]:
    answer = await node.client.get("/img", params={"src": url, "w": "40"})
    return answer.status, await answer.read(), answer.headers.get("Content-Location", "")


def pictures(node: Imgkeep) -> list[str]:
    return [path.name for path in (node.folder / "derived").rglob("*") if path.is_file()]


async def test_removal_reaches_the_bucket_and_other_nodes(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    nodes = [await remote.node(name, platform=PLATFORM, derive=STORE) for name in ("a", "b")]
    one, other = nodes

    async def is_stored() -> bool:
        return bool(await remote.server.objects("pre/v1/derived/"))

    assert (await ask(one, url))[:2] == (200, picture_of("w40", "PNG"))
    await until(is_stored)
    for node in (*nodes, *nodes):
        assert (await ask(node, url))[:2] == (200, picture_of("w40", "PNG"))
    assert [pictures(node) for node in nodes] == [["w40.png"]] * 2
    assert (await one.client.delete("/api/images", params={"src": url})).status == 200
    assert not await is_stored()
    assert ((await ask(one, url))[0], pictures(one)) == (410, [])
    assert other.client.app is not None
    await other.client.app[SERVICES].remover.refresh()  # as it does once a minute
    assert ((await ask(other, url))[0], pictures(other)) == (410, [])
    assert not await is_stored()
    assert (await one.client.post("/api/restore", json={"url": url})).status == 200
    assert (await ask(one, url))[:2] == (200, picture_of("w40", "PNG"))


async def test_replaced_image_has_pictures_of_its_own(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(platform=PLATFORM, derive=STORE)
    url = origin.gives("/a.png", make_image(seed=1))
    _, _, before = await ask(node, url)
    assert (await ask(node, url))[2] == before
    origin.gives("/a.png", make_image(seed=2))
    assert (await node.client.post("/api/refetch", json={"url": url})).status == 200
    status, _, after = await ask(node, url)
    assert (status, after != before) == (200, True)
