"""
A fill, told of between workers: both ends of it on the wire.

The body of an answer is a message and then steps. The message says what is fetched, and in which file it grows, or why
there will be none. A step is two numbers (`SharedFile`): how many bytes of the image there are by now, and how many of
these follow because they are in no file. As with any body, an end that is cut off is none.
"""

from __future__ import annotations

import asyncio
import os
import struct
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from imgkeep.core import errors
from imgkeep.core.errors import Busy, ImgkeepError, OriginError, StorageError
from imgkeep.core.layout import read_doubts, write_doubts
from imgkeep.core.records import Format
from imgkeep.images.fill import FillHead
from imgkeep.images.peer_fill import FillFailure, RemoteFill
from imgkeep.web.messages import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.images.fill import Fill

_SIZE: Final = struct.Struct(">I")
_STEP: Final = struct.Struct(">QI")


class Begun(msgspec.Struct, tag=True):
    """What is fetched. `head` is a `FillHead`, by names; without a `path` all bytes come with the steps."""

    head: dict[str, Any]
    path: bytes | None


FACTS: Final = frozenset({"origin_status", "retry_after_s"})
"""What the constructors of errors take besides the message."""


class Failed(msgspec.Struct, tag=True):
    """Why nothing is fetched: `FillFailure`, its error by the name of its class."""

    link: bytes | None
    error: str
    detail: str
    facts: dict[str, int | None]
    picture: tuple[str, bytes] | None = None
    place: str = ""
    cause: str = ""
    """Of a `StorageError`, for the record of the worker that follows."""


async def tell_fill(fill: Fill, head: FillHead) -> Telling:
    """Return what a worker that follows is told of a fill; small ones are not worth a file."""
    small = head.size is not None and head.size <= PIECE_BYTES
    trace = None if small else await fill.share_file()
    told = {**asdict(head), "format": head.format.name, "doubts": write_doubts(head.doubts)}
    path = None if trace is None else os.fsencode(trace.path)
    return Telling(_encode(Begun(told, path)), _send_along(fill) if trace is None else trace.steps, fill)


def tell_failure(failure: FillFailure) -> bytes:
    """Return what a worker that follows is told of a fill that has brought nothing."""
    error = failure.error
    facts = {
        name: value for name, value in vars(error).items() if name in FACTS and (value is None or type(value) is int)
    }
    picture = error.picture if isinstance(error, OriginError) else None
    place, cause = (error.place, error.cause) if isinstance(error, StorageError) else ("", "")
    return _encode(Failed(failure.link, type(error).__name__, str(error), facts, picture, place, cause))


async def read_fill(stream: aiohttp.StreamReader) -> RemoteFill | FillFailure:
    """
    Read what another worker tells of a fill.

    Raises:
        OriginError: It broke off before it had said anything.
    """
    (size,) = _SIZE.unpack(await _read(stream, _SIZE.size))
    message = msgspec.msgpack.decode(await _read(stream, size), type=Begun | Failed)
    if isinstance(message, Failed):
        return FillFailure(message.link, _make_error(message))
    told = {"format": Format[message.head["format"]], "doubts": read_doubts(message.head["doubts"])}
    head = FillHead(**{**message.head, **told})
    path = None if message.path is None else Path(os.fsdecode(message.path))
    return RemoteFill(head, path, _read_steps(stream))


class Telling:
    """What is told of a fill, as it goes over the wire. Implements `Readable`, from its beginning on."""

    def __init__(self, message: bytes, steps: AsyncIterator[tuple[int, bytes]], fill: Fill) -> None:
        self.message = message
        """Comes before what is read."""
        self._steps = steps
        self._fill = fill

    async def read(self, _offset: int, _size: int) -> bytes:
        async for height, data in self._steps:
            return _STEP.pack(height, len(data)) + data
        return b""

    async def aclose(self) -> None:
        await self._fill.aclose()


def _encode(message: Begun | Failed) -> bytes:
    data = msgspec.msgpack.encode(message)
    return _SIZE.pack(len(data)) + data


def _make_error(told: Failed) -> ImgkeepError:
    kind = getattr(errors, told.error, None)
    if not (isinstance(kind, type) and issubclass(kind, ImgkeepError)):
        return StorageError("another worker could not fetch the image")  # one that a newer version knows
    facts = told.facts if issubclass(kind, OriginError | Busy) else {}
    error: ImgkeepError = kind(told.detail, **facts)  # as its own constructor took them
    if isinstance(error, OriginError):
        error.picture = told.picture
    if isinstance(error, StorageError):
        error.place, error.cause = told.place, told.cause
    return error


async def _send_along(fill: Fill) -> AsyncIterator[tuple[int, bytes]]:
    """Yield all bytes of a fill as steps."""
    offset = 0
    while data := await fill.read(offset, PIECE_BYTES):
        offset += len(data)
        yield offset, data


async def _read_steps(stream: aiohttp.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the steps of an answer. Raises: OriginError: They broke off."""
    while begun := await _read_some(stream, _STEP.size):
        height, size = _STEP.unpack(begun + await _read(stream, _STEP.size - len(begun)))
        yield height, await _read(stream, size)


async def _read(stream: aiohttp.StreamReader, size: int) -> bytes:
    try:
        return await stream.readexactly(size)
    except (TimeoutError, aiohttp.ClientError, asyncio.IncompleteReadError):
        raise _broken() from None


async def _read_some(stream: aiohttp.StreamReader, size: int) -> bytes:
    try:
        return await stream.read(size)
    except (TimeoutError, aiohttp.ClientError):
        raise _broken() from None


def _broken() -> OriginError:
    return OriginError("the image broke off on its way from another worker")
