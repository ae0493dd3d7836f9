"""
`GET /healthz` and `GET /readyz`: answered from memory, so that they never wait behind other work.

Each of several workers answers for itself.
"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from imgkeep.core.errors import ImgkeepError
from imgkeep.health import Health
from imgkeep.web.auth import AUTH

_NO_STORE = {"Cache-Control": "no-store"}


HEALTH: Final = web.AppKey("health", Health)


async def healthz(_request: web.Request) -> web.Response:
    """Answer that the process can answer."""
    return web.Response(text="ok\n", headers=_NO_STORE)


async def readyz(request: web.Request) -> web.Response:
    """State whether the server takes requests, and the state of each part; with reasons, for clients of the API."""
    try:
        request.app[AUTH].require_api_access(request)
        may_know = True
    except ImgkeepError:
        may_know = False
    is_ready, report = request.app[HEALTH].report(in_full=may_know)
    return web.Response(
        status=200 if is_ready else 503,
        body=msgspec.json.encode(report),
        content_type="application/json",
        headers={**_NO_STORE, "Vary": "Authorization, Cookie"},
    )
