"""Derived pictures of images in a bucket: made from its objects, shared by its nodes, and what clients are sent to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.bootstrap.platform import Platform
from tests.support.images import make_image, png_of
from tests.support.picture_program import COMMAND, picture_of
from tests.support.s3.remote import get, sleep_briefly
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep

PLATFORM = Platform(sleep=sleep_briefly, derive_command=COMMAND)
STORE = {"store": True}


async def ask(node: Imgkeep, url: str, width: int) -> tuple[int, bytes, dict[str, str]]:
    answer = await node.client.get("/img", params={"src": url, "w": f"{width}"}, allow_redirects=False)
    return answer.status, await answer.read(), dict(answer.headers)


async def test_picture_is_made_from_an_object_of_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(200_000))
    await get(await remote.node(platform=PLATFORM), url)
    other = await remote.node("b", platform=PLATFORM)
    assert (await ask(other, url, 40))[:2] == (200, picture_of("w40", "PNG"))
    assert origin.asked("/a.png") == 1


async def test_nodes_share_pictures_by_the_bucket_and_clients_are_sent_there(
    remote: Remote, origin: FakeOrigin
) -> None:
    await remote.make_public()
    url = origin.gives("/a.png", make_image())
    node = await remote.node(mode="redirect", platform=PLATFORM, derive=STORE)
    assert (await ask(node, url, 40))[:2] == (200, picture_of("w40", "PNG"))

    async def is_stored() -> bool:
        return bool(await remote.server.objects("pre/v1/derived/"))

    await until(is_stored)
    other = await remote.node("b", platform=PLATFORM, derive={**STORE, "processes": 1})
    assert (await ask(other, url, 40))[:2] == (200, picture_of("w40", "PNG"))

    async def is_redirected() -> bool:
        return (await ask(node, url, 40))[0] == 302

    await until(is_redirected)
    _, _, headers = await ask(node, url, 40)
    assert headers["Location"] == headers["Content-Location"]
    assert headers["Location"].endswith("/w40.png")
    original = await node.client.get("/img", params={"src": url}, allow_redirects=False)
    assert original.headers["Location"] != headers["Location"]
