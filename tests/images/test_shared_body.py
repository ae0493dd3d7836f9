"""The watermark of a growing body, and its readers."""

from __future__ import annotations

import asyncio

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.images.shared_body import SharedBody, Watermark
from imgkeep.storage.memory import MemoryBody, MemorySpool
from tests.support.fakes import FakeSpool


async def test_readers_wait_for_more_than_they_have() -> None:
    watermark = Watermark()
    readers = [asyncio.create_task(watermark.wait_beyond(offset)) for offset in (0, 5, 9)]
    await asyncio.sleep(0)
    watermark.advance(0)
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers)
    watermark.advance(6)
    assert await readers[0] == 6
    assert await readers[1] == 6
    await asyncio.sleep(0)
    assert not readers[2].done()
    watermark.end()
    assert await readers[2] == 6
    assert await watermark.wait_beyond(100) == 6


async def test_cancelled_reader_cancels_no_other() -> None:
    watermark = Watermark()
    one, other = (asyncio.create_task(watermark.wait_beyond(0)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait([one])
    watermark.advance(1)
    assert await other == 1


async def test_error_follows_the_bytes_before_it() -> None:
    watermark = Watermark()
    watermark.advance(5)
    watermark.end(ValueError("cut"))
    assert await watermark.wait_beyond(4) == 5
    with pytest.raises(ValueError, match="cut"):
        await watermark.wait_beyond(5)


async def test_watermark_ends_once() -> None:
    watermark = Watermark()
    watermark.end()
    watermark.end(ValueError("too late"))
    assert await watermark.wait_beyond(0) == 0


async def test_body_continues_in_memory_when_the_disk_fails() -> None:
    disk, memory = FakeSpool(bytes_max=5), MemorySpool(100)
    body: SharedBody[str] = SharedBody(memory, recent_bytes_max=2)
    assert await body.begin(disk) is None
    assert await body.write(b"abc") is None
    fault = await body.write(b"defgh")
    assert str(fault) == "the disk is full"
    assert await body.write(b"ij") is None
    body.finish(body.written)
    body.hold()
    await body.aclose()
    assert await body.read(0, 100) == b"abcdefghij"
    await body.aclose()
    assert (memory.bytes_left, disk.drafts[0].closed) == (100, 1)


async def test_body_without_memory_fails_once() -> None:
    disk, memory = FakeSpool(bytes_max=5), MemorySpool(7)
    body: SharedBody[str] = SharedBody(memory)
    await body.begin(disk)
    await body.write(b"abc")
    with pytest.raises(StorageError, match="memory"):
        await body.write(b"defgh")
    body.advance(3)
    body.fail(StorageError("no memory"))
    assert await body.read(0, 100) == b"abc"
    with pytest.raises(StorageError):
        await body.wait_head()
    await body.aclose()
    assert memory.bytes_left == 7


async def test_parts_are_read_across_their_border() -> None:
    """As of a peer's fill: the file of another process, and then what that process could not write."""

    class File(MemoryBody):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    file, memory = File(b"abc"), MemorySpool(100)
    body: SharedBody[str] = SharedBody(memory)
    body.add_file(file)
    body.advance(3)
    await body.begin_in_memory(3)
    await body.write(b"def")
    body.finish(6)
    data = b""
    while piece := await body.read(len(data), 100):
        data += piece
    assert data == b"abcdef"
    assert await body.wait_for_size() == 6
    await body.aclose()
    assert (memory.bytes_left, file.closed) == (100, 1)
