"""
`GET|HEAD /imgkeep.js` and `/imgkeep.d.ts`: the JavaScript module and its types, for the pages of all sites.

The module is read when Python imports this. Browsers revalidate their copy each time, because its URL stays.

The module contains the policy of this server, so that it sends no link here that the server would refuse. A request of
its own for the policy would need a token, another `connect-src` in the policies of pages, and time. The module is
public: it never contains `sources.deny` or addresses of networks.
"""

from __future__ import annotations

import json
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.core.http_headers import etag_matches
from imgkeep.core.policy_document import facts_for_pages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.policy import Policy

MODULE_PATH: Final = "/imgkeep.js"
TYPES_PATH: Final = "/imgkeep.d.ts"

MODULE: Final = web.AppKey("module", bytes)
"""The module for pages of this server (`make_module`)."""
POLICY_SLOT: Final = b"const SERVER = null;"
"""The line of the module that `make_module` replaces with the policy."""

_HEADERS: Final = {
    "Cache-Control": "public, no-cache",
    "X-Content-Type-Options": "nosniff",
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


def _read(path: str) -> bytes:
    return resources.files(__package__).joinpath("static", path.removeprefix("/")).read_bytes()


_MODULE: Final = _read(MODULE_PATH)
_TYPES: Final = _read(TYPES_PATH)


def make_module(policy: Policy, signature: str) -> bytes:
    """Return the module for pages of a server with this policy and `security.signature`."""
    facts = json.dumps(facts_for_pages(policy, signature=signature))
    return _MODULE.replace(POLICY_SLOT, f"const SERVER = {facts};".encode(), 1)


def _serve(
    media_type: str, body_for: Callable[[web.Request], bytes]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that serves a file."""

    async def handle(request: web.Request) -> web.Response:
        body = body_for(request)
        etag = f'"{sha256(body).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": etag}
        if etag_matches(", ".join(request.headers.getall("If-None-Match", [])), etag):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers={**headers, "Content-Type": f"{media_type}; charset=utf-8"})

    return handle


module: Final = _serve("text/javascript", lambda request: request.app[MODULE])
types: Final = _serve("text/plain", lambda _: _TYPES)
