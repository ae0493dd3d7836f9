"""`GET /metrics`: the counters of all workers in Prometheus' text format, from any worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.web.auth import AUTH

if TYPE_CHECKING:
    from imgkeep.cluster.workers.peers import WorkerPeers
    from imgkeep.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """The counters of this worker and of its `peers`; `None`: this process is the only one."""

    metrics: Metrics
    peers: WorkerPeers | None = None

    async def respond(self) -> web.Response:
        """Return the counters of all workers."""
        if self.peers is None:
            page = self.metrics.page()
        else:
            counters, others, unresponsive = await self.peers.counters()
            own = self.metrics.tell(self.peers.name)
            page = self.metrics.sum_up([own, *counters], workers=1 + others, unresponsive=unresponsive)
        headers = {"Cache-Control": "no-store", "Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=page, headers=headers)


METRICS: Final = web.AppKey("metrics", MetricsPage)


async def metrics(request: web.Request) -> web.Response:
    """Return the counters of all workers to a client that calls this server by its own name."""
    request.app[AUTH].require_own_host(request.headers.get("Host"))
    return await request.app[METRICS].respond()
