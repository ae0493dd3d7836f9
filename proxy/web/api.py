"""
The API: `GET /api/inspect?src=`.

Without a token it answers only where none but this machine can ask: on a loopback bind, to requests that no proxy
forwarded, under a name that is ours. The last is against DNS rebinding: a page elsewhere can make a browser here ask
under a name of its own.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from aiohttp import web

from proxy.core.errors import Unauthorized
from proxy.core.source import read_img_query
from proxy.web.site import SITE

FORWARDING_FIELDS: Final = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]+)?")


def insist_on_local(request: web.Request) -> None:
    """
    Let nobody in who may be from elsewhere.

    Raises:
        Unauthorized: The request is not certainly this machine's own.
    """
    own_hosts = request.app[SITE].own_hosts
    if not own_hosts:
        raise Unauthorized("the API answers on a loopback address only, with no proxy in front: see server.host")
    if any(name in request.headers for name in FORWARDING_FIELDS):
        raise Unauthorized("the API does not answer requests that were forwarded")
    host = _HOST.fullmatch(request.headers.get("Host", ""))
    if host is None or host[1].strip("[]").lower() not in own_hosts:
        raise Unauthorized("the API does not answer under this name: use the address that server.host names")


async def inspect(request: web.Request) -> web.Response:
    """Tell what a link names and whether it may be fetched; asks nobody."""
    insist_on_local(request)
    site = request.app[SITE]
    facts = site.inspector.inspect(read_img_query(request.raw_path.partition("?")[2]).source)
    return web.Response(
        body=msgspec.json.encode({"success": True, **facts}),
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )
