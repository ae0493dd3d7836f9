"""Redirects into a bucket that may not be public: imgkeep tries it, and serves until it is."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from imgkeep.bootstrap.platform import Platform
from tests.support.images import make_image
from tests.support.s3.misbehaving import only
from tests.support.s3.remote import HURRIED, get, public_access_of
from tests.support.waiting import until

if TYPE_CHECKING:
    import pytest

    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep


async def sleep_hardly(_seconds: float) -> None:
    await asyncio.sleep(0.02)


async def works(node: Imgkeep) -> str:
    """Return what `/metrics` says of public URLs."""
    page = await (await node.client.get("/metrics")).text()
    return next(line.rpartition(" ")[2] for line in page.splitlines() if line.startswith("imgkeep_public_urls_work"))


async def test_private_bucket_is_served_until_it_is_public(
    remote: Remote, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node = await remote.node(mode="redirect", platform=Platform(sleep=sleep_hardly))
    url = origin.gives("/a.png", make_image())
    for status in ("imgkeep; fwd=uri-miss; stored", "imgkeep; hit"):
        response, body = await get(node, url)
        assert (response.status, body, response.headers["Cache-Status"]) == (200, make_image(), status)
    assert await works(node) == "0.0"
    await remote.gate.until_seen("DELETE", "/v1/objects/", times=2)
    (told,) = [record for record in caplog.records if record.message.startswith("public URLs refused")]
    assert vars(told)["reason"] == "a plain GET got status 403"
    assert vars(told)["remedy"] == "make v1/objects/ public: docs/s3.md, or use delivery.mode presign"
    await remote.make_public()
    await until(lambda: is_redirected(node, url))
    assert await works(node) == "1.0"
    assert [record.message for record in caplog.records].count("public URLs work") == 1


async def is_redirected(node: Imgkeep, url: str) -> bool:
    return (await get(node, url))[0].status == 302


async def test_bucket_that_is_closed_later_is_served(remote: Remote, origin: FakeOrigin) -> None:
    await remote.make_public()
    node = await remote.node(mode="redirect", platform=Platform(sleep=sleep_hardly))
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    assert await is_redirected(node, url)
    async with remote.server.client() as client:
        await client.delete_bucket_policy(Bucket=remote.server.bucket)
    await until(lambda: works_is(node, found=False))
    response, body = await get(node, url)
    assert (response.status, body) == (200, make_image())


async def works_is(node: Imgkeep, *, found: bool) -> bool:
    access = public_access_of(node)
    assert access is not None
    return access.works is found


async def test_probe_leaves_nothing_in_the_bucket(remote: Remote) -> None:
    await remote.make_public()
    node = await remote.node(mode="redirect")
    assert await works(node) == "1.0"
    await remote.gate.until_seen("DELETE", "/v1/objects/")
    await until(lambda: is_empty(remote))


async def is_empty(remote: Remote) -> bool:
    return not await remote.stored("objects")


async def test_page_of_another_server_is_no_public_object(remote: Remote, origin: FakeOrigin) -> None:
    page = {"Content-Type": "text/html"}
    await remote.gate.answer(200, page, b"<html>sign in</html>", match=only("GET", "/portal/"))
    node = await remote.node(mode="redirect", delivery={"base_url": f"{remote.gate.endpoint}/portal"})
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    assert not await is_redirected(node, url)


async def test_public_url_that_only_clients_reach_is_used(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(mode="redirect", delivery={"base_url": "http://127.0.0.1:9"})
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    assert await is_redirected(node, url)


async def test_start_waits_for_no_probe(remote: Remote, origin: FakeOrigin) -> None:
    await remote.make_public()
    await remote.gate.hang(match=only("PUT", "/v1/objects/"), times=1)
    node = await remote.node(mode="redirect", waits_for_probe=False, store=HURRIED)
    await remote.gate.until_seen("PUT", "/v1/objects/")
    assert (await node.client.get("/readyz")).status == 200
    access = public_access_of(node)
    assert access is not None
    assert access.works is None
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    assert not await is_redirected(node, url)
