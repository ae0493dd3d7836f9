"""
`GET|HEAD /imgkeep.js` and `/imgkeep.d.ts`: our JavaScript module and its types, for pages of everybody.

They are read when this is imported. Browsers ask each time whether there is a newer one, because its address stays.
"""

from __future__ import annotations

from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.core.headers import etag_matches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MODULE: Final = "/imgkeep.js"
TYPES: Final = "/imgkeep.d.ts"


def _serve(path: str, media_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that gives the file of this name."""
    body = resources.files(__package__).joinpath("static", path.removeprefix("/")).read_bytes()
    etag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": "public, no-cache",
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }

    async def handle(request: web.Request) -> web.Response:
        if etag_matches(", ".join(request.headers.getall("If-None-Match", [])), etag):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers={**headers, "Content-Type": f"{media_type}; charset=utf-8"})

    return handle


module: Final = _serve(MODULE, "text/javascript")
types: Final = _serve(TYPES, "text/plain")
