"""Both ends of a fill on the wire: what a follower reads is what the fill has."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from imgkeep.cluster.progress import PIECE_BYTES, read_fill, write_fill
from imgkeep.core.errors import OriginError
from imgkeep.core.records import Doubt, Format
from imgkeep.images.fill import FillHead
from imgkeep.images.peer_fill import RemoteFill
from imgkeep.images.shared_body import SharedFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LARGE = bytes(range(256)) * 400


@dataclass
class FakeBody:
    """A body that has come whole."""

    data: bytes
    shared: list[SharedFile] = field(default_factory=list)

    async def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    async def share_file(self) -> SharedFile:
        self.shared.append(SharedFile(Path("/draft"), self._steps()))
        return self.shared[-1]

    async def _steps(self) -> AsyncIterator[tuple[int, bytes]]:
        yield 1000, b""
        yield len(self.data), b""


def head_of(data: bytes) -> FillHead:
    return FillHead(Format.PNG, len(data), '"etag"', storing=True, doubts=frozenset({Doubt.INCOMPLETE}))


async def send(body: FakeBody, *, share_file: bool) -> tuple[bytes, StreamReader]:
    shared: Any = body
    sent = b"".join([piece async for piece in write_fill(shared, head_of(body.data), share_file=share_file)])
    stream = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16, loop=asyncio.get_running_loop())
    return sent, stream


async def receive(stream: StreamReader) -> tuple[RemoteFill, list[tuple[int, bytes]]]:
    fill = await read_fill(stream)
    assert isinstance(fill, RemoteFill)
    return fill, [step async for step in fill.steps]


async def test_peer_of_another_machine_gets_all_bytes_and_no_path() -> None:
    body = FakeBody(LARGE)
    sent, stream = await send(body, share_file=False)
    assert b"/draft" not in sent
    stream.feed_data(sent)
    stream.feed_eof()
    fill, steps = await receive(stream)
    assert (fill.head, fill.path, body.shared) == (head_of(LARGE), None, [])
    assert b"".join(data for _, data in steps) == LARGE
    assert [position for position, _ in steps][-1] == len(LARGE)
    assert max(len(data) for _, data in steps) <= PIECE_BYTES


async def test_peer_of_this_machine_gets_a_path_and_positions() -> None:
    sent, stream = await send(FakeBody(LARGE), share_file=True)
    stream.feed_data(sent)
    stream.feed_eof()
    fill, steps = await receive(stream)
    assert (fill.head, fill.path) == (head_of(LARGE), Path("/draft"))
    assert steps == [(1000, b""), (len(LARGE), b"")]


async def test_small_image_is_not_worth_a_file() -> None:
    body = FakeBody(LARGE[:PIECE_BYTES])
    sent, stream = await send(body, share_file=True)
    stream.feed_data(sent)
    stream.feed_eof()
    fill, steps = await receive(stream)
    assert (fill.path, steps) == (None, [(PIECE_BYTES, body.data)])


@pytest.mark.parametrize("missing", [1, PIECE_BYTES, len(LARGE)])
async def test_progress_that_breaks_off_is_an_error(missing: int) -> None:
    sent, stream = await send(FakeBody(LARGE), share_file=False)
    stream.feed_data(sent[:-missing])
    stream.feed_eof()
    with pytest.raises(OriginError):
        await receive(stream)
