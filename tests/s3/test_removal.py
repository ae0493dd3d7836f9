"""Removals from a bucket that several nodes share and that may be away."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from imgkeep.bootstrap.platform import Platform
from tests.support.api_calls import REMOVED, remove, saved
from tests.support.images import make_image
from tests.support.s3.misbehaving import only
from tests.support.s3.remote import ALL, HURRIED, get, replicated
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep

NAME = f"{sha256(make_image()).hexdigest()}.png"


async def refused(node: Imgkeep, path: str) -> bool:
    response = await node.client.get(path, allow_redirects=False)
    return response.status == REMOVED[0]


@ALL
async def test_removal_holds_on_every_node(remote: Remote, origin: FakeOrigin) -> None:
    hurried = Platform(sleep=lambda seconds: asyncio.sleep(seconds / 200))
    one, other = await remote.node("a"), await remote.node("b", platform=hurried)
    url = origin.gives("/a.png", make_image())
    reply = await saved(one, url)
    assert (await get(other, url))[1] == make_image()
    assert await remove(one, f"/{reply['key']}") == 200
    assert await remote.stored("objects") == {}
    assert await refused(one, f"/images/{NAME}")
    await until(lambda: refused(other, f"/images/{NAME}"))
    assert (await get(other, url))[0].status == REMOVED[0]
    # Its digest is blocked at once, and its copies are deleted after that.
    await until(lambda: not any(list((node.folder / "cache").rglob("*.png")) for node in (one, other)))
    fresh = await remote.node("c")
    assert (await get(fresh, url))[0].status == REMOVED[0]
    again = origin.gives("/again.png", make_image())
    response = await fresh.client.post("/api/save-image", json={"url": again})
    assert response.status == REMOVED[0]
    assert await remote.stored("objects") == {}


async def test_block_holds_while_the_bucket_is_away(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    reply = await saved(node, origin.gives("/a.png", make_image()))
    await remove(node, f"/{reply['key']}")
    await node.client.close()
    await remote.gate.refuse()
    node = await remote.node()
    assert await refused(node, f"/images/{NAME}")
    response = await node.client.post("/api/save-image", json={"url": origin.gives("/b.png", make_image())})
    assert response.status == REMOVED[0]


async def test_removal_needs_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    await remote.gate.refuse()
    url = origin.gives("/a.png", make_image())
    reply = await saved(node, url)
    assert reply["storage"] == "local"
    assert reply["url"].endswith(f"/images/{NAME}")
    assert await remove(node, f"/{reply['key']}") == 503
    assert (await get(node, url))[1] == make_image()
    await remote.gate.open()
    await replicated(node)
    assert await remove(node, f"/{reply['key']}") == 200
    assert (await get(node, url))[0].status == REMOVED[0]


async def test_image_in_the_outbox_is_not_uploaded_under_a_removed_key(remote: Remote, origin: FakeOrigin) -> None:
    one, other = await remote.node("a", store=HURRIED), await remote.node("b", store=HURRIED)
    url = origin.gives("/a.png", make_image())
    await remote.gate.hang(match=only("PUT", "/v1/objects/"))
    await saved(one, url)
    await remote.gate.hang(match=only("PUT", "/v1/objects/"))
    assert len(one.files("records")) == 1
    await until(lambda: _removes(other, url))
    await remote.gate.open()
    await replicated(one)
    await until(lambda: one.files("objects") == one.files("records") == [])  # the record goes first
    await until(lambda: _is_removed(one, url))
    # The other node did not know the bytes, and removed none: their permanent URL was handed out.
    assert await remote.stored("refused") == {}
    assert list((await remote.stored("objects")).values()) == [make_image()]
    assert await (await one.client.get(f"/images/{NAME}")).read() == make_image()
    # So a client that brings other bytes under a removed key blocks them nowhere.
    assert (await get(one, origin.gives("/again.png", make_image())))[1] == make_image()


async def test_image_in_the_outbox_is_not_uploaded_once_blocked(remote: Remote, origin: FakeOrigin) -> None:
    hurried = Platform(sleep=lambda seconds: asyncio.sleep(seconds / 200))
    one, other = await remote.node("a", store=HURRIED, platform=hurried), await remote.node("b", store=HURRIED)
    url = origin.gives("/a.png", make_image())
    await remote.gate.hang(match=only("PUT", "/v1/objects/"))
    reply = await saved(one, url)
    await until(lambda: _removes_bytes(other, reply["digest"]))
    await remote.gate.open()
    # A node that does not know of the removal may upload it: then it deletes the image as soon as it does.
    await until(lambda: refused(one, f"/images/{NAME}"))
    await until(lambda: _nothing_is_left(remote, one))
    assert len(await remote.stored("refused")) == 1


async def _is_removed(node: Imgkeep, url: str) -> bool:
    return (await get(node, url))[0].status == REMOVED[0]


async def _removes_bytes(node: Imgkeep, digest: str) -> bool:
    return await remove(node, digest=digest, force="true") == 200


async def _nothing_is_left(remote: Remote, node: Imgkeep) -> bool:
    there = [await remote.stored(kind) for kind in ("objects", "records")]
    return there == [{}, {}] and node.files("objects") == node.files("records") == []


async def _removes(node: Imgkeep, url: str) -> bool:
    return await remove(node, src=url, force="true") == 200


async def test_interrupted_removal_is_finished_by_a_repeat(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    url = origin.gives("/a.png", make_image())
    reply = await saved(node, url)
    await remote.gate.answer(500, match=only("DELETE"))
    assert await remove(node, f"/{reply['key']}") == 503
    assert len(await remote.stored("objects")) == 1
    await remote.gate.open()
    await replicated(node)
    assert await remove(node, f"/{reply['key']}") == 200
    assert await remote.stored("objects") == {}


# --- undo


async def restore(node: Imgkeep, **body: str) -> int:
    response = await node.client.post("/api/restore", json=body)
    return response.status


@ALL
async def test_undo_holds_on_every_node(remote: Remote, origin: FakeOrigin) -> None:
    hurried = Platform(sleep=lambda seconds: asyncio.sleep(seconds / 200))
    one, other = await remote.node("a"), await remote.node("b", platform=hurried)
    url = origin.gives("/a.png", make_image())
    reply = await saved(one, url)
    assert await remove(one, f"/{reply['key']}") == 200
    await until(lambda: refused(other, f"/images/{NAME}"))
    assert await restore(other, digest=reply["digest"]) == 200
    assert await remote.stored("refused") == {}
    assert await remote.stored("records") == {}
    assert await restore(one, digest=reply["digest"]) == 200, "it did not know yet"
    assert await restore(one, digest=reply["digest"]) == 404
    for node in (one, other):
        response, body = await get(node, url)
        assert (response.status, body) == (200, make_image())
    fresh = await remote.node("c")
    assert (await get(fresh, url))[1] == make_image()


async def test_node_learns_of_an_undo_within_a_refresh(remote: Remote, origin: FakeOrigin) -> None:
    hurried = Platform(sleep=lambda seconds: asyncio.sleep(seconds / 200))
    one, other = await remote.node("a"), await remote.node("b", platform=hurried)
    url = origin.gives("/a.png", make_image())
    reply = await saved(one, url)
    assert await remove(one, f"/{reply['key']}") == 200
    await until(lambda: refused(other, f"/images/{NAME}"))
    assert await restore(one, url=url) == 200
    await until(lambda: _shows_nothing(other))
    assert (await get(other, url))[1] == make_image()


async def _shows_nothing(node: Imgkeep) -> bool:
    return (await node.client.get(f"/images/{NAME}")).status == 404


async def test_interrupted_undo_is_finished_by_a_repeat(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    urls = [origin.gives(f"/{name}.png", make_image()) for name in "ab"]
    reply = [await saved(node, url) for url in urls]
    assert await remove(node, f"/{reply[0]['key']}") == 200
    for part in ("/v1/records/", "/v1/refused/"):
        await remote.gate.answer(500, match=only("DELETE", part))
        assert await restore(node, digest=reply[0]["digest"]) == 503
        assert len(await remote.stored("refused")) == 1, "the block goes last"
        await remote.gate.open()
        await replicated(node)
    assert await restore(node, digest=reply[0]["digest"]) == 200
    assert await remote.stored("refused") == {}
    assert not any(b"removed_at" in record for record in (await remote.stored("records")).values())
    for url in urls:
        assert (await get(node, url))[1] == make_image()


async def test_bucket_that_does_not_delete_is_a_fault(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    reply = await saved(node, origin.gives("/a.png", make_image()))
    assert await remove(node, f"/{reply['key']}") == 200
    await remote.gate.answer(204, match=only("DELETE"))
    assert await restore(node, digest=reply["digest"]) == 503
    await remote.gate.open()
    await replicated(node)
    assert await restore(node, digest=reply["digest"]) == 200


async def test_undo_needs_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    reply = await saved(node, origin.gives("/a.png", make_image()))
    assert await remove(node, f"/{reply['key']}") == 200
    await remote.gate.refuse()
    assert await restore(node, digest=reply["digest"]) == 503
    assert await refused(node, f"/images/{NAME}")


# --- refetch


async def refetch(node: Imgkeep, key: str, url: str) -> tuple[int, dict[str, Any]]:
    response = await node.client.post(f"/api/images/{key}/refetch", json={"url": url})
    return response.status, await response.json()


@ALL
async def test_replaced_image_keeps_its_old_object(remote: Remote, origin: FakeOrigin) -> None:
    node, new = await remote.node(), make_image(seed=1)
    url = origin.gives("/a.png", make_image())
    reply = await saved(node, url)
    origin.gives("/a.png", new)
    status, again = await refetch(node, reply["key"], url)
    assert (status, again["replaced"], again["storage"]) == (200, True, "s3")
    assert (await get(node, url))[1] == new
    assert set((await remote.stored("objects")).values()) == {make_image(), new}
    assert len(await remote.stored("records")) == 1
    fresh = await remote.node("b")
    assert (await get(fresh, url))[1] == new
    for body in (make_image(), new):
        assert await (await fresh.client.get(f"/images/{sha256(body).hexdigest()}.png")).read() == body


async def test_node_learns_of_a_replacement_by_a_refetch(remote: Remote, origin: FakeOrigin) -> None:
    one, other = await remote.node("a"), await remote.node("b")
    url = origin.gives("/a.png", make_image())
    reply = await saved(one, url)
    assert (await get(other, url))[1] == make_image()
    origin.gives("/a.png", make_image(seed=1))
    assert (await refetch(one, reply["key"], url))[1]["replaced"] is True
    assert (await refetch(other, reply["key"], url))[1]["replaced"] is False
    for node in (one, other):
        assert (await get(node, url))[1] == make_image(seed=1)


async def test_failed_put_replaces_nothing(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    url = origin.gives("/a.png", make_image())
    reply = await saved(node, url)
    origin.gives("/a.png", make_image(seed=1))
    for part in ("/v1/objects/", "/v1/records/"):
        await remote.gate.answer(500, match=only("PUT", part))
        assert (await refetch(node, reply["key"], url))[0] == 503
        assert (await get(node, url))[1] == make_image()
        assert node.files("records") == [], "a replacement does not wait in the fallback"
        await remote.gate.open()
        await replicated(node)
    await remote.gate.refuse()
    assert (await refetch(node, reply["key"], url))[0] == 503
    assert (await get(node, url))[1] == make_image()


async def test_image_in_the_outbox_is_neither_replaced_nor_lost(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(store=HURRIED)
    url = origin.gives("/a.png", make_image())
    await remote.gate.hang(match=only("PUT", "/v1/objects/"))
    reply = await saved(node, url)
    assert reply["storage"] == "local"
    origin.gives("/a.png", make_image(seed=1))
    assert (await refetch(node, reply["key"], url))[0] == 503
    assert (await get(node, url))[1] == make_image()
    await remote.gate.open()
    await replicated(node)
    assert (await refetch(node, reply["key"], url))[1]["replaced"] is True
    assert (await get(node, url))[1] == make_image(seed=1)
    assert set((await remote.stored("objects")).values()) == {make_image(), make_image(seed=1)}
