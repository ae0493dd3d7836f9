"""imgkeep on a bucket: storing, delivering, several nodes, and rows S1 to S10 of the fault matrix."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from imgkeep.bootstrap.server import SERVICES
from imgkeep.storage.bucket.client import PROBE_BYTES
from tests.support.images import make_image, png_of
from tests.support.origins import gated_body
from tests.support.s3.misbehaving import only
from tests.support.s3.remote import ALL, HURRIED, MULTIPART_SIZE, get, readyz, replicated, settle
from tests.support.signed_links import BRIEF, FOREVER, IMAGE, PAST, UNCERTAIN, SignedOrigin, good, invented
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgkeep.images.service import ImageService
    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote
    from tests.support.server import Imgkeep

S3_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>no</Message></Error>"
PROBE_CUT_AT = len(PROBE_BYTES) // 2
"""Cuts the probe as well as every image: a body shorter than the cut would pass the gate."""


def image_service_of(imgkeep: Imgkeep) -> ImageService:
    assert imgkeep.client.app is not None
    return imgkeep.client.app[SERVICES].image_service


@asynccontextmanager
async def frozen(remote: Remote) -> AsyncIterator[None]:
    remote.server.freeze()
    try:
        yield
    finally:
        remote.server.thaw()


# --- storing


@ALL
async def test_image_is_served_by_another_node(remote: Remote, origin: FakeOrigin) -> None:
    body = make_image()
    url = origin.gives("/a.png", body)
    node = await remote.node()
    response, received = await get(node, url)
    assert (received, response.headers["Cache-Status"]) == (body, "imgkeep; fwd=uri-miss; stored")
    digest = sha256(body).hexdigest()
    objects = await remote.stored("objects")
    assert objects == {f"pre/v1/objects/{digest[:2]}/{digest}.png": body}
    assert len(await remote.stored("records")) == 1
    # The record goes first, and then the object.
    await until(lambda: node.files("objects") == node.files("records") == node.files("partial") == [])
    head = await remote.server.head(next(iter(objects)))
    assert head is not None
    if remote.server.name != "rclone":
        assert head["ContentType"] == "image/png"
        assert head["CacheControl"] == "public, max-age=31536000, immutable"
    await origin.stop()
    other = await remote.node("b")
    response, received = await get(other, url)
    assert (received, response.headers["Cache-Status"]) == (body, "imgkeep; hit")
    permanent = await other.client.get(response.headers["Content-Location"])
    assert await permanent.read() == body


@ALL
async def test_large_image_is_uploaded_in_parts(remote: Remote, origin: FakeOrigin) -> None:
    body = png_of(MULTIPART_SIZE)
    url = origin.gives("/large.png", body)
    node = await remote.node()
    assert (await get(node, url))[1] == body
    assert remote.gate.count("PUT", "partNumber=3") == 1
    other = await remote.node("b")
    assert (await get(other, url))[1] == body
    response, part = await get(other, url, headers={"Range": "bytes=10000000-10000009"})
    assert (response.status, part) == (206, body[10_000_000:10_000_010])
    assert origin.asked("/large.png") == 1


async def test_svg_is_an_attachment_in_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')
    await get(await remote.node(), url)
    head = await remote.server.head(next(iter(await remote.stored("objects"))))
    assert head is not None
    assert head["ContentType"] == "image/svg+xml"
    assert head["ContentDisposition"].startswith("attachment")


async def test_cached_image_is_read_from_the_bucket_once(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(2_000_000))
    await get(await remote.node(), url)
    node = await remote.node("b")
    bodies = await asyncio.gather(*(get(node, url) for _ in range(20)))
    assert {body for _, body in bodies} == {png_of(2_000_000)}
    assert remote.gate.count("GET", "/objects/") == 1
    await node.client.close()
    assert (await get(await remote.node("b"), url))[1] == png_of(2_000_000), "after a restart"
    assert remote.gate.count("GET", "/objects/") == 1


async def test_disk_cache_is_bounded_and_evicts_unused_copies(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(store={"cache_bytes_max": 250_000, "hot_bytes_max": 0})
    urls = [origin.gives(f"/{n}.png", png_of(100_000, seed=n)) for n in range(4)]
    for n in (0, 1, 0, 2, 3):
        await get(node, urls[n])
    copies = list((node.folder / "cache").rglob("*.png"))
    assert sum(path.stat().st_size for path in copies) <= 250_000
    before = remote.gate.count("GET", "/objects/")
    assert (await get(node, urls[3]))[1] == png_of(100_000, seed=3)
    assert remote.gate.count("GET", "/objects/") == before
    assert (await get(node, urls[1]))[1] == png_of(100_000, seed=1)
    assert remote.gate.count("GET", "/objects/") == before + 1


async def test_coalesced_miss_costs_one_request_to_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    url = origin.gives("/a.png", make_image())
    await asyncio.gather(*(get(node, url) for _ in range(20)))
    assert remote.gate.count("GET", "/records/") == 1
    assert origin.asked("/a.png") == 1


@ALL
async def test_concurrent_fills_of_two_nodes_store_one_object(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    nodes = [await remote.node(name) for name in ("a", "b")]
    answers = await asyncio.gather(*(get(node, url) for node in nodes))
    assert [(response.status, body) for response, body in answers] == [(200, make_image())] * 2
    assert len(await remote.stored("objects")) == len(await remote.stored("records")) == 1
    assert {response.headers["Cache-Status"] for response, _ in answers} <= {
        "imgkeep; fwd=uri-miss; stored",
        "imgkeep; hit",
    }


@ALL
async def test_image_that_two_nodes_fetch_at_once_has_one_validator(remote: Remote, origin: FakeOrigin) -> None:
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(make_image(), gate, ahead=1000))
    nodes = [await remote.node(name) for name in ("a", "b")]
    fetches = [asyncio.create_task(get(node, url)) for node in nodes]
    await until(lambda: origin.asked("/a.png") == 2)
    gate.set()
    assert [body for _, body in await asyncio.gather(*fetches)] == [make_image()] * 2
    for node in nodes:
        await settle(node)
    assert len({(await get(node, url))[0].headers["ETag"] for node in [*nodes, await remote.node("c")]}) == 1


async def test_full_disk_leaves_uploads_from_memory(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(store={"free_bytes_min": 2**60})
    url = origin.gives("/a.png", make_image())
    response, body = await get(node, url)
    assert (body, response.headers["Cache-Status"]) == (make_image(), "imgkeep; fwd=uri-miss; stored")
    assert len(await remote.stored("objects")) == 1


# --- delivery


async def test_second_request_is_redirected_to_the_public_url(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(mode="redirect", delivery={"base_url": "http://127.0.0.1:9/base/"})
    url = origin.gives("/a.png", make_image())
    assert (await get(node, url))[0].status == 200
    response, _ = await get(node, url)
    digest = sha256(make_image()).hexdigest()
    assert response.status == 302
    where = f"http://127.0.0.1:9/base/pre/v1/objects/{digest[:2]}/{digest}.png"
    assert response.headers["Location"] == response.headers["Content-Location"] == where
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert "ETag" not in response.headers, "or a client would revalidate the redirect for ever"
    response, _ = await get(node, url, headers={"If-None-Match": "*"})
    assert response.status == 304
    response = await node.client.get(f"/images/{digest}.png", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (302, where)


async def test_redirect_to_a_provisional_image_is_short_lived(remote: Remote, origin: FakeOrigin) -> None:
    sources = {"providers": [UNCERTAIN]}
    node = await remote.node(mode="redirect", delivery={"base_url": "http://127.0.0.1:9/"}, sources=sources)
    signed = SignedOrigin(origin)
    await get(node, signed.url(invented()))
    response, _ = await get(node, signed.url(invented()))
    assert (response.status, response.headers["Cache-Control"]) == (302, BRIEF)
    response, _ = await get(node, signed.url(invented()), headers={"If-None-Match": "*"})
    assert (response.status, response.headers["Cache-Control"]) == (304, BRIEF)


async def test_nodes_learn_confirmations_from_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    sources = {"providers": [UNCERTAIN]}
    signed = SignedOrigin(origin)
    first, second = [await remote.node(name, sources=sources) for name in ("a", "b")]
    await get(first, signed.url(invented()))
    assert (await get(second, signed.url(good())))[1] == IMAGE
    await image_service_of(second).drain()
    assert (await get(first, signed.url(good())))[1] == IMAGE
    await image_service_of(first).drain()
    assert (await get(second, signed.url(good(1))))[1] == IMAGE
    await image_service_of(second).drain()
    third = await remote.node("c", sources=sources)
    response, body = await get(third, signed.url(good(2, end=PAST)))
    assert (body, response.headers["Cache-Control"]) == (IMAGE, FOREVER)


async def test_links_into_the_public_bucket_are_not_rewritten(remote: Remote, origin: FakeOrigin) -> None:
    await remote.make_public()
    node = await remote.node(mode="redirect")
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    where = (await get(node, url))[0].headers["Location"]
    other = where.replace("/v1/objects/", "/v1/other/")
    page = f"<img src='{where}'><img src='{url}'><img src='{other}'>"
    response = await node.client.post("/api/rewrite", json={"html": page, "which": "all"})
    reply = await response.json()
    assert (reply["rewritten"], where in reply["html"], other in reply["html"]) == (2, True, False)


@ALL
async def test_presigned_link_is_reused_and_serves_head(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(mode="presign")
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    links = [(await get(node, url))[0] for _ in range(3)]
    assert {link.status for link in links} == {302}
    assert len({link.headers["Location"] for link in links}) == 1
    assert links[0].headers["Cache-Control"].startswith("private, max-age=1")
    head, _ = await get(node, url, method="HEAD")
    async with aiohttp.ClientSession() as session:
        async with session.get(links[0].headers["Location"]) as response:
            assert await response.read() == make_image()
        async with session.head(head.headers["Location"]) as response:
            assert response.status == 200


async def test_redirect_leads_only_to_objects_in_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    await remote.make_public()
    node = await remote.node(mode="redirect")
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    await node.client.close()
    for name in await remote.server.objects("pre/v1/objects/"):
        await remote.server.delete(name)
    response, body = await get(await remote.node(mode="redirect"), url)
    assert (response.status, body) == (200, make_image()), "from the copy on the disk"


# --- S1 to S4: faults of the bucket during fills


async def refuse(remote: Remote) -> None:
    await remote.gate.refuse()


async def hang(remote: Remote) -> None:
    await remote.gate.hang()


async def reset(remote: Remote) -> None:
    await remote.gate.reset()


async def slow_down(remote: Remote) -> None:
    await remote.gate.slow_down()


def answers(status: int, code: str) -> Callable[[Remote], Awaitable[None]]:
    async def fault(remote: Remote) -> None:
        await remote.gate.answer(status, {"Content-Type": "application/xml"}, S3_ERROR.format(code).encode())

    return fault


async def portal(remote: Remote) -> None:
    await remote.gate.answer(200, {"Content-Type": "text/html"}, b"<html><title>Please log in</title></html>")


async def no_tag(remote: Remote) -> None:
    await remote.gate.strip_header("ETag")


async def other_tag(remote: Remote) -> None:
    await remote.gate.set_header("ETag", f'"{"0" * 32}"', match=only("PUT"))


async def cut_uploads(remote: Remote) -> None:
    await remote.gate.reset_mid_body(PROBE_CUT_AT, match=only("PUT"))


OUTAGES = {
    "refused": refuse,
    "hung": hang,
    "reset": reset,
    "503 SlowDown": slow_down,
    "500": answers(500, "InternalError"),
    "403": answers(403, "AccessDenied"),
    "no such bucket": answers(404, "NoSuchBucket"),
    "wrong clock": answers(403, "RequestTimeTooSkewed"),
    "expired token": answers(400, "ExpiredToken"),
    "redirected": answers(301, "PermanentRedirect"),
    "200 that is no S3": portal,
    "200 without ETag": no_tag,
    "ETag of other bytes": other_tag,
    "upload cut": cut_uploads,
}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
async def test_outage_is_invisible_to_clients(
    remote: Remote, origin: FakeOrigin, outage: Callable[[Remote], Awaitable[None]]
) -> None:
    old = origin.gives("/old.png", make_image(seed=1))
    await remote.make_public()
    node = await remote.node(mode="redirect", store=HURRIED if outage is hang else {})
    await get(node, old)
    assert (await get(node, old))[0].status == 302
    await outage(remote)
    location = ""
    fresh = {origin.gives(f"/{n}.png", make_image(seed=n)): make_image(seed=n) for n in range(2, 6)}
    for url, body in fresh.items():
        response, received = await get(node, url)
        assert (response.status, received) == (200, body)
        assert response.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; stored"
        response, received = await get(node, url)
        assert (response.status, received) == (200, body), "served, because a redirect would lead nowhere"
        location = response.headers["Content-Location"]
        assert location.startswith("/images/")
    response, received = await get(node, old)
    assert (response.status, received) == (200, make_image(seed=1))
    assert len(node.files("records")) == 4
    report = await readyz(node)
    assert report["status"] == "degraded"
    assert report["store"]["reason"]
    await remote.gate.open()
    await replicated(node)
    assert sorted((await remote.stored("objects")).values()) == sorted([make_image(seed=1), *fresh.values()])
    assert len(await remote.stored("records")) == 5
    # The record goes first, and then the object.
    await until(lambda: node.files("objects") == node.files("records") == node.files("partial") == [])
    for url in fresh:
        assert (await get(node, url))[0].status == 302
    permanent = await node.client.get(location, allow_redirects=False)
    assert permanent.status == 302, "a URL handed out meanwhile stays valid"
    assert {origin.asked(f"/{n}.png") for n in range(2, 6)} == {1}


async def test_bucket_that_takes_only_the_probe_loses_no_image(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    await remote.gate.reset_mid_body(len(PROBE_BYTES) + 1, match=only("PUT"))
    fresh = {origin.gives(f"/{n}.png", make_image(seed=n)): make_image(seed=n) for n in range(2, 6)}
    for url, body in fresh.items():
        trials = remote.gate.count("GET", "/probe")
        response, received = await get(node, url)
        assert (response.status, received) == (200, body)
        assert response.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; stored"
        await remote.gate.until_seen("GET", "/probe", times=trials + 1)
        assert (await get(node, url))[1] == body
    await remote.gate.open()
    await replicated(node)
    assert sorted((await remote.stored("objects")).values()) == sorted(fresh.values())
    assert {origin.asked(f"/{n}.png") for n in range(2, 6)} == {1}


async def test_timeout_is_paid_once_before_the_breaker_opens(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(store=HURRIED)
    async with frozen(remote):
        await get(node, origin.gives("/0.png", make_image(seed=0)))
        seen = remote.gate.count("GET", "/records/") + remote.gate.count("PUT", "/objects/")
        for n in range(1, 10):
            assert (await get(node, origin.gives(f"/{n}.png", make_image(seed=n))))[1] == make_image(seed=n)
        assert remote.gate.count("GET", "/records/") + remote.gate.count("PUT", "/objects/") == seen
    await replicated(node)
    assert len(await remote.stored("objects")) == 10


async def test_hang_during_100_continue_costs_one_timeout(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(store=HURRIED)
    url = origin.gives("/large.png", png_of(3_000_000))
    await remote.gate.hang(match=only("PUT", "/objects/"))
    async with asyncio.timeout(20):
        assert (await get(node, url))[1] == png_of(3_000_000)
    await remote.gate.open()
    await replicated(node)
    assert list((await remote.stored("objects")).values()) == [png_of(3_000_000)]


@pytest.mark.parametrize("remote", ["rclone"], indirect=True)  # moto takes the first label of the host as the bucket
async def test_unresolvable_bucket_opens_the_breaker(
    remote: Remote, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = True
    resolve = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **how: Any) -> Any:
        if host != "s3.example":
            return resolve(host, *arguments, **how)
        if not here:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve("127.0.0.1", *arguments, **how)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    endpoint = f"http://s3.example:{remote.gate.endpoint.rpartition(':')[2]}"
    node = await remote.node(store={"url": f"s3://{remote.server.bucket}/pre?endpoint={endpoint}&region=us-east-1"})
    await get(node, origin.gives("/a.png", make_image(seed=1)))
    assert len(await remote.stored("objects")) == 1
    here = False
    await remote.gate.refuse()
    assert (await get(node, origin.gives("/b.png", make_image(seed=2))))[1] == make_image(seed=2)
    await remote.gate.open()
    assert (await readyz(node))["status"] == "degraded"
    here = True
    await replicated(node)
    assert len(await remote.stored("objects")) == 2


async def test_outage_without_a_fallback_stores_nothing(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(store={"fallback": ""})
    await remote.gate.refuse()
    response, body = await get(node, origin.gives("/a.png", make_image()))
    assert (response.status, body) == (200, make_image())
    assert "stored" not in response.headers["Cache-Status"].replace("not-stored", "")


async def test_unreachable_object_is_no_404(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    await get(await remote.node(), url)
    node = await remote.node("b")
    await remote.gate.refuse()
    origin.gives("/a.png", b"gone", status="404 Not Found")
    response, _ = await get(node, url)
    assert (response.status, (await response.json())["code"]) == (503, "storage_unavailable")
    await remote.gate.open()
    await until(lambda: _is_ready(node))
    assert (await get(node, url))[1] == make_image(), "an earlier failure does not count against it"


async def _is_ready(node: Imgkeep) -> bool:
    return bool((await readyz(node))["status"] == "ready")


# --- S5 to S10


async def test_conflict_is_settled_by_a_second_look(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    url = origin.gives("/a.png", make_image())
    conflict = S3_ERROR.format("ConditionalRequestConflict").encode()
    await remote.gate.answer(409, {}, conflict, match=only("PUT", "/records/"), times=1)
    assert (await get(node, url))[0].headers["Cache-Status"] == "imgkeep; fwd=uri-miss; stored"
    assert len(await remote.stored("records")) == 1
    assert (await readyz(node))["status"] == "ready"


@pytest.mark.parametrize("damage", ["cut", "flipped"])
async def test_cut_or_changed_body_is_never_served_as_the_image(
    remote: Remote, origin: FakeOrigin, damage: str
) -> None:
    url = origin.gives("/a.png", png_of(500_000))
    await get(await remote.node(), url)
    node = await remote.node("b")
    is_object = only("GET", "/objects/")
    await (
        remote.gate.cut_body(1000, match=is_object) if damage == "cut" else remote.gate.corrupt(1000, match=is_object)
    )
    with pytest.raises(aiohttp.ClientError):
        await get(node, url)
    await until(lambda: not node.files("partial"))
    assert not list((node.folder / "cache").rglob("*.png"))
    await remote.gate.open()
    await until(lambda: _is_ready(node))
    assert (await get(node, url))[1] == png_of(500_000)


async def test_damaged_object_is_quarantined_and_fetched_again(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(500_000))
    await get(await remote.node(), url)
    (name,) = await remote.stored("objects")
    damaged = bytes(500_000)
    await remote.server.put(name, damaged)
    node = await remote.node("b")
    with pytest.raises(aiohttp.ClientError):
        await get(node, url)
    assert await remote.stored("objects") == {}
    assert list((await remote.server.objects("pre/damaged/")).values()) == [damaged]
    assert (await get(node, url))[1] == png_of(500_000)
    assert await remote.stored("objects") == {name: png_of(500_000)}


async def test_cut_body_is_resumed(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(500_000))
    await get(await remote.node(), url)
    await remote.gate.cut_body(100_000, match=only("GET", "/objects/"), times=1)
    assert (await get(await remote.node("b"), url))[1] == png_of(500_000)


async def test_outbox_survives_a_restart_and_a_lost_database(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    await remote.gate.refuse()
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(5)]
    for url in urls:
        await get(node, url)
    await node.client.close()
    for path in node.folder.glob("imgkeep.db*"):
        path.unlink()
    node = await remote.node()
    assert [(await get(node, url))[1] for url in urls] == [make_image(seed=n) for n in range(5)]
    assert {origin.asked(f"/{n}.png") for n in range(5)} == {1}

    async def reply() -> bool:
        fallback = (await readyz(node))["fallback"]
        return fallback["waiting"] == 5 and "cannot be reached" in (fallback["last_error"] or "")

    await until(reply)
    await remote.gate.open()
    await replicated(node)
    assert sorted((await remote.stored("objects")).values()) == sorted(make_image(seed=n) for n in range(5))


async def test_second_outage_during_uploads_loses_no_image(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node(store=HURRIED)
    await remote.gate.refuse()
    for n in range(8):
        await get(node, origin.gives(f"/{n}.png", make_image(seed=n)))
    await remote.gate.open()
    await remote.gate.hang(match=only("PUT", "/records/"))
    await remote.gate.until_seen("PUT", "/records/", times=2)
    await remote.gate.open()
    await replicated(node)
    assert sorted((await remote.stored("objects")).values()) == sorted(make_image(seed=n) for n in range(8))
    assert len(await remote.stored("records")) == 8


async def test_first_of_two_uploads_under_one_key_stays(remote: Remote, origin: FakeOrigin) -> None:
    nodes = [await remote.node(name) for name in ("a", "b")]
    await remote.gate.refuse()
    url = origin.gives("/a.png", make_image(seed=1))
    first, _ = await get(nodes[0], url)
    origin.gives("/a.png", make_image(seed=2))
    await get(nodes[1], url)
    location = (await get(nodes[1], url))[0].headers["Content-Location"]
    await remote.gate.open()
    for node in nodes:
        await replicated(node)
    assert first.status == 200
    assert len(await remote.stored("records")) == 1
    assert sorted((await remote.stored("objects")).values()) == sorted([make_image(seed=1), make_image(seed=2)])
    assert len({(await get(node, url))[1] for node in nodes}) == 1, "both nodes show the image whose record stands"
    permanent = await nodes[0].client.get(location)
    assert await permanent.read() == make_image(seed=2), "a URL from the outage stays valid"


async def test_metrics_show_the_backlog_and_no_secret(
    remote: Remote, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    node = await remote.node(mode="presign")
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    link = (await get(node, url))[0].headers["Location"]
    await remote.gate.refuse()
    await get(node, origin.gives("/b.png", make_image(seed=2)))

    async def reply() -> bool:
        page = await (await node.client.get("/metrics")).text()
        return "imgkeep_outbox_images 1.0" in page and "imgkeep_store_breaker_open 1.0" in page

    await until(reply)
    page = await (await node.client.get("/metrics")).text() + str(await readyz(node)) + caplog.text
    for secret in (remote.server.secret, link.partition("?")[2], "X-Amz-Signature"):
        assert secret not in page


async def test_presigned_link_lives_no_longer_than_its_credentials(
    remote: Remote, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    node = await remote.node(mode="presign")
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    response, _ = await get(node, url)
    assert "X-Amz-Expires=600&" in response.headers["Location"]
    assert response.headers["Cache-Control"] in {"private, max-age=300", "private, max-age=299"}
