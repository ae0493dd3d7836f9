"""The API: `GET /api/inspect?src=`."""

from __future__ import annotations

import msgspec
from aiohttp import web

from proxy.core.source import read_img_query
from proxy.web.site import SITE


async def inspect(request: web.Request) -> web.Response:
    """Tell what a link names and whether it may be fetched; asks nobody."""
    site = request.app[SITE]
    site.door.insist_on_access(request)
    facts = site.inspector.inspect(read_img_query(request.raw_path.partition("?")[2]).source)
    return web.Response(
        body=msgspec.json.encode({"success": True, **facts}),
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )
