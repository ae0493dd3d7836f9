"""The S3 servers of the tests behave as these expect."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from tests.support.loopback import HOST, listens, port_of, reserve
from tests.support.s3.process import LEASH
from tests.support.s3.programs import KINDS
from tests.support.s3.servers import NAMES, S3Server

if TYPE_CHECKING:
    from collections.abc import Callable


SHORT_S = 0.2
"""Time without an event after which none is expected."""


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest, bucket: Callable[[str], S3Server]) -> S3Server:
    made = bucket(request.param)
    assert isinstance(made, S3Server)
    return made


async def test_object_is_listed_and_read_until_deleted(server: S3Server) -> None:
    assert await server.objects() == {}
    for key in ("v1/b", "v1/a", "v2/c"):
        await server.put(key, key.encode(), ContentType="image/png", Metadata={"name": "value"})
    assert await server.objects("v1/") == {"v1/a": b"v1/a", "v1/b": b"v1/b"}
    assert await server.get("v2/c") == b"v2/c"
    assert await server.get("v2/c", Range="bytes=1-2") == b"2/"
    head = await server.head("v2/c")
    assert head is not None
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (4, "image/png", {"name": "value"})
    await server.delete("v2/c")
    assert (await server.get("v2/c"), await server.head("v2/c")) == (None, None)
    assert set(await server.objects()) == {"v1/a", "v1/b"}


async def test_list_comes_in_pages(server: S3Server) -> None:
    for key in "abc":
        await server.put(key, b"body")
    async with server.client() as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket, PaginationConfig={"PageSize": 2})
        listed = [[item["Key"] for item in page["Contents"]] async for page in pages]
    assert listed == [["a", "b"], ["c"]]


async def test_buckets_of_a_server_share_nothing(server: S3Server, bucket: Callable[[str], S3Server]) -> None:
    await server.put("a", b"body")
    assert await bucket(server.name).objects() == {}


async def test_frozen_server_goes_on_after_a_thaw(server: S3Server) -> None:
    await server.put("a", b"body")
    server.freeze()
    asking = asyncio.create_task(server.get("a"))
    assert await asyncio.wait({asking}, timeout=SHORT_S) == (set(), {asking})
    server.thaw()
    assert await asking == b"body"


async def test_conditional_put_is_refused_or_ignored(server: S3Server) -> None:
    await server.put("a", b"first")
    if KINDS[server.name].conditional:
        with pytest.raises(ClientError, match="PreconditionFailed"):
            await server.put("a", b"second", IfNoneMatch="*")
        assert await server.get("a") == b"first"
    else:
        await server.put("a", b"second", IfNoneMatch="*")
        assert await server.get("a") == b"second"


async def test_server_starts_again_on_its_port(server: S3Server) -> None:
    await server.put("a", b"body")
    assert await server.get("a") == b"body"  # s3rver answers just before its write
    server.stop()
    assert not listens(server.port)
    await server.restart()
    assert await server.objects() == ({"a": b"body"} if KINDS[server.name].keeps else {})
    await server.put("b", b"body")
    assert await server.get("b") == b"body"


def test_port_stays_reserved_without_a_listener() -> None:
    with reserve() as holder, socket.socket() as other:
        assert not listens(port_of(holder))
        with pytest.raises(OSError, match="in use") as refused:
            other.bind((HOST, port_of(holder)))
        assert refused.value.errno == errno.EADDRINUSE


def test_server_ends_with_its_parent() -> None:
    start = """if True:
        import os, subprocess, sys
        print("started", flush=True)
        subprocess.run([sys.executable, "-ISc", sys.argv[1], str(os.getpid()), "cat"])
    """
    with subprocess.Popen(
        [sys.executable, "-ISc", start, LEASH], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"started\n"
        starter.stdin.write(b"cat runs\n")
        starter.stdin.flush()
        assert starter.stdout.readline() == b"cat runs\n"
        starter.kill()
        # Its standard output ends with the last process that has it; its standard input is still open.
        assert starter.stdout.read() == b""
