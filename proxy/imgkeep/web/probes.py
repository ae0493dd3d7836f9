"""
`/healthz`, `/readyz`, `/metrics`: answered from memory, so that they never queue behind other work. Of several workers
the one that is asked answers the first two for itself, and the third for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.core.errors import ImgkeepError
from imgkeep.web.auth import AUTH

if TYPE_CHECKING:
    from imgkeep.cluster.peers import Peers
    from imgkeep.health import Health
    from imgkeep.observability.metrics import Metrics

_NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Probes:
    """What probes state. `peers` are the other workers; `None`: this process is the only one."""

    health: Health
    metrics: Metrics
    peers: Peers | None = None

    async def metrics_response(self) -> web.Response:
        """Return the counters of all workers."""
        if self.peers is None:
            page = self.metrics.page()
        else:
            counters, others, unresponsive = await self.peers.counters()
            own = self.metrics.tell(self.peers.name)
            page = self.metrics.sum_up([own, *counters], workers=1 + others, unresponsive=unresponsive)
        content_type = "text/plain; version=0.0.4; charset=utf-8"
        return web.Response(body=page, headers={**_NO_STORE, "Content-Type": content_type})


PROBES: Final = web.AppKey("probes", Probes)


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
    is_ready, report = request.app[PROBES].health.report(in_full=may_know)
    return web.Response(
        status=200 if is_ready else 503,
        body=msgspec.json.encode(report),
        content_type="application/json",
        headers={**_NO_STORE, "Vary": "Authorization, Cookie"},
    )


async def metrics(request: web.Request) -> web.Response:
    """Return the counters of all workers, for Prometheus."""
    request.app[AUTH].require_own_host(request.headers.get("Host"))
    return await request.app[PROBES].metrics_response()
