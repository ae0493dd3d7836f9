"""Lists of stored images, and their removal for good."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.records import Key, Record
from imgkeep.core.source_url import read_source
from tests.support.api_calls import REMOVED, data_url, problem_code, remove, save, saved
from tests.support.images import make_image, png_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

DIGEST = sha256(make_image()).hexdigest()


def imgkeep_key(imgkeep: Imgkeep, url: str) -> str:
    """Return the key of a link."""
    services = imgkeep.client.app[SERVICES]
    return services.image_service.identify(read_source(url)).key


@pytest.mark.parametrize("way", ["key", "src", "digest"])
async def test_removed_image_stays_removed(start: Start, origin: FakeOrigin, way: str) -> None:
    imgkeep = await start()
    url = origin.gives("/a.png", make_image())
    reply = await saved(imgkeep, url)
    other = await saved(imgkeep, origin.gives("/other.png", make_image(seed=1)))
    await imgkeep.img(url)
    for _ in range(2):
        if way == "key":
            assert await remove(imgkeep, f"/{reply['key']}") == 200
        else:
            assert await remove(imgkeep, **{way: url if way == "src" else DIGEST}) == 200
    for node in (imgkeep, await start(folder=imgkeep.folder)):
        assert await problem_code(await node.img(url)) == REMOVED
        assert await problem_code(await node.client.get(f"/images/{DIGEST}.png")) == REMOVED
        assert (await save(node, {"url": url}))[1]["code"] == "removed"
        assert (await save(node, {"data": data_url(make_image())}))[1]["code"] == "removed"
        assert await (await node.client.get(f"/images/{other['digest']}.png")).read() == make_image(seed=1)
    assert origin.asked("/a.png") == 1
    assert [path.name for path in imgkeep.files("objects")] == [f"{other['digest']}.png"]


async def test_removed_image_is_refused_under_another_link(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(500_000)
    url, again, small = (origin.gives(f"/{name}.png", body) for name in "abc")
    reply = [await saved(imgkeep, url), await saved(imgkeep, again)]
    assert await remove(imgkeep, f"/{reply[0]['key']}") == 200
    assert await problem_code(await imgkeep.img(again)) == REMOVED, "a link that was known to lead to it"
    for _ in range(3):
        assert (await save(imgkeep, {"url": small}))[1]["code"] == "removed"
    assert await problem_code(await imgkeep.img(small)) == REMOVED
    assert origin.asked("/c.png") == 1, "after one look the link is known, too"
    assert imgkeep.files("objects") == imgkeep.files("partial") == []


async def test_image_that_was_never_stored_is_removed_by_force_alone(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url, other = origin.gives("/a.png", make_image()), origin.gives("/b.png", make_image(seed=2))
    digest, key = sha256(make_image(seed=1)).hexdigest(), imgkeep_key(imgkeep, other)
    for force in ({}, {"force": "false"}):
        assert await remove(imgkeep, f"/{key}", **force) == 404
        assert await remove(imgkeep, src=url, **force) == 404
        assert await remove(imgkeep, digest=digest, **force) == 404
    assert imgkeep.files("records") == imgkeep.files("refused") == []
    assert await remove(imgkeep, f"/{key}", force="true") == 200
    assert await remove(imgkeep, src=url, force="true") == 200
    assert await remove(imgkeep, digest=digest, force="true") == 200
    assert await problem_code(await imgkeep.img(url)) == await problem_code(await imgkeep.img(other)) == REMOVED
    assert (await save(imgkeep, {"data": data_url(make_image(seed=1))}))[1]["code"] == "removed"
    assert origin.seen == []


async def test_lost_database_restores_no_removed_image(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    url = origin.gives("/a.png", make_image())
    reply = await saved(imgkeep, url)
    await remove(imgkeep, f"/{reply['key']}")
    await imgkeep.client.close()
    for path in imgkeep.folder.glob("imgkeep.db*"):
        path.unlink()
    imgkeep = await start(folder=imgkeep.folder)
    assert await problem_code(await imgkeep.img(url)) == REMOVED
    assert await problem_code(await imgkeep.client.get(f"/images/{DIGEST}.png")) == REMOVED
    assert (await (await imgkeep.client.get("/api/images")).json())["images"] == []


async def test_removed_image_with_a_record_is_not_listed(start: Start, origin: FakeOrigin) -> None:
    """The record of a link in doubt stays, because another link of its key may bring other bytes."""
    imgkeep = await start()
    shape = f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={'0' * 64}"
    reply = await saved(imgkeep, origin.gives("/a.png", make_image()) + shape)
    other = await saved(imgkeep, origin.gives("/other.png", make_image(seed=1)))
    assert await remove(imgkeep, f"/{reply['key']}") == 200
    assert len(imgkeep.files("records")) == 2
    assert imgkeep.client.app is not None
    index = imgkeep.client.app[SERVICES].storage.database.image_index
    record = await imgkeep.client.app[SERVICES].image_service.look_up(Key(reply["key"]))
    assert isinstance(record, Record), "it is no tombstone"

    async def records() -> AsyncIterator[Record]:
        yield record
        for known in await index.page(limit=9):
            yield known

    await index.rebuild(records())  # as `imgkeep reindex` does
    listed = (await (await imgkeep.client.get("/api/images")).json())["images"]
    assert [image["key"] for image in listed] == [other["key"]]
    totals = await index.count()
    assert (totals.images, totals.objects) == (1, 1)


async def test_images_are_listed_a_page_at_a_time(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    keys = {(await saved(imgkeep, origin.gives(f"/{n}.png", make_image(seed=n))))["key"] for n in range(5)}
    keys.add((await save(imgkeep, {"data": data_url(make_image(seed=9))}))[1]["key"])
    found: list[dict[str, Any]] = []
    query = {"limit": "2"}
    sizes = []
    while query.get("cursor") != "":
        answer = await (await imgkeep.client.get("/api/images", params=query)).json()
        found += answer["images"]
        sizes.append(len(answer["images"]))
        query["cursor"] = answer["next"] or ""
    assert sizes == [2, 2, 2]
    assert {image["key"] for image in found} == keys
    one = await (await imgkeep.client.get(f"/api/images/{found[0]['key']}")).json()
    assert one.pop("success")
    assert one == found[0]


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ({"host": "127.0.0.1"}, 1),
        ({"host": "a.example"}, 0),
        ({"provider": "OpenAI"}, 0),
        ({"digest": DIGEST}, 1),
        ({"since": "2020-01-01"}, 2),
        ({"since": "2999-01-01T00:00:00Z"}, 0),
        ({"until": "2020-01-01T00:00:00+02:00"}, 0),
        ({"host": "127.0.0.1", "until": "2999-01-01"}, 1),
    ],
)
async def test_images_are_found_by_their_facts(
    imgkeep: Imgkeep, origin: FakeOrigin, query: dict[str, str], number: int
) -> None:
    await saved(imgkeep, origin.gives("/a.png", make_image()))
    await save(imgkeep, {"data": data_url(make_image(seed=1))})
    response = await imgkeep.client.get("/api/images", params=query)
    assert len((await response.json())["images"]) == number


MALFORMED = [
    ("GET", "?limit=0", 400),
    ("GET", "?limit=1001", 400),
    ("GET", "?limit=x", 400),
    ("GET", "?cursor=x", 400),
    ("GET", "?cursor=%FF", 400),
    ("GET", "?since=yesterday", 400),
    ("GET", "?since=0001-01-01T00:00:00%2B23:00", 400),
    ("GET", "?digest=x", 400),
    ("GET", "?page=2", 400),
    ("GET", "?host=a&host=b", 400),
    ("GET", "/x", 400),
    ("GET", f"/{'0' * 64}", 404),
    ("DELETE", "", 400),
    ("DELETE", "?src=x", 400),
    ("DELETE", "?digest=x", 400),
    ("DELETE", f"?digest={DIGEST}&src=https://a.example/", 400),
    ("DELETE", "/x", 400),
    ("DELETE", f"/{'0' * 64}", 404),
    ("PUT", "", 405),
]


async def test_malformed_removal_is_refused(imgkeep: Imgkeep, subtests: pytest.Subtests) -> None:
    for method, path, status in MALFORMED:
        with subtests.test(method=method, path=path):
            response = await imgkeep.client.request(method, f"/api/images{path}")
            reply = await response.json()
            assert (response.status, reply["success"]) == (status, False)


async def test_removal_needs_access(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(security={"api_tokens": ["t" * 20]})
    url = origin.gives("/a.png", make_image())
    await (await imgkeep.img(url)).read()
    async with imgkeep.stranger.delete("/api/images", params={"src": url}) as response:
        assert response.status == 401
    assert await (await imgkeep.img(url)).read() == make_image()
