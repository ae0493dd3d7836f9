"""The peer API over HTTP: who gets in, what a peer can ask, and how a body ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import msgspec
import pytest

from imgkeep.cluster.notice import Notice
from imgkeep.cluster.progress import read_fill
from imgkeep.cluster.workers.peers import SECRET_FIELD
from imgkeep.cluster.workers.worker_api import make_worker_api
from imgkeep.cluster.workers.worker_info import WorkerInfo
from imgkeep.core.errors import OriginError, SourceNotFound, StorageError
from imgkeep.core.records import Digest, Key
from imgkeep.images.peer_fill import FillFailure, RemoteFill
from imgkeep.web.api_relay import receive_relayed
from tests.support.peer_fills import FakeBody, FakeImages, make_head

if TYPE_CHECKING:
    from aiohttp.test_utils import TestClient
    from pytest_aiohttp.plugin import AiohttpClient

SECRET = "the secret of this run"
KEY = "a" * 64
DATA = b"some image" * 10


@pytest.fixture
def images() -> FakeImages:
    return FakeImages()


@pytest.fixture
def learned() -> list[Any]:
    return []


@pytest.fixture
async def client(aiohttp_client: AiohttpClient, images: FakeImages, learned: list[Any]) -> TestClient[Any, Any]:
    async def learn(*what: Any) -> None:
        if what[0] == ["fault"]:
            raise StorageError("the disk is full")
        learned.append(what)

    service: Any = images
    info = WorkerInfo("0.1", 0, 2, "/nowhere", SECRET)
    app = make_worker_api(
        info, service, wait=images.wait_for_fill, learn=learn, counters=lambda: b"counters", failures=list
    )
    return await aiohttp_client(app, headers={SECRET_FIELD: SECRET})


@pytest.mark.parametrize("secret", ["", SECRET[:-1], SECRET.upper()])
async def test_wrong_secret_is_refused_and_cut_off(client: TestClient[Any, Any], secret: str) -> None:
    async with client.get("/metrics", headers={SECRET_FIELD: secret}) as response:
        assert response.status == 403
        assert response.headers["Connection"] == "close"


async def test_peer_follows_a_fill(client: TestClient[Any, Any], images: FakeImages) -> None:
    body = FakeBody(DATA)
    images.fills[KEY] = body, make_head()
    async with client.get(f"/fills/{KEY}") as response:
        fill = await read_fill(response.content)
        assert isinstance(fill, RemoteFill)
        assert (fill.head, fill.path) == (make_head(), None)
        assert b"".join([data async for _, data in fill.steps]) == DATA
    assert body.is_closed


async def test_fill_that_breaks_off_has_no_end(client: TestClient[Any, Any], images: FakeImages) -> None:
    body = FakeBody(DATA, OriginError("it broke off"))
    images.fills[KEY] = body, make_head()
    async with client.get(f"/fills/{KEY}") as response:
        fill = await read_fill(response.content)
        assert isinstance(fill, RemoteFill)
        with pytest.raises(OriginError):
            _ = [step async for step in fill.steps]
    assert body.is_closed


async def test_unexpected_failure_of_a_fill_is_no_second_response(
    aiohttp_client: AiohttpClient, images: FakeImages
) -> None:
    service: Any = images
    app = make_worker_api(
        WorkerInfo("0.1", 0, 2, "/nowhere", SECRET),
        service,
        wait=images.wait_for_fill,
        learn=AsyncMock(),
        counters=bytes,
        failures=list,
    )
    receive_relayed(app)
    client = await aiohttp_client(app, headers={SECRET_FIELD: SECRET})
    body = FakeBody(DATA, RuntimeError("a mistake"))
    images.fills[KEY] = body, make_head()
    async with client.get(f"/fills/{KEY}") as response:
        fill = await read_fill(response.content)
        assert isinstance(fill, RemoteFill)
        with pytest.raises(OriginError):
            [data async for _, data in fill.steps]
    assert body.is_closed


async def test_failed_fill_is_reported(client: TestClient[Any, Any], images: FakeImages) -> None:
    images.fills[f"try.{KEY}"] = FillFailure(b"link", SourceNotFound("the origin says 404", origin_status=404))
    async with client.get(f"/fills/try.{KEY}") as response:
        failure = await read_fill(response.content)
    assert isinstance(failure, FillFailure)
    assert (type(failure.error), failure.link) == (SourceNotFound, b"link")


async def test_no_fill_is_no_content(client: TestClient[Any, Any], images: FakeImages) -> None:
    async with client.get(f"/fills/{KEY}") as response:
        assert response.status == 204
    async with client.get(f"/fills/{KEY}/end") as response:
        assert response.status == 204
    assert images.waited_for == [KEY]
    async with client.get("/fills/nonsense") as response:
        assert response.status == 404


async def test_notice_is_learned_before_it_is_confirmed(client: TestClient[Any, Any], learned: list[Any]) -> None:
    notice = Notice([Digest("b")], [Key("c")], {"d": 4}, [Digest("u")])
    for body, status in ((msgspec.msgpack.encode(notice), 204), (b"\x01", 400)):
        async with client.post("/notices", data=body) as response:
            assert response.status == status
            assert response.headers["Connection"] == "close", "a connection that carried a body"
    async with client.post("/notices", data=msgspec.msgpack.encode(Notice([Digest("fault")]))) as response:
        assert response.status == 503
    assert learned == [(["b"], ["c"], {"d": 4}, ["u"])]


async def test_counters_and_failures_are_shown(client: TestClient[Any, Any]) -> None:
    async with client.get("/metrics") as response:
        assert await response.read() == b"counters"
    async with client.get("/failures") as response:
        assert msgspec.msgpack.decode(await response.read()) == []
