"""The gate forwards requests, and injects the faults that it is given, and no other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
)

from tests.support.loopback import HOST, port_of
from tests.support.s3.gate import Gate
from tests.support.s3.misbehaving import only, s3_error
from tests.support.s3.recording import Head, Line, pieces, response_framing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.s3.servers import S3Server


BODY = bytes(range(256)) * 1000
BROKEN_OFF = (ConnectionClosedError, EndpointConnectionError)
"""aiohttp reports a reset as the latter, as if there had been no connection."""
SHORT_S = 0.2
"""Time without an event after which none is expected."""


@pytest.fixture
def behind(bucket: Callable[[str], S3Server]) -> S3Server:
    """Give a bucket at the port of its own server."""
    return bucket("rclone")


@pytest.fixture
async def gate(behind: S3Server, gate_to: Callable[[S3Server], Awaitable[Gate]]) -> Gate:
    return await gate_to(behind)


@pytest.fixture
def server(behind: S3Server, gate: Gate) -> S3Server:
    """Give the bucket at the port of the gate."""
    return behind.through(gate.endpoint)


@asynccontextmanager
async def calling(gate: Gate) -> AsyncGenerator[Line]:
    """Connect to a gate, for requests that no S3 client sends."""
    line = await Line.connect(HOST, int(gate.endpoint.rpartition(":")[2]))
    yield line
    line.close()


async def receive(line: Line, method: str = "GET") -> tuple[Head, bytes]:
    head = await Head.read(line.reader)
    return head, b"".join([piece async for piece in pieces(line.reader, response_framing(head, method))])


async def stays_silent(asking: asyncio.Task[Any]) -> None:
    """Require that no answer comes, and close."""
    assert await asyncio.wait({asking}, timeout=SHORT_S) == (set(), {asking})
    asking.cancel()
    await asyncio.wait({asking})


async def stored(server: S3Server) -> S3Server:
    await server.put("objects/a", BODY)
    return server


# --- an open gate


async def test_open_gate_changes_nothing(server: S3Server, behind: S3Server, gate: Gate) -> None:
    await server.put("objects/a", BODY, Metadata={"name": "value"})
    assert await behind.objects() == await server.objects() == {"objects/a": BODY}
    assert await server.get("objects/a", Range="bytes=-3") == BODY[-3:]
    assert await server.head("objects/b") is None
    path = f"/{behind.bucket}/objects"
    assert [(seen.method, seen.path, seen.status) for seen in gate.seen] == [
        ("PUT", f"{path}/a", 200),
        ("GET", f"/{behind.bucket}?list-type=2&prefix=&encoding-type=url", 200),
        ("GET", f"{path}/a", 200),
        ("GET", f"{path}/a", 200),  # rclone answers a range with 200
        ("HEAD", f"{path}/b", 404),
    ]
    assert gate.seen[0].headers["x-amz-meta-name"] == "value"
    assert (gate.count("GET"), gate.count("GET", "/objects/"), gate.count("DELETE")) == (3, 2, 0)


async def test_connection_serves_many_requests(server: S3Server, gate: Gate) -> None:
    async with server.client() as client:
        for number in range(3):
            await client.put_object(Bucket=server.bucket, Key=f"{number}", Body=BODY)
            await client.head_object(Bucket=server.bucket, Key=f"{number}")
            answer = await client.get_object(Bucket=server.bucket, Key=f"{number}")
            async with answer["Body"] as stream:
                assert await stream.read() == BODY
    assert (len(gate.seen), gate.connections) == (9, 1)


async def test_chunked_request_passes_whole(origin: FakeOrigin) -> None:
    received: list[bytes] = []

    async def script(exchange: Exchange) -> None:
        assert exchange.reader is not None
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        received.append(await exchange.reader.readuntil(b"0\r\n\r\n"))
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    origin.on("/", script)
    gate = Gate(HOST, origin.port)
    await gate.start()
    async with calling(gate) as line:
        await line.send(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert (await Head.read(line.reader)).status == 100
        await line.send(b"4\r\nbody\r\n0\r\n\r\n")
        assert (await receive(line))[1] == b"abcde"
    assert received == [b"4\r\nbody\r\n0\r\n\r\n"]
    await gate.stop()


async def test_stopped_server_breaks_the_connection(server: S3Server, behind: S3Server) -> None:
    behind.stop()
    with pytest.raises(BROKEN_OFF):
        await server.get("objects/a")


# --- faults of the network


async def test_refused_port_accepts_again(server: S3Server, gate: Gate) -> None:
    await stored(server)
    endpoint = gate.endpoint
    await gate.refuse()
    with pytest.raises(EndpointConnectionError):
        await server.get("objects/a")
    await gate.open()
    assert gate.endpoint == endpoint
    assert await server.get("objects/a") == BODY


async def test_refusing_breaks_open_connections(server: S3Server, gate: Gate) -> None:
    async with calling(gate) as line:
        await gate.hang()
        await line.send(b"GET / HTTP/1.1\r\n\r\n")
        await gate.until_seen("GET")
        await gate.refuse()
        with pytest.raises(ConnectionResetError):
            await line.reader.read()
    await gate.open()
    await stored(server)


async def test_hanging_request_is_neither_answered_nor_forwarded(
    server: S3Server, behind: S3Server, gate: Gate
) -> None:
    await gate.hang()
    asking = asyncio.create_task(server.put("objects/a", BODY))
    await gate.until_seen("PUT")
    await stays_silent(asking)
    assert gate.seen[0].headers["expect"] == "100-continue"
    assert gate.seen[0].status is None
    assert await behind.objects() == {}
    await gate.open()
    await stored(server)


async def test_transfers_under_way_hang_too(origin: FakeOrigin) -> None:
    more = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 8")
        await exchange.send(b"half")
        await more.wait()
        await exchange.send(b"rest")

    origin.on("/", script)
    gate = Gate(HOST, origin.port)
    await gate.start()
    async with calling(gate) as line:
        await line.send(b"GET / HTTP/1.1\r\n\r\n")
        await Head.read(line.reader)
        assert await line.reader.readexactly(4) == b"half"
        await gate.hang()
        more.set()
        await stays_silent(asyncio.create_task(line.reader.read(1)))
    await gate.stop()


async def test_reset_request_never_reaches_the_server(server: S3Server, behind: S3Server, gate: Gate) -> None:
    await gate.reset()
    with pytest.raises(BROKEN_OFF):
        await server.put("objects/a", BODY)
    assert {seen.status for seen in gate.seen} == {None}
    assert await behind.objects() == {}


async def test_body_is_reset_after_the_given_bytes(origin: FakeOrigin) -> None:
    received = asyncio.get_running_loop().create_future()

    async def script(exchange: Exchange) -> None:
        assert exchange.reader is not None
        data = await exchange.reader.readexactly(5)
        try:
            await exchange.reader.read()
        except ConnectionResetError:
            received.set_result(data)

    origin.on("/", script)
    gate = Gate(HOST, origin.port)
    await gate.start()
    await gate.reset_mid_body(5)
    async with calling(gate) as line:
        await line.send(b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nbody body")
        assert await received == b"body "
        with pytest.raises(ConnectionResetError):
            await line.reader.read()
    await gate.stop()


async def test_reset_upload_is_not_stored(server: S3Server, behind: S3Server, gate: Gate) -> None:
    await gate.reset_mid_body(100_000)
    with pytest.raises(BROKEN_OFF):
        await server.put("objects/a", BODY)
    await server.put("objects/b", b"less")
    assert await behind.objects() == {"objects/b": b"less"}


# --- answers of another server


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (403, "RequestTimeTooSkewed"),
        (400, "ExpiredToken"),
        (404, "NoSuchBucket"),
        (301, "PermanentRedirect"),
    ],
)
async def test_client_understands_the_errors(
    server: S3Server, behind: S3Server, gate: Gate, status: int, code: str
) -> None:
    # Without this field a client that is redirected asks for the bucket's region, is redirected, and so forth.
    await gate.do(s3_error(status, code, {"x-amz-bucket-region": "eu-central-1"}))
    for asking in (server.put("objects/a", BODY), server.get("objects/a")):
        with pytest.raises(ClientError) as failed:
            await asking
        assert failed.value.response["Error"]["Code"] == code
        assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert {seen.status for seen in gate.seen} == {status}
    assert await behind.objects() == {}


async def test_request_is_read_whole_before_its_answer(gate: Gate) -> None:
    await gate.slow_down()
    async with calling(gate) as line:
        await line.send(b"PUT /a HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert (await Head.read(line.reader)).status == 100
        await line.send(b"bodyPUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        for _ in range(2):
            head, body = await receive(line)
            assert head.status == 503
            assert b"<Code>SlowDown</Code>" in body
        await line.send(b"HEAD /c HTTP/1.1\r\n\r\nGET /d HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert (await receive(line, "HEAD"))[1] == b""
        assert b"SlowDown" in (await receive(line))[1]
        assert await line.reader.read() == b""
    assert [(seen.method, seen.path, seen.status) for seen in gate.seen] == [
        ("PUT", "/a", 503),
        ("PUT", "/b", 503),
        ("HEAD", "/c", 503),
        ("GET", "/d", 503),
    ]


async def test_any_answer_can_be_given(server: S3Server, gate: Gate) -> None:
    await gate.answer(200, {"Content-Type": "text/html"}, b"<h1>Log in to use this network</h1>")
    assert await server.get("objects/a") == b"<h1>Log in to use this network</h1>"
    assert "ETag" not in await server.put("objects/a", BODY)
    await gate.answer(200, {"ETag": '"other"'})
    assert (await server.put("objects/a", BODY))["ETag"] == '"other"'


async def test_fault_applies_to_matches_as_often_as_given(server: S3Server, behind: S3Server, gate: Gate) -> None:
    await gate.slow_down(match=only("PUT", "/objects/"), times=2)
    await server.put("records/a", b"record")
    for _ in range(2):
        with pytest.raises(ClientError, match="SlowDown"):
            await server.put("objects/a", BODY)
    await server.put("objects/a", BODY)
    assert await behind.objects() == {"objects/a": BODY, "records/a": b"record"}
    assert [seen.status for seen in gate.seen if seen.method == "PUT"] == [200, 503, 503, 200]


# --- altered responses


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_body_is_cut_after_the_given_bytes(origin: FakeOrigin, *, reset: bool) -> None:
    origin.gives("/objects/a", BODY)
    gate = Gate(HOST, origin.port)
    await gate.start()
    await gate.cut_body(100_000, reset=reset, match=only("GET", "/objects/"))
    async with calling(gate) as line:
        await line.send(b"GET /objects/a HTTP/1.1\r\n\r\n")
        head = await Head.read(line.reader)
        assert (head.status, head.get("Content-Length")) == (200, f"{len(BODY)}")
        assert await line.reader.readexactly(100_000) == BODY[:100_000]
        if reset:
            with pytest.raises(ConnectionResetError):
                await line.reader.read()
        else:
            assert await line.reader.read() == b""
    await gate.stop()


async def test_one_byte_of_a_body_is_flipped(server: S3Server, gate: Gate) -> None:
    await stored(server)
    await gate.corrupt(70_000)
    body = await server.get("objects/a")
    assert body is not None
    assert [place for place in range(len(BODY)) if body[place : place + 1] != BODY[place : place + 1]] == [70_000]


async def test_response_fields_are_removed_and_set(server: S3Server, gate: Gate) -> None:
    await gate.strip_header("etag", match=only("PUT"))
    assert "ETag" not in await server.put("objects/a", BODY)
    await gate.set_header("ETag", '"other"')
    head = await server.head("objects/a")
    assert head is not None
    assert head["ETag"] == '"other"'


async def test_body_without_length_ends_with_the_connection(server: S3Server, gate: Gate) -> None:
    await stored(server)
    await gate.strip_header("Content-Length")
    assert await server.get("objects/a") == BODY


# --- helpers of tests


async def test_stopped_gate_releases_its_port(behind: S3Server) -> None:
    gate = Gate(HOST, behind.port)
    await gate.start()
    assert port_of(gate._holder) != behind.port
    await gate.stop()
    with pytest.raises(OSError, match="Bad file descriptor"):
        port_of(gate._holder)
