"""
`OPTIONS` on images: what scripts of other sites may ask (WHATWG Fetch, "CORS-preflight request").

Images are for every page, and answers have `Access-Control-Allow-Origin: *`, with which browsers send no cookies. So
the answer is the same for each origin and method, and varies by the fields that are asked for. Each is allowed but
those that say who asks: neither a token nor the address of a client is a page's to tell.
`Access-Control-Allow-Private-Network` is not sent: a page of the public web needs no permission of ours to reach a
server on this machine or network.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from imgkeep.core.content_negotiation import allow_fields
from imgkeep.web.auth import AUTH

MAX_AGE_S: Final = 86_400
"""Time for which a browser may remember the answer; Firefox takes a day at most, Chromium two hours."""

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
    asked = ",".join(request.headers.getall("Access-Control-Request-Headers", []))
    return web.Response(status=204, headers={**HEADERS, "Access-Control-Allow-Headers": ", ".join(allow_fields(asked))})
