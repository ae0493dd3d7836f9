"""
`OPTIONS` on images: what scripts of other sites may request (WHATWG Fetch, "CORS-preflight request").

Images are for every page, and responses have `Access-Control-Allow-Origin: *`, with which browsers send no cookies. So
the response is the same for each origin and method, and varies by the fields that the browser names. All fields are
allowed but those that identify the client: a page must send neither a token nor the address of a client.
The server does not send `Access-Control-Allow-Private-Network`: a page of the public web needs no permission to
reach a server on this machine or network.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from imgkeep.core.content_negotiation import allow_fields
from imgkeep.web.auth import AUTH

MAX_AGE_S: Final = 86_400
"""Time for which a browser may store the response; Firefox stores it for a day at most, Chromium for two hours."""

HEADERS: Final = {
    "Allow": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Max-Age": str(MAX_AGE_S),
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Vary": "Access-Control-Request-Headers",
}


async def preflight(request: web.Request) -> web.Response:
    """Allow what `GET` and `HEAD` take."""
    request.app[AUTH].require_own_host(request.headers.get("Host"))
    fields = ",".join(request.headers.getall("Access-Control-Request-Headers", []))
    allowed = ", ".join(allow_fields(fields))
    return web.Response(status=204, headers={**HEADERS, "Access-Control-Allow-Headers": allowed})
