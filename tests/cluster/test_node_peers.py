"""Peers on other nodes, over real sockets: what a node follows, what it refuses, and what it does without."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from imgkeep.cluster.nodes import peer_client, peer_listener
from imgkeep.cluster.nodes.authentication import REQUEST_FIELD
from imgkeep.cluster.nodes.node_api import LocalWorkers
from imgkeep.cluster.progress import Head, HeadFields
from imgkeep.core.derived.names import PictureName
from imgkeep.core.errors import Busy, OriginError, SourceNotFound, StorageError
from imgkeep.core.records import Digest, Format
from imgkeep.images.failure_history import RecentFailure
from imgkeep.images.peer_fill import FillFailure, RemoteFill
from tests.support.nodes import (
    NOW,
    SECRET,
    FakeMembership,
    FakeNode,
    make_member,
    make_signer,
    node_listening,
    peers_of,
)
from tests.support.peer_fills import FakeBody, make_head, read_body
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from imgkeep.cluster.nodes.peers import NodePeers

KEY = "a" * 64
NAME = f"{'b' * 64}.png"
LARGE = bytes(range(256)) * 2000
REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with node_listening() as one:
        yield one


async def read_all(fill: RemoteFill) -> bytes:
    return b"".join([data async for _, data in fill.steps])


async def follow_to_the_end(peers: NodePeers, begun: Callable[[], None]) -> None:
    """Follow a fill; call `begun` after the first bytes."""
    async with peers.follow("there/1", KEY) as fill:
        assert isinstance(fill, RemoteFill)
        await anext(aiter(fill.steps))
        begun()
        await read_all(fill)


async def say(node: FakeNode, data: bytes) -> bytes:
    """Send bytes to a node, and return all that it answers before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:  # it closed before it had read all
        return REFUSAL
    finally:
        writer.close()


def request(node: FakeNode, target: str, *fields: str, method: str = "GET", signer: Any = None) -> bytes:
    """Return a signed request."""
    proof = (signer or make_signer()).sign(node.member.advertise_url, method, target).field
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", "Host: x", f"{REQUEST_FIELD}: {proof}", *fields, "", ""]
    ).encode()


async def test_fill_of_another_node_is_followed(node: FakeNode) -> None:
    body = FakeBody(LARGE)
    node.images.fills[KEY] = (body, make_head(len(LARGE)))
    async with peers_of(FakeMembership(node.member)) as (peers, outcomes):
        async with peers.follow("there/1", KEY) as fill:
            assert isinstance(fill, RemoteFill)
            assert (fill.head, fill.path) == (make_head(len(LARGE)), None)
            assert await read_all(fill) == LARGE
        async with peers.follow("there/1", "c" * 64) as nothing:
            assert nothing is None
        await peers.wait("there/1", KEY)
    assert body.is_closed
    assert node.images.waited_for == [KEY]
    assert outcomes == {"answered": 3}


async def test_first_bytes_arrive_before_the_last_ones(node: FakeNode) -> None:
    more = asyncio.Event()
    body = FakeBody(b"begin", more=more)
    node.images.fills[KEY] = (body, make_head())
    async with peers_of(FakeMembership(node.member)) as (peers, _), peers.follow("there/1", KEY) as fill:
        assert isinstance(fill, RemoteFill)
        assert await anext(aiter(fill.steps)) == (5, b"begin")
        body.data += b"end"
        more.set()
        assert await read_all(fill) == b"end"


async def test_failure_is_reported_and_a_break_is_no_end(node: FakeNode) -> None:
    node.images.fills[KEY] = FillFailure(b"link", SourceNotFound("the origin says 404", origin_status=404))
    node.images.fills[f"try.{KEY}"] = (FakeBody(b"half", StorageError("no")), make_head())
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        async with peers.follow("there/1", KEY) as failure:
            assert isinstance(failure, FillFailure)
            assert (type(failure.error), failure.link) == (SourceNotFound, b"link")
        async with peers.follow("there/1", f"try.{KEY}") as fill:
            assert isinstance(fill, RemoteFill)
            with pytest.raises(OriginError):
                await read_all(fill)


@pytest.mark.parametrize("holder", ["there/2", "here/1", "nowhere", "there"])
async def test_member_that_is_not_live_is_busy_at_once(holder: str) -> None:
    async with peers_of(FakeMembership(make_member("there/1", ""))) as (peers, _):
        with pytest.raises(Busy):
            async with peers.follow(holder, KEY):
                pass
        with pytest.raises(Busy):
            await peers.wait(holder, KEY)


async def test_node_that_refuses_connections_is_busy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with peers_of(FakeMembership(make_member("there/1", url))) as (peers, outcomes):
        with pytest.raises(Busy):
            await peers.wait("there/1", KEY)
    assert outcomes == {"unreachable": 1}


async def test_node_that_answers_nothing_is_busy_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        member = make_member("there/1", f"http://127.0.0.1:{sock.getsockname()[1]}")
        async with peers_of(FakeMembership(member), stall_timeout_s=0.05) as (peers, _):
            with pytest.raises(Busy):
                async with peers.follow("there/1", KEY):
                    pass


async def test_end_of_a_member_ends_what_follows_it(node: FakeNode) -> None:
    node.images.fills[KEY] = (FakeBody(b"begin", more=asyncio.Event()), make_head())
    membership = FakeMembership(node.member)
    async with peers_of(membership) as (peers, _):
        with pytest.raises(OriginError):
            await follow_to_the_end(peers, lambda: membership.end("there/1"))
    body = node.images.fills[KEY][0]  # type: ignore[index]
    await until(lambda: body.is_closed)


async def test_end_of_a_member_ends_the_wait_for_its_head() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        membership = FakeMembership(make_member("there/1", f"http://127.0.0.1:{sock.getsockname()[1]}"))
        async with peers_of(membership) as (peers, _):
            waiting = asyncio.create_task(peers.wait("there/1", KEY))
            connection, _ = await asyncio.to_thread(sock.accept)
            membership.end("there/1")
            with pytest.raises(Busy):
                await waiting
            connection.close()


@pytest.mark.parametrize("data", [b"", b"picture" * 100_000], ids=["marker", "picture"])
async def test_picture_comes_from_the_node_that_made_it(node: FakeNode, data: bytes) -> None:
    name = PictureName(Digest(KEY), "w320", Format.WEBP, negotiated=True)
    node.objects[f"{KEY}/w320-auto.webp"] = FakeBody(data)
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        body = await peers.fetch_picture("there/1", name)
        assert body is not None
        assert await read_body(body) == data
        await body.aclose()
        assert await peers.fetch_picture("there/1", replace(name, negotiated=False)) is None


async def test_derivation_is_waited_for_by_the_name_of_its_lease(node: FakeNode) -> None:
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        await peers.wait("there/1", f"picture.{KEY}")
    assert node.images.waited_for == [f"picture.{KEY}"]


async def test_end_of_a_node_ends_the_wait_for_its_object() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        membership = FakeMembership(make_member("there/1", f"http://127.0.0.1:{sock.getsockname()[1]}"))
        async with peers_of(membership, stall_timeout_s=5) as (peers, _):
            fetching = asyncio.create_task(peers.fetch_object("there", f"{KEY}.png"))
            connection, _ = await asyncio.to_thread(sock.accept)
            membership.end("there/1")
            with pytest.raises(Busy):
                await asyncio.wait_for(fetching, 1)
            connection.close()


async def test_follower_that_leaves_frees_the_body(node: FakeNode) -> None:
    body = FakeBody(b"begin", more=asyncio.Event())
    node.images.fills[KEY] = (body, make_head())
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        async with peers.follow("there/1", KEY):
            pass
        await until(lambda: body.is_closed)


async def test_wrong_secret_is_busy_and_counted_on_both_sides(node: FakeNode) -> None:
    async with peers_of(FakeMembership(node.member), secret=SECRET[::-1]) as (peers, outcomes):
        with pytest.raises(Busy):
            await peers.wait("there/1", KEY)
    assert (outcomes, node.refused) == ({"refused": 1}, {"signature": 1})
    assert node.images.waited_for == []


async def test_node_without_the_secret_is_believed_nothing() -> None:
    """A stranger at the address of a node cannot make its answers count."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nImgkeep-Peer-Answer: " + b"0" * 64 + b"\r\n\r\n")
        writer.close()

    stranger = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with stranger:
        member = make_member("there/1", f"http://127.0.0.1:{stranger.sockets[0].getsockname()[1]}")
        async with peers_of(FakeMembership(member)) as (peers, outcomes):
            with pytest.raises(Busy):
                await peers.wait("there/1", KEY)
    assert outcomes == {"refused": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda node: request(node, f"/fills/{KEY}", signer=make_signer(secret=SECRET[::-1])),
        lambda node: request(node, f"/fills/{KEY}", signer=make_signer(now=NOW - 300)),
        lambda node: request(node, f"/fills/{KEY}").replace(KEY.encode(), b"b" * 64),
        lambda node: request(node, f"/fills/{KEY}").replace(b"here/1", b"here/2"),
        lambda node: request(node, f"/fills/{KEY}").replace(b"GET", b"HEAD"),
        lambda node: request(node, f"/fills/{KEY}", "Content-Length: 1000000000"),
        lambda node: request(node, f"/fills/{KEY}", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n",
        lambda node: request(node, f"/fills/{KEY}", "X: " + "x" * 10_000),
        lambda _: b"GET /fills/" + b"a" * 100_000,
        lambda _: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda _: b"GET /api/images HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda _: b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda _: b"GET /objects/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda _: b"POST /notices HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        lambda _: b"GET / HTTP/1.1\r\nHost: x\r\nExpect: nonsense\r\n\r\n",
        lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        lambda _: b"nonsense\r\n\r\n",
    ],
    ids=[
        "secret", "time", "path", "member", "method", "length", "chunks", "field", "line", "root", "api", "metrics",
        "dots", "expect", "expectation", "tls", "nonsense",
    ],
)  # fmt: skip
async def test_all_that_is_refused_gets_one_answer(node: FakeNode, make: Callable[[FakeNode], bytes]) -> None:
    node.images.fills[KEY] = (FakeBody(LARGE), make_head())
    assert await say(node, make(node)) == REFUSAL
    assert node.refused.total() == 1


async def test_captured_request_is_refused(node: FakeNode) -> None:
    captured = request(node, f"/fills/{KEY}", "Connection: close")
    assert (await say(node, captured)).startswith(b"HTTP/1.1 204 ")
    assert await say(node, captured) == REFUSAL
    assert node.refused == {"replay": 1}


@pytest.mark.parametrize(
    "target",
    [
        "/", "/api/images", "/metrics", "/notices", f"/fills/{KEY}/../../metrics", f"/fills/{KEY.upper()}",
        "/fills/%2e%2e%2fetc", f"/objects/{KEY}", f"/objects/..%2f{NAME}", f"/objects/{NAME}/", f"//{NAME}",
    ],
)  # fmt: skip
async def test_peer_finds_nothing_but_the_routes(node: FakeNode, target: str) -> None:
    assert (await say(node, request(node, target, "Connection: close"))).startswith(b"HTTP/1.1 404 ")


async def test_answer_tells_no_name_of_a_program_to_a_stranger(node: FakeNode) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{node.member.advertise_url}/fills/{KEY}") as response:
        assert (response.status, dict(response.headers)) == (401, {"Content-Length": "0", "Connection": "close"})


async def test_flood_of_connections_keeps_no_peer_out(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_listener, "STRANGERS_MAX", 4)
    strangers = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(50)]
    try:
        async with peers_of(FakeMembership(node.member)) as (peers, _):
            await peers.wait("there/1", KEY)
        oldest = [reader for reader, _ in strangers[:45]]
        async with asyncio.timeout(10):
            assert {await reader.read() for reader in oldest} == {b""}
        assert node.refused["connections"] >= 45
    finally:
        for _, writer in strangers:
            writer.close()


async def test_silent_connection_is_closed(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_listener, "HEAD_TIMEOUT_S", 0.05)
    assert await say(node, request(node, f"/fills/{KEY}")[:-2]) == b""


async def test_too_many_peers_are_refused(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_listener, "CONNECTIONS_MAX", 1)
    node.images.fills[KEY] = (FakeBody(b"begin", more=asyncio.Event()), make_head())
    async with peers_of(FakeMembership(node.member)) as (peers, _), peers.follow("there/1", KEY):
        with pytest.raises(Busy):
            await peers.wait("there/1", KEY)
    assert node.refused == {"connections": 1}


async def test_busy_where_all_connections_are_in_use(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_client, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(peer_client, "CONNECT_TIMEOUT_S", 0.05)
    node.images.fills[KEY] = (FakeBody(b"begin", more=asyncio.Event()), make_head())
    async with peers_of(FakeMembership(node.member)) as (peers, _), peers.follow("there/1", KEY):
        with pytest.raises(Busy):
            await peers.wait("there/1", KEY)


async def test_peer_that_reads_nothing_is_cut_off(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkeep.cluster.fill_route.STALL_TIMEOUT_S", 0.05)
    body = FakeBody(bytes(50_000_000))
    node.images.fills[KEY] = (body, make_head())
    _, writer = await asyncio.open_connection("127.0.0.1", node.port, limit=1)
    try:
        writer.write(request(node, f"/fills/{KEY}"))
        await until(lambda: body.is_closed)
    finally:
        writer.close()


def message(path: bytes | None = None, *, size: int | None = None, etag: str = '"e"', format: str = "PNG") -> bytes:  # noqa: A002
    data = msgspec.msgpack.encode(Head(HeadFields(format, size, etag, storing=True, doubts=[]), path))
    return struct.pack(">I", len(data)) + data


def step(watermark: int, data: bytes, size: int | None = None) -> bytes:
    return struct.pack(">QI", watermark, len(data) if size is None else size) + data


@pytest.mark.parametrize(
    "body",
    [
        message(b"/etc/passwd"),
        message(size=1_000_001),
        message(size=-1),
        message(etag='"e"\r\nSet-Cookie: a=b'),
        message(format="EXE"),
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\x00",
        b"",
    ],
    ids=["path", "large", "negative", "etag", "format", "huge message", "no message", "empty"],
)
async def test_altered_head_is_busy(node: FakeNode, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    await serve_altered(node, monkeypatch, body)
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        with pytest.raises(Busy):
            async with peers.follow("there/1", KEY):
                pass


@pytest.mark.parametrize(
    "steps",
    [
        step(3, b"ab"),
        step(1, b"a") + step(1, b"b"),
        step(2, b"ab") + step(4, b"cd"),
        step(2, b"", 2**32 - 1),
        step(2**60, b""),
    ],
    ids=["ahead", "behind", "longer than said", "huge step", "far ahead"],
)
async def test_altered_steps_break_off(node: FakeNode, monkeypatch: pytest.MonkeyPatch, steps: bytes) -> None:
    await serve_altered(node, monkeypatch, message(size=3) + steps)
    async with peers_of(FakeMembership(node.member)) as (peers, _), peers.follow("there/1", KEY) as fill:
        assert isinstance(fill, RemoteFill)
        with pytest.raises(OriginError):
            await read_all(fill)


async def serve_altered(node: FakeNode, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Have a node answer with other bytes, as if they were altered on their way."""

    async def altered(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        yield body

    node.images.fills[KEY] = (FakeBody(b""), make_head())
    monkeypatch.setattr("imgkeep.cluster.fill_route.write_fill", altered)


async def test_object_comes_with_its_size(node: FakeNode) -> None:
    node.objects[NAME] = FakeBody(LARGE)
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        for holder in ("there", "there/1"):
            body = await peers.fetch_object(holder, NAME)
            assert body is not None
            assert await body.wait_for_size() == len(LARGE)
            assert await read_body(body) == LARGE
            await body.aclose()
        assert await peers.fetch_object("there", NAME.replace("png", "gif")) is None
        for holder in ("here", "gone"):
            with pytest.raises(Busy):
                await peers.fetch_object(holder, NAME)


async def test_object_that_breaks_off_is_an_error(node: FakeNode) -> None:
    node.objects[NAME] = FakeBody(LARGE, StorageError("the disk fails"), size=len(LARGE) + 1)
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        body = await peers.fetch_object("there", NAME)
        assert body is not None
        with pytest.raises(StorageError):
            await body.read(5, 100)
        with pytest.raises(StorageError):
            await read_body(body)
        await body.aclose()


async def test_too_large_object_is_refused(node: FakeNode) -> None:
    node.objects[NAME] = FakeBody(bytes(1_000_001))
    async with peers_of(FakeMembership(node.member)) as (peers, _):
        with pytest.raises(StorageError):
            await peers.fetch_object("there", NAME)


async def test_failures_of_all_nodes_that_answer(node: FakeNode) -> None:
    at = datetime(2026, 11, 30, tzinfo=UTC)
    node.failures.append(
        RecentFailure(
            key=KEY, host="h", provider=None, code="c", detail="d", origin_status=None, count=1, first_at=at, last_at=at
        )
    )
    second = make_member("there/2", node.member.advertise_url)
    dead = make_member("dead/1", "http://127.0.0.1:1")
    async with peers_of(FakeMembership(node.member, second, dead)) as (peers, _):
        assert await peers.failures() == [node.failures]


async def test_worker_passes_on_the_fill_of_another_one(node: FakeNode) -> None:
    """A request that reaches another worker of the node than the one with the fill."""

    class OtherWorkers:
        """The other workers, whose socket is that of a node here."""

        async def request(self, holder: str, method: str, path: str) -> aiohttp.ClientResponse:
            if holder == "dead":
                raise aiohttp.ClientConnectionError
            proof = signer.sign(node.member.advertise_url, method, path).field
            return await session.get(f"{node.member.advertise_url}{path}", headers={REQUEST_FIELD: proof})

    signer = make_signer()
    held = {KEY: "other", "c" * 64: "other", "d" * 64: "dead", f"try.{KEY}": "other"}
    others: Any = OtherWorkers()
    node.images.fills[KEY] = (FakeBody(LARGE), make_head())
    node.images.fills[f"try.{KEY}"] = (FakeBody(b"half", StorageError("no")), make_head())
    async with (
        aiohttp.ClientSession() as session,
        node_listening(workers=LocalWorkers(others, held.get)) as first,
        peers_of(FakeMembership(first.member)) as (peers, _),
    ):
        async with peers.follow("there/1", KEY) as fill:
            assert isinstance(fill, RemoteFill)
            assert await read_all(fill) == LARGE
        async with peers.follow("there/1", "c" * 64) as nothing:
            assert nothing is None
        await peers.wait("there/1", "c" * 64)
        with pytest.raises(Busy):
            await peers.wait("there/1", "d" * 64)
        async with peers.follow("there/1", f"try.{KEY}") as fill:
            assert isinstance(fill, RemoteFill)
            with pytest.raises(OriginError):
                await read_all(fill)
        await peers.wait("there/1", "e" * 64)
    assert (node.images.waited_for, first.images.waited_for) == (["c" * 64], ["e" * 64])
