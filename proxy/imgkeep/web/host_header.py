"""The `Host` field of requests: one, and well-formed (RFC 9112, 3.2), on the fast path or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from imgkeep.core.errors import InvalidRequest
from imgkeep.core.http_headers import read_host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@web.middleware
async def require_valid_host(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse a request without a valid `Host`, before a layer relies on it. With HTTP/1.0 the field may be absent."""
    lines = request.headers.getall("Host", [])
    is_missing = not lines and request.version >= HttpVersion11
    if is_missing or len(lines) > 1 or (lines and read_host(lines[0]) is None):
        raise InvalidRequest("a request needs one Host field with the name of this server")
    return await handler(request)
