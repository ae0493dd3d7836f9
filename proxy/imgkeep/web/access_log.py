"""The access log: one record and one count for each request, failed ones included."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.web.request_state import REQUEST_LOG, RequestLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.http_headers import Fields
    from imgkeep.observability.metrics import Metrics
    from imgkeep.web.auth import Auth

CLIENT_LEFT: Final = 499
"""nginx's status for a client that left before the response began."""

PROBES: Final = frozenset({"/healthz", "/readyz"})
"""Paths that load balancers request every second or two; their records have the level DEBUG."""

log = logging.getLogger("imgkeep.access")


@dataclass(frozen=True, slots=True)
class AccessLog:
    """
    Counts requests, and writes their records.

    Attributes:
        metrics: Counts each request.
        auth: Finds the address of a client behind trusted proxies.
        timer: Monotonic seconds.
        enabled: `log.access`: whether records are written at all.
    """

    metrics: Metrics
    auth: Auth
    timer: Callable[[], float]
    enabled: bool

    def note(  # noqa: PLR0913, PLR0917 - the fields of a record, in their order
        self,
        peer: tuple[str, Fields],
        method: str,
        route: str,
        request_log: RequestLog,
        status: int,
        seconds: float,
    ) -> None:
        """Count a request, and write its record. `peer` is its address, and the header fields of the request."""
        outcome = request_log.code or request_log.outcome
        self.metrics.answered(route, outcome, status, request_log.sent, seconds)
        level = logging.DEBUG if route in PROBES else logging.INFO
        if not self.enabled or not log.isEnabledFor(level):
            return
        facts: dict[str, object] = {
            "client": str(self.auth.client_address(*peer)),
            "method": method,
            "route": route,
            "key": request_log.key,
            "outcome": outcome,
            "status": status,
            "bytes": request_log.sent,
            "ms": round(seconds * 1000, 1),
        }
        if request_log.code is not None:  # what the request was about, but never the link
            facts |= {"host": request_log.host, "provider": request_log.provider, "detail": request_log.detail}
        log.log(level, "request", extra=facts)


ACCESS_LOG: Final = web.AppKey("access_log", AccessLog)


@web.middleware
async def access_log(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Time a request, count it, write its record: the outermost layer."""
    records = request.app[ACCESS_LOG]
    start = records.timer()
    request_log = request[REQUEST_LOG] = RequestLog()
    status = CLIENT_LEFT
    try:
        response = await handler(request)
        status = response.status
        if isinstance(response, web.Response) and request.method != "HEAD":
            request_log.sent = response.content_length or 0
        return response  # noqa: TRY300 - reads in the order of what happens
    except ConnectionError:
        # No client is there to read this response; but aiohttp logs what a handler raises as an error.
        request_log.code = "client_left"
        return web.Response(status=status)
    finally:
        resource = request.match_info.route.resource
        route = "unmatched" if resource is None else resource.canonical
        peer = (request.remote or "", request.headers)
        records.note(peer, request.method, route, request_log, status, records.timer() - start)
