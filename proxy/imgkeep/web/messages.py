"""
What is asked for an image and what is answered, whichever way the request came: by aiohttp, or without it.

The handlers of images take an `ImageRequest` and return an `HttpResponse`. Who sends it is another matter: `connection.py` writes the
answer to a plain request itself, and `as_aiohttp_handler` makes a handler one of aiohttp's, for all other requests. Either
sends the bytes at the client's own speed. When a body breaks off, the connection is broken off too, so that no client
takes a part for the whole.

What is made for each request is not frozen: to make a frozen data class takes three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.web.client_presence import ClientPresence

if TYPE_CHECKING:
    from multidict import MultiMapping

    from imgkeep.images.context import Growing
    from imgkeep.storage.interfaces import Readable
    from imgkeep.web.context import RequestLog

PIECE_BYTES: Final = 32_768
"""What a slow reader holds in memory at most; the rest waits in the file."""


@dataclass(slots=True)
class ImageRequest:
    """
    A GET or HEAD request for an image.

    Attributes:
        route: What it counts as: the pattern of its path.
        name: The last part of the path, where the route leaves it open.
        target: The request target as it came, undecoded.
        remote: The address of the peer, or how it is called.
        presence: Tells whether its client is still there.
        accepts_chunked: Whether the client can tell that a body of unknown size was cut: not with HTTP/1.0.
    """

    route: str
    name: str
    head: bool
    target: str
    fields: MultiMapping[str]
    remote: str
    accepts_chunked: bool
    request_log: RequestLog
    presence: ClientPresence = field(default_factory=ClientPresence)

    def field(self, name: str) -> str | None:
        """Return a field's value, its lines combined (RFC 9110, 5.3); `None` if it is absent."""
        lines = self.fields.getall(name, [])
        return ", ".join(lines) if lines else None


@dataclass(slots=True)
class BodyRange:
    """
    The bytes of a body from `start` to `end`, to its own end where that is not known yet; `first` are the first ones.

    Whoever gets one closes the body.
    """

    body: Readable
    start: int
    end: int | None
    first: bytes
    growing: Growing | None = None
    """The body, where it is still on its way: others may join its readers."""

    async def read(self, offset: int) -> bytes:
        """
        Return the next piece; nothing at the end.

        Raises:
            ImgkeepError: There are no more bytes, though there ought to be.
        """
        piece = await self.body.read(offset, piece_size(offset, self.end))
        if not piece and self.end is not None and offset < self.end:
            raise StorageError("a body is shorter than it was said to be")
        return piece


@dataclass(slots=True)
class HttpResponse:
    """
    An answer, ready to be sent. `headers` say all but who sends it, when, and how long `body` is if that is bytes;
    `None` is the body of an answer that has none.
    """

    status: int
    headers: dict[str, str]
    body: bytes | BodyRange | None = None


def piece_size(offset: int, end: int | None) -> int:
    return PIECE_BYTES if end is None else min(PIECE_BYTES, end - offset)


def encode_response_head(answer: HttpResponse, signature: bytes, *, head: bool) -> bytes:
    """Return the head of an answer as it goes over the wire; `signature` says who sends it, and when."""
    headers, body = answer.headers, answer.body
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    if "Content-Length" not in headers:
        if isinstance(body, BodyRange) or (head and body is None and answer.status == HTTPStatus.OK):
            lines.append("Transfer-Encoding: chunked\r\n")
        elif answer.status != HTTPStatus.NOT_MODIFIED:
            lines.append(f"Content-Length: {len(body or b'')}\r\n")
    text = "".join(lines)
    if text.count("\n") != len(lines):
        raise ValueError("a header field has more than one line")
    return b"".join((text.encode(), signature, b"\r\n"))
