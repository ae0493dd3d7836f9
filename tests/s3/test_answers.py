"""Odd answers of a bucket: a true miss, faults, damage, and the images meanwhile."""

from __future__ import annotations

import asyncio
import resource
from hashlib import md5, sha256
from typing import TYPE_CHECKING

import aiohttp
import pytest

from imgkeep.bootstrap.storage import open_storage
from imgkeep.core.errors import Unreachable, WrittenByNewer
from imgkeep.core.records import Digest, Key
from imgkeep.core.store_url import S3Bucket
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.s3 import S3Client
from tests.support.image_requests import fast_path_of
from tests.support.images import make_image, png_of
from tests.support.program import serving
from tests.support.s3.misbehaving import only
from tests.support.s3.remote import MULTIPART_SIZE, get, only_aws, readyz, replicated
from tests.support.server import configuration
from tests.support.stores import NOON, record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.s3.gate import Gate
    from tests.support.s3.remote import Remote
    from tests.support.s3.servers import S3Server

NOT_OURS = b"<html><title>404 Not Found</title></html>"


@pytest.fixture
async def store(remote: Remote) -> AsyncIterator[BucketStore]:
    """Open the store of a bucket without a server."""
    store = BucketStore(S3Client(S3Bucket(remote.server.bucket, "pre", "us-east-1", remote.gate.endpoint), timeout_s=1))
    await store.open()
    yield store
    await store.aclose()


# --- misses and faults


async def test_foreign_404_is_no_miss(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    await get(await remote.node(), url)
    node = await remote.node("b")
    origin.gives("/a.png", b"gone", status="404 Not Found")
    await remote.gate.answer(404, {"Content-Type": "text/html"}, NOT_OURS)
    response, _ = await get(node, url)
    assert (response.status, (await response.json())["code"]) == (503, "storage_unavailable")
    assert (await readyz(node))["status"] == "degraded"
    await remote.gate.open()
    await replicated(node)
    assert (await get(node, url))[1] == make_image()


async def test_outbox_worker_works_where_a_proxy_breaks_head(remote: Remote, origin: FakeOrigin) -> None:
    node = await remote.node()
    await remote.gate.refuse()
    url = origin.gives("/a.png", make_image())
    await get(node, url)
    await remote.gate.open()
    await remote.gate.answer(404, {}, b"", match=only("HEAD"))
    await replicated(node)
    assert list((await remote.stored("objects")).values()) == [make_image()]
    assert (await get(node, url))[1] == make_image()


async def test_missing_object_gets_no_redirect(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    await get(await remote.node(), url)
    (name,) = await remote.stored("objects")
    await remote.server.delete(name)
    await remote.make_public()
    node = await remote.node("b", mode="redirect")
    response, body = await get(node, url)
    assert (response.status, body) == (200, make_image())
    assert origin.asked("/a.png") == 2
    assert list(await remote.stored("objects")) == [name]
    assert (await get(node, url))[0].status == 302


async def test_missing_permanent_url_is_looked_up_rarely(remote: Remote) -> None:
    node = await remote.node()
    path = f"/images/{'0' * 64}.png"
    for _ in range(5):
        assert (await node.client.get(path)).status == 404
    assert remote.gate.count("GET", "/objects/") == 1


# --- odd answers


@pytest.mark.parametrize(
    ("field", "value"),
    [("Last-Modified", "yesterday"), ("Last-Modified", None), ("Content-Length", None), ("Content-Type", None)],
    ids=str,
)
async def test_odd_fields_stop_no_background_task(
    remote: Remote, origin: FakeOrigin, field: str, value: str | None
) -> None:
    node = await remote.node()
    await remote.gate.refuse()
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(3)]
    for url in urls[:2]:
        await get(node, url)
    await remote.gate.open()
    await (remote.gate.strip_header(field) if value is None else remote.gate.set_header(field, value))
    assert (await get(node, urls[2]))[1] == make_image(seed=2)
    assert [(await get(node, url))[1] for url in urls] == [make_image(seed=n) for n in range(3)]
    await remote.gate.open()
    await replicated(node)
    assert len(await remote.stored("objects")) == len(await remote.stored("records")) == 3


async def test_slow_answer_has_a_timeout_as_a_whole(origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drip(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 1000", 'ETag: "0"')
        while True:
            await exchange.send(b"{")
            await asyncio.sleep(0.05)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    path = "v1/records/00/00.json"
    origin.on(f"/bucket/{path}", drip)
    place = S3Bucket("bucket", region="us-east-1", endpoint=origin.url(""), addressing="path")
    client = S3Client(place, timeout_s=0.3)
    await client.open()
    async with asyncio.timeout(20):
        opened = await client.get(path)
        assert opened is not None
        with pytest.raises(BucketError):
            await opened.stream.read_all(1000)
    await client.aclose()


async def test_followers_get_the_fault_of_the_bucket(remote: Remote, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def gone(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(b"gone", status="404 Not Found")

    node = await remote.node()
    url = origin.on("/a.png", gone)
    await remote.gate.refuse()
    asking = [asyncio.create_task(get(node, url)) for _ in range(3)]
    await until(lambda: origin.asked("/a.png") == 1)
    asking.append(asyncio.create_task(get(node, url)))
    await until(lambda: fast_path_of(node).shared_responses.followers == len(asking) - 1)
    go.set()
    assert [response.status for response, _ in await asyncio.gather(*asking)] == [503] * 4
    assert origin.asked("/a.png") == 1


# --- damage


async def test_record_changed_in_transit_stays(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    await get(await remote.node(), url)
    await remote.gate.corrupt(10, match=only("GET", "/records/"), times=1)
    assert (await get(await remote.node("b"), url))[0].headers["Cache-Status"] == "imgkeep; hit"
    assert await remote.server.objects("pre/damaged/") == {}
    await remote.gate.corrupt(10, match=only("GET", "/records/"))
    assert (await get(await remote.node("c"), url))[1] == make_image()
    assert len(await remote.server.objects("pre/damaged/")) == 1, "bytes that are wrong twice alike lie there so"


async def test_object_that_is_good_by_now_is_not_quarantined(
    remote: Remote, origin: FakeOrigin, store: BucketStore
) -> None:
    await get(await remote.node(), origin.gives("/a.png", make_image()))
    before = await remote.stored("objects")
    (path,) = before
    await store.quarantine_if_corrupt(
        path.rpartition("/")[2], Digest(sha256(b"other bytes of an earlier read").hexdigest())
    )
    assert await remote.stored("objects") == before


async def test_damaged_multipart_object_is_quarantined(remote: Remote, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(MULTIPART_SIZE))
    await get(await remote.node(), url)
    (path,) = await remote.stored("objects")
    async with remote.server.client() as client:
        place = {"Bucket": remote.server.bucket, "Key": path}
        upload = (await client.create_multipart_upload(**place))["UploadId"]
        part = await client.upload_part(**place, UploadId=upload, PartNumber=1, Body=bytes(MULTIPART_SIZE))
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        await client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload=parts)
    node = await remote.node("b")
    with pytest.raises(aiohttp.ClientError):
        await get(node, url)
    assert await remote.stored("objects") == {}
    assert list((await remote.server.objects("pre/damaged/")).values()) == [bytes(MULTIPART_SIZE)]
    assert (await get(node, url))[1] == png_of(MULTIPART_SIZE)


async def test_record_of_a_newer_version_is_neither_read_nor_replaced(
    remote: Remote, origin: FakeOrigin, store: BucketStore
) -> None:
    node = await remote.node()
    await get(node, origin.gives("/a.png", make_image()))
    (path,) = await remote.stored("records")
    newer = b'{"version": 99}'
    await remote.server.put(path, newer)
    with pytest.raises(WrittenByNewer):
        await store.find(Key(path.rpartition("/")[2].removesuffix(".json")))
    assert await remote.stored("records") == {path: newer}
    assert (await readyz(node))["status"] == "ready"


# --- images during a fault


async def test_failing_disk_costs_the_copy_only(
    bucket: Callable[[str], S3Server],
    gate_to: Callable[[S3Server], Awaitable[Gate]],
    origin: FakeOrigin,
    tmp_path: Path,
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    server = bucket("moto")
    settings = only_aws(server, (await gate_to(server)).endpoint)
    url = origin.gives("/a.png", png_of(900_000))
    folders = [tmp_path / name / "data" for name in "ab"]
    for folder in folders:
        folder.parent.mkdir()
    async with serving(folders[0], **settings) as program:
        assert (await program.img(url)).body == png_of(900_000)
    await origin.stop()
    async with serving(folders[1], prepare=limit, **settings) as program:
        for _ in range(2):
            answer = await program.img(url)
            assert (answer.status, answer.body) == (200, png_of(900_000))
        assert not list(folders[1].rglob("*.png"))


async def test_replacement_does_not_go_to_the_fallback(remote: Remote, tmp_path: Path) -> None:
    url = f"s3://{remote.server.bucket}/pre?endpoint={remote.gate.endpoint}&region=us-east-1"
    config = configuration(tmp_path / "x", store={"url": url, "fallback": f"file:{tmp_path / 'x'}", "timeout_s": 1})
    async with open_storage(config, clock=lambda: NOON) as parts:
        await remote.gate.refuse()
        for replaces in (None, Digest("0" * 64)):
            body = make_image(seed=1 if replaces else 2)
            draft = await parts.spool.begin(len(body))
            await draft.write(body)
            record = record_of(body, name=str(replaces))
            if replaces is None:
                assert (await parts.store.put(draft, record)).pending
            else:
                with pytest.raises(Unreachable):
                    await parts.store.put(draft, record, replaces)
            await draft.aclose()
        assert len(list((tmp_path / "x" / "v1").rglob("*.json"))) == 1


async def test_etag_of_a_multipart_object_is_that_of_s3(remote: Remote, origin: FakeOrigin) -> None:
    """Else only a read could tell a damaged object from a good one."""
    body = png_of(MULTIPART_SIZE)
    await get(await remote.node(), origin.gives("/a.png", body))
    head = await remote.server.head(next(iter(await remote.stored("objects"))))
    assert head is not None
    tags = [md5(body[at : at + 8_388_608], usedforsecurity=False).digest() for at in range(0, len(body), 8_388_608)]
    expected = f'"{md5(b"".join(tags), usedforsecurity=False).hexdigest()}-{len(tags)}"'
    assert head["ETag"] == expected
