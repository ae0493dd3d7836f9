"""
Bodies of requests to the API: JSON of a known form, documents, and files; bounded in bytes, in time, and in how many at
once.

Rules:
- Bodies arrive as the client sent them: `admission.py` refuses content codings.
- An unknown field is an error that names the field, so that the client notices a misspelt name.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from imgkeep.core.errors import Busy, InvalidRequest
from imgkeep.web.request_state import ADMISSION

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

BODY_BYTES_MAX: Final = 33_554_432
"""Maximum size of JSON: 10,000 links of 3 kB, or an image of 24 MB as a data URL. Larger images come as files."""
LARGE_BODY_BYTES: Final = 65_536
"""Size from which a body is large: its decoding would block the event loop."""
LARGE_BODIES_MAX: Final = 4
"""Maximum number of large bodies at a time: each is read whole, so four take some 400 MB in the worst case."""
QUEUE_TIMEOUT_S: Final = 30
"""Timeout for a large body that waits for a slot."""
READ_TIMEOUT_S: Final = 20
"""Timeout for a pause within a body."""
BODY_TIMEOUT_S: Final = 300
"""Timeout for a whole body."""
PIECE_BYTES: Final = 65_536

JSON: Final = "application/json"
FORMS: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""Types that a page can send to other sites without a preflight (WHATWG Fetch, "CORS-safelisted request-header")."""

MALFORMED_BODY: Final = (ValueError, LookupError, RuntimeError, AssertionError, HttpProcessingError)
"""Errors that aiohttp raises about a malformed multipart body (3.14)."""

_UNKNOWN: Final = re.compile(r"Object contains unknown field `([A-Za-z_][\w-]{0,39})`")

T = TypeVar("T")


class RequestBodies:
    """Reads bodies, and bounds how many large ones are in memory at once."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(LARGE_BODIES_MAX)

    async def read_json(self, request: web.Request, form: type[T]) -> T:
        """
        Return the body as `form`, a msgspec type.

        Raises:
            InvalidRequest: The body is no JSON, or not of this form.
            Busy: Too many large bodies are being read.
            HTTPException: 408, 413 or 415.
        """
        if request.content_type != JSON:
            raise unsupported_media_type(f"the body has to be JSON: Content-Type: {JSON}", JSON)
        async with self.reserve(request):
            return await read_json(request, form)

    @asynccontextmanager
    async def reserve(self, request: web.Request) -> AsyncGenerator[None]:
        """
        Reserve memory for the body of a request, and for the result, until the end of the block.

        Raises:
            Busy: Too many large bodies are in memory.
            HTTPException: 413.
        """
        _require_size(request[ADMISSION].body_bytes or 0, BODY_BYTES_MAX)
        if is_small(request):
            yield
            return
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise Busy("too many large requests are being read", retry_after_s=5) from None
        try:
            yield
        finally:
            self._slots.release()


BODIES: Final = web.AppKey("request_bodies", RequestBodies)


def is_small(request: web.Request) -> bool:
    """Tell whether the declared size of the body is small."""
    size = request[ADMISSION].body_bytes
    return size is not None and size <= LARGE_BODY_BYTES


async def read_json(request: web.Request, form: type[T]) -> T:
    """
    Return the body as `form`, a msgspec type. The caller has reserved memory for it.

    Raises:
        InvalidRequest: The body is no JSON, or not of this form.
        HTTPException: 408 or 413.
    """
    data = await read_whole(request)
    return decode(data, form) if is_small(request) else await asyncio.to_thread(decode, data, form)


async def read_whole(request: web.Request, *, bytes_max: int = BODY_BYTES_MAX) -> bytearray:
    """
    Return the body as it came. The caller has reserved memory for it.

    Raises:
        HTTPException: 408 or 413.
    """
    _require_size(request[ADMISSION].body_bytes or 0, bytes_max)
    data = bytearray()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S) as limit:
            end = loop.time() + BODY_TIMEOUT_S
            async for piece in request.content.iter_any():
                data += piece
                _require_size(len(data), bytes_max)
                limit.reschedule(min(end, loop.time() + READ_TIMEOUT_S))
    except TimeoutError:
        raise body_timeout() from None
    return data


def decode(data: bytes | bytearray, form: type[T]) -> T:
    """
    Decode JSON.

    Raises:
        InvalidRequest: The body is no JSON, or not of this form.
    """
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_describe_error(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not JSON") from None


async def read_file(request: web.Request, name: str) -> tuple[AsyncIterator[bytes], int | None]:
    """
    Return the file in the field `name` of a multipart body (RFC 7578), its first field, and the maximum of its size.

    Raises:
        InvalidRequest: The first field is no such file.
        HTTPException: 408 or 415.
    """
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            part = await (await request.multipart()).next()
    except TimeoutError:
        raise body_timeout() from None
    except MALFORMED_BODY:
        raise InvalidRequest("the body is not multipart/form-data") from None
    if not isinstance(part, BodyPartReader) or part.name != name:
        raise InvalidRequest(f"the first field of the form has to be the file, under the name {name}")
    if part.headers.get("Content-Encoding") or part.headers.get("Content-Transfer-Encoding", "binary") != "binary":
        raise web.HTTPUnsupportedMediaType(text="the file must not be encoded")
    return _pieces(part), request[ADMISSION].body_bytes


async def read_pieces(request: web.Request) -> AsyncIterator[bytes]:
    """
    Yield the body itself, piece by piece as it comes; the caller bounds its size.

    Raises:
        InvalidRequest: The body is shorter than declared.
        HTTPException: 408.
    """
    end = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
    while True:
        try:
            async with asyncio.timeout_at(min(end, asyncio.get_running_loop().time() + READ_TIMEOUT_S)):
                piece = await request.content.read(PIECE_BYTES)
        except TimeoutError:
            raise body_timeout() from None
        except MALFORMED_BODY:
            raise InvalidRequest("the body ends before the image does") from None
        if not piece:
            return
        yield piece


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    end = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
    while True:
        try:
            async with asyncio.timeout_at(min(end, asyncio.get_running_loop().time() + READ_TIMEOUT_S)):
                piece = await part.read_chunk(PIECE_BYTES)
        except TimeoutError:
            raise body_timeout() from None
        except MALFORMED_BODY:
            raise InvalidRequest("the form ends before the file does") from None
        if not piece:
            return
        yield bytes(piece)


def has_body(request: web.Request) -> bool:
    """
    Tell whether the request has a body.

    Raises:
        HTTPUnsupportedMediaType: A page of another site may have sent the request, as a form, empty or not.
    """
    if "Content-Type" in request.headers and request.content_type in FORMS:
        raise unsupported_media_type(f"the body has to be JSON (Content-Type: {JSON}), or left out", JSON)
    return request.body_exists


def unsupported_media_type(detail: str, *forms: str) -> web.HTTPException:
    """Return the error for a body whose media type is none of `forms` (RFC 9110, 15.5.16)."""
    return web.HTTPUnsupportedMediaType(text=detail, headers={"Accept": ", ".join(forms)})


def body_timeout() -> web.HTTPException:
    """Return the error for a body that has paused for too long."""
    return web.HTTPRequestTimeout(text="the body comes too slowly")


def _require_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise web.HTTPRequestEntityTooLarge(bytes_max, 0, text=f"the body is larger than {bytes_max} bytes")


def _describe_error(error: str) -> str:
    """Return the mistake and its place; repeat an unknown name only if it looks like a name."""
    what, _, path = error.partition(" - at ")
    place = path.strip("`$.") or "the body"
    if what.startswith("Object contains unknown field"):
        unknown = _UNKNOWN.fullmatch(what)
        what = f"unknown field {unknown[1]}" if unknown else "unknown field"
    elif what.startswith("Invalid enum value"):
        what = "none of the values that it may have"
    return f"{place}: {what[:1].lower()}{what[1:].replace('`', '')}"
