"""
Admission: judges the head of a request as the client sent it, in the process that holds the client's connection.

Rules:
- Admission judges access to the API before it reads a byte of the body, and before anything goes to another worker. A
  handler of the API relies on the result (`ADMISSION`) and judges no field of a client again.
- The server decompresses nothing for a client: a kilobyte can become a gigabyte, and a body whose length is not the
  declared one is where two readers of a connection come to disagree. Every route refuses a content coding.
- `100 Continue` invites a body, so admission sends it after both (RFC 9110, 10.1.1).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11, web

from imgkeep.web.auth import AUTH
from imgkeep.web.request_state import ADMISSION, Admission

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

API_PREFIX: Final = "/api/"
"""Prefix of the paths that need access."""

_TEXT: Final = re.compile(r"[\t\x20-\x7e]*")


@web.middleware
async def admission(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Admit a request, or raise why not; a request without a route goes on to its 404."""
    resource = request.match_info.route.resource
    if resource is None:
        return await handler(request)
    needs_access = resource.canonical.startswith(API_PREFIX)
    if needs_access:
        auth = request.app[AUTH]
        auth.require_api_access(request)
        request[ADMISSION] = Admission(auth.base_url(request), request.content_length)
    reject_content_codings(request)
    if needs_access:
        _reject_non_ascii_type(request)
        await _send_continue(request)
    return await handler(request)


async def defer_continue(_request: web.Request) -> None:
    """Leave `Expect` to `admission`: aiohttp's own handler runs before anything is judged."""


def reject_content_codings(request: web.Request) -> None:
    """
    Reject a body that would have to be decompressed.

    Raises:
        HTTPUnsupportedMediaType: The request names a content coding.
    """
    codings = ",".join(request.headers.getall("Content-Encoding", [])).lower().split(",")
    if any(coding.strip(" \t") not in {"", "identity"} for coding in codings):
        # RFC 9110, 12.5.3
        text, headers = "the body must not be compressed (Content-Encoding)", {"Accept-Encoding": "identity"}
        raise web.HTTPUnsupportedMediaType(text=text, headers=headers)


def _reject_non_ascii_type(request: web.Request) -> None:
    """Reject a type that cannot be relayed to another worker as it came (RFC 9110, 8.3.1: tokens and quoted ASCII)."""
    if _TEXT.fullmatch(request.headers.get("Content-Type", "")) is None:
        raise web.HTTPUnsupportedMediaType(text="Content-Type must be ASCII")


async def _send_continue(request: web.Request) -> None:
    if request.version == HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no byte of the response was sent yet
