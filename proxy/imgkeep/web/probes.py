"""
`/healthz`, `/readyz`, `/metrics`: answered from memory, so that they never queue behind other work. Of several workers
the first two tell how the one is that was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from imgkeep.core.errors import ImgkeepError
from imgkeep.web.context import SITE

if TYPE_CHECKING:
    from imgkeep.web.context import Site

_NO_STORE = {"Cache-Control": "no-store"}


async def healthz(_request: web.Request) -> web.Response:
    """The process can answer."""
    return web.Response(text="ok\n", headers=_NO_STORE)


async def readyz(request: web.Request) -> web.Response:
    """Whether to send requests here, and how each part is; and why, to those who may call the API."""
    site = request.app[SITE]
    try:
        site.auth.require_api_access(request)
        may_know = True
    except ImgkeepError:
        may_know = False
    welcome, report = site.health.report(in_full=may_know)
    return web.Response(
        status=200 if welcome else 503,
        body=msgspec.json.encode(report),
        content_type="application/json",
        headers={**_NO_STORE, "Vary": "Authorization, Cookie"},
    )


async def metrics(request: web.Request) -> web.Response:
    """The counters of all workers, for Prometheus."""
    site = request.app[SITE]
    site.auth.require_own_host(request.headers.get("Host"))
    return await metrics_response(site)


async def metrics_response(site: Site) -> web.Response:
    """Answer with the counters of all workers."""
    if site.peers is None:
        page = site.meter.page()
    else:
        told, others, unresponsive = await site.peers.counters()
        page = site.meter.sum_up(
            [site.meter.tell(site.peers.name), *told], workers=1 + others, unresponsive=unresponsive
        )
    return web.Response(body=page, headers={**_NO_STORE, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
