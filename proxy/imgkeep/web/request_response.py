"""
Requests for images, and their responses: the same types for aiohttp and for the fast path.

The handlers of images take an `ImageRequest` and return an `HttpResponse`. `aiohttp_adapter.py` and
`fastpath/response_writer.py` send it, each at the client's own speed. When a body breaks off, they break the connection
off too, so that no client takes a part for the whole.

Values that are made for each request are not frozen: to make a frozen data class takes three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.errors import StorageError
from imgkeep.web.client_presence import ClientPresence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multidict import MultiMapping

    from imgkeep.images.shared_body import SharedBody
    from imgkeep.storage.interfaces import Body
    from imgkeep.web.request_state import RequestLog

PIECE_BYTES: Final = 32_768
"""Maximum number of bytes in memory for one slow reader; the rest waits in the file."""


@dataclass(slots=True)
class ImageRequest:
    """
    A GET or HEAD request for an image.

    Attributes:
        route: The pattern of its path, as metrics and records name it.
        name: The last part of the path, where the route leaves it open.
        target: The request target as it came, undecoded.
        remote: The address of the peer, or the name of its socket.
        accepts_chunked: Whether the client notices that a body of unknown size was cut: not with HTTP/1.0.
        presence: Tells whether the client is still connected.
        varies: Whether the response depends on `Accept`.
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
    varies: bool = False

    def field(self, name: str) -> str | None:
        """Return a field's value, its lines combined (RFC 9110, 5.3); `None` if it is absent."""
        lines = self.fields.getall(name, [])
        return ", ".join(lines) if lines else None


@dataclass(slots=True)
class BodyRange:
    """
    The bytes of a body from `start` to `end`, or to its own end while its size is unknown; `first` are the first ones.

    The holder closes the body.
    """

    body: Body
    start: int
    end: int | None
    first: bytes
    growing: SharedBody[Any] | None = None
    """The body while a fill still fetches it: other readers may join."""

    async def read(self, offset: int) -> bytes:
        """
        Return the next piece; nothing at the end.

        Raises:
            ImgkeepError: The bytes that should follow cannot be read.
        """
        piece = await self.body.read(offset, piece_size(offset, self.end))
        if not piece and self.end is not None and offset < self.end:
            raise StorageError("a body is shorter than its size")
        return piece


@dataclass(slots=True)
class HttpResponse:
    """
    A response, ready to be sent.

    Attributes:
        headers: All header fields but `Date`, `Server`, and the length of a `body` that is bytes.
        body: `None`: the response has none.
    """

    status: int
    headers: dict[str, str]
    body: bytes | BodyRange | None = None


def piece_size(offset: int, end: int | None) -> int:
    """Return the size of the piece at `offset` of a body that ends at `end`."""
    return PIECE_BYTES if end is None else min(PIECE_BYTES, end - offset)


def encode_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode header fields as they go over the wire, each with its end of line."""
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode()


def encode_response_head(response: HttpResponse, date_and_server: bytes, *, head: bool) -> bytes:
    """
    Encode the head of a response as it goes over the wire, with the encoded fields `date_and_server` at its end.

    Raises:
        ValueError: A field has more than one line.
    """
    headers, body = response.headers, response.body
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    if "Content-Length" not in headers:
        if isinstance(body, BodyRange) or (head and body is None and response.status == HTTPStatus.OK):
            lines.append("Transfer-Encoding: chunked\r\n")
        elif response.status != HTTPStatus.NOT_MODIFIED:
            lines.append(f"Content-Length: {len(body or b'')}\r\n")
    text = "".join(lines)
    if text.count("\n") != len(lines):
        raise ValueError("a header field has more than one line")
    return b"".join((text.encode(), date_and_server, b"\r\n"))
