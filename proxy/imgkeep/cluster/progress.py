"""
The progress of a fill between peers: both ends of `GET /fills/<key>` on the wire.

The body of the answer is a message and then steps. The message is the head of the fill, or why it failed. A step is two
numbers: the watermark, and the number of bytes that follow the step because no file that the peer reads has them. A
body without its last chunk is an interrupted fill, never a complete one.

A peer of the same machine asks with `SHARE_FILE`, and reads the file that the image grows in. Every other peer gets the
bytes, so it may run on another machine. What comes from there may have been altered on its way (`docs/security.md`): it
is read with limits, and never names a file.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import aiohttp
import msgspec

from imgkeep.core import errors
from imgkeep.core.errors import Busy, ImgkeepError, OriginError, StorageError
from imgkeep.core.layout import read_doubts, write_doubts
from imgkeep.core.records import Format
from imgkeep.images.fill import FillHead
from imgkeep.images.peer_fill import FillFailure, RemoteFill

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from imgkeep.images.shared_body import SharedBody

SHARE_FILE: Final = "share=file"
"""The query of a peer that can open files of this machine."""
PIECE_BYTES: Final = 32_768
"""Maximum number of bytes that follow one step; a smaller image is not worth a file."""
ERROR_FACTS: Final = frozenset({"origin_status", "retry_after_s"})
"""Arguments of the errors' constructors besides the message."""

MESSAGE_BYTES_MAX: Final = 4_194_304
"""Maximum size of the first message: a failure with the image of an error, which has a megabyte at most."""
STEP_BYTES_MAX: Final = 1_048_576
"""Maximum number of bytes that follow a step, also of a newer version."""

_MEDIA_TYPES: Final = frozenset(each.media_type for each in Format)
_SIZE: Final = struct.Struct(">I")
_STEP: Final = struct.Struct(">QI")


class HeadFields(msgspec.Struct):
    """A `FillHead` by names."""

    format: str
    size: Annotated[int, msgspec.Meta(ge=0)] | None
    etag: Annotated[str, msgspec.Meta(pattern=r'\A(?:W/)?"[!#-~]*"\Z')]
    """An entity tag (RFC 9110, 8.8.3), in ASCII."""
    storing: bool
    doubts: list[str]


class Head(msgspec.Struct, tag=True):
    """The head of a fill. Without a `path` all bytes come with the steps."""

    head: HeadFields
    path: bytes | None


class Failed(msgspec.Struct, tag=True):
    """A `FillFailure`, its error by the name of its class."""

    link: bytes | None
    error: str
    detail: str
    facts: dict[str, int | None]
    image: tuple[str, bytes] | None = None
    place: str = ""
    cause: str = ""
    """The cause of a `StorageError`, for the access log of the follower."""


async def write_fill(body: SharedBody[FillHead], head: FillHead, *, share_file: bool) -> AsyncGenerator[bytes]:
    """Yield the body of an answer. Raises: ImgkeepError: The fill failed; the body must end without its end."""
    is_small = head.size is not None and head.size <= PIECE_BYTES
    shared = await body.share_file() if share_file and not is_small else None
    fields = HeadFields(head.format.name, head.size, head.etag, head.storing, write_doubts(head.doubts))
    yield _encode(Head(fields, None if shared is None else os.fsencode(shared.path)))
    async for watermark, data in _read_all(body) if shared is None else shared.steps:
        yield _STEP.pack(watermark, len(data)) + data


def write_failure(failure: FillFailure) -> bytes:
    """Return the body of an answer about a fill that failed before its head."""
    error = failure.error
    facts = {
        name: value
        for name, value in vars(error).items()
        if name in ERROR_FACTS and (value is None or type(value) is int)
    }
    image = error.image if isinstance(error, OriginError) else None
    place, cause = (error.place, error.cause) if isinstance(error, StorageError) else ("", "")
    return _encode(Failed(failure.link, type(error).__name__, str(error), facts, image, place, cause))


def read_failure(data: bytes) -> FillFailure:
    """
    Read what `write_failure` returned.

    Raises:
        ValueError: It is no failure, or one of another version.
    """
    try:
        message = msgspec.msgpack.decode(data[_SIZE.size :], type=Failed)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    return FillFailure(message.link, _make_error(message))


async def read_fill(stream: aiohttp.StreamReader, *, bytes_max: int | None = None) -> RemoteFill | FillFailure:
    """
    Read the body of an answer.

    Args:
        stream: The body.
        bytes_max: Maximum size of an image that comes from another machine; `None`: it comes from this one.

    Raises:
        OriginError: It broke off before the end of the first message, or is none.
    """
    (size,) = _SIZE.unpack(await _read(stream, _SIZE.size))
    if size > MESSAGE_BYTES_MAX:
        raise _broken_off()
    try:
        message = msgspec.msgpack.decode(await _read(stream, size), type=Head | Failed)
        if isinstance(message, Failed):
            return FillFailure(message.link, _make_error(message))
        fields, path = message.head, message.path
        doubts = read_doubts(fields.doubts)
        head = FillHead(Format[fields.format], fields.size, fields.etag, storing=fields.storing, doubts=doubts)
    except (msgspec.MsgspecError, KeyError):  # a format of a newer version
        raise _broken_off() from None
    if bytes_max is None:
        return RemoteFill(head, None if path is None else Path(os.fsdecode(path)), _read_steps(stream))
    if path is not None or (head.size or 0) > bytes_max:
        raise _broken_off()
    return RemoteFill(head, None, _check_steps(_read_steps(stream), bytes_max if head.size is None else head.size))


def _encode(message: Head | Failed) -> bytes:
    data = msgspec.msgpack.encode(message)
    return _SIZE.pack(len(data)) + data


def _make_error(message: Failed) -> ImgkeepError:
    kind = getattr(errors, message.error, None)
    if not (isinstance(kind, type) and issubclass(kind, ImgkeepError) and hasattr(kind, "code")):
        return StorageError("another worker could not fetch the image")  # an error of a newer version
    if kind is errors.FilledByPeer:
        return StorageError("another worker could not fetch the image")  # which none sends
    facts = {name: message.facts[name] for name in _list_facts(kind) if name in message.facts}
    error: ImgkeepError = kind(message.detail, **facts)  # as its own constructor took them
    if isinstance(error, OriginError) and message.image is not None and message.image[0] in _MEDIA_TYPES:
        error.image = message.image
    if isinstance(error, StorageError):
        error.place, error.cause = message.place, message.cause
    return error


def _list_facts(kind: type[ImgkeepError]) -> frozenset[str]:
    if issubclass(kind, OriginError):
        return ERROR_FACTS
    return frozenset({"retry_after_s"}) if issubclass(kind, Busy) else frozenset()


async def _read_all(body: SharedBody[FillHead]) -> AsyncIterator[tuple[int, bytes]]:
    """Yield all bytes of a fill as steps."""
    offset = 0
    while data := await body.read(offset, PIECE_BYTES):
        offset += len(data)
        yield offset, data


async def _read_steps(stream: aiohttp.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the steps of an answer. Raises: OriginError: They broke off."""
    while begun := await _read_some(stream, _STEP.size):
        watermark, size = _STEP.unpack(begun + await _read(stream, _STEP.size - len(begun)))
        if size > STEP_BYTES_MAX:
            raise _broken_off()
        yield watermark, await _read(stream, size)


async def _check_steps(steps: AsyncIterator[tuple[int, bytes]], bytes_max: int) -> AsyncIterator[tuple[int, bytes]]:
    """Yield steps that bring all bytes, one after the other. Raises: OriginError: Some do not."""
    size = 0
    async for watermark, data in steps:
        size += len(data)
        if watermark != size or size > bytes_max:
            raise _broken_off()
        yield watermark, data


async def _read(stream: aiohttp.StreamReader, size: int) -> bytes:
    try:
        return await stream.readexactly(size)
    except (TimeoutError, aiohttp.ClientError, asyncio.IncompleteReadError):
        raise _broken_off() from None


async def _read_some(stream: aiohttp.StreamReader, size: int) -> bytes:
    try:
        return await stream.read(size)
    except (TimeoutError, aiohttp.ClientError):
        raise _broken_off() from None


def _broken_off() -> OriginError:
    return OriginError("the image broke off on its way from another worker")
