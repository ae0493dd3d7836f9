"""
`OPTIONS` on images: what scripts of other sites may ask (WHATWG Fetch, "CORS-preflight request").

Images are for every page, and answers have `Access-Control-Allow-Origin: *`, with which browsers send no cookies. So
one answer is right for each origin, method and field that is asked about, and it varies by none of them.
`Authorization` is not allowed: a token of the API has no business in a page of another site.
`Access-Control-Allow-Private-Network` is not sent: a page of the public web needs no permission of ours to reach a
server on this machine or network.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from proxy.web.site import SITE

MAX_AGE_S: Final = 86_400
"""Time for which a browser may remember the answer, which never changes; Firefox takes a day at most, Chromium 2 h."""

HEADERS: Final = {
    "Allow": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    # Browsers older than the wildcard read the names.
    "Access-Control-Allow-Headers": "*, Cache-Control, If-None-Match, If-Range, Pragma, Range, X-Requested-With",
    "Access-Control-Max-Age": str(MAX_AGE_S),
    "Cross-Origin-Resource-Policy": "cross-origin",
}


async def preflight(request: web.Request) -> web.Response:
    """Allow what `GET` and `HEAD` take."""
    request.app[SITE].door.insist_on_own_name(request.headers.get("Host"))
    return web.Response(status=204, headers=HEADERS)
