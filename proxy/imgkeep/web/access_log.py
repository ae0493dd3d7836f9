"""One log record and one count per request, whatever becomes of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.web.context import REQUEST_LOG, SITE, RequestLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.http_headers import Fields
    from imgkeep.web.context import Site

CLIENT_LEFT: Final = 499
"""nginx's word for a client that left before the answer began."""

PROBES: Final = frozenset({"/healthz", "/readyz"})
"""Load balancers ask these every second or two; their records are for debugging."""

log = logging.getLogger("imgkeep.access")


@web.middleware
async def records(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The outermost layer: times the request, counts it, writes its record."""
    site = request.app[SITE]
    start = site.timer()
    request_log = request[REQUEST_LOG] = RequestLog()
    status = CLIENT_LEFT
    try:
        response = await handler(request)
        status = response.status
        if isinstance(response, web.Response) and request.method != "HEAD":
            request_log.sent = response.content_length or 0
        return response  # noqa: TRY300 - reads in the order of what happens
    except ConnectionError:
        # Nobody is there to read this one; but what a handler raises, aiohttp logs as an error.
        request_log.code = "client_left"
        return web.Response(status=status)
    finally:
        resource = request.match_info.route.resource
        route = "unmatched" if resource is None else resource.canonical
        peer = (request.remote or "", request.headers)
        tell(site, peer, request.method, route, request_log, status, site.timer() - start)


def tell(  # noqa: PLR0913, PLR0917 - the fields of a record, in their order
    site: Site, peer: tuple[str, Fields], method: str, route: str, request_log: RequestLog, status: int, seconds: float
) -> None:
    """Count a request, and write its record. `peer` is its address, and what the request says of others."""
    site.meter.answered(route, request_log.code or request_log.outcome, status, request_log.sent, seconds)
    level = logging.DEBUG if route in PROBES else logging.INFO
    if site.access_log and log.isEnabledFor(level):
        remote, fields = peer
        client = str(site.auth.client_address(remote, fields))
        record(level, client, method, route, request_log, status, seconds)


def record(  # noqa: PLR0913, PLR0917 - the fields of a record, in their order
    level: int, client: str, method: str, route: str, request_log: RequestLog, status: int, seconds: float
) -> None:
    """Write the record of a request; that of a failure tells what it was about, but never the link."""
    facts: dict[str, object] = {
        "client": client,
        "method": method,
        "route": route,
        "key": request_log.key,
        "outcome": request_log.code or request_log.outcome,
        "status": status,
        "bytes": request_log.sent,
        "ms": round(seconds * 1000, 1),
    }
    if request_log.code is not None:
        facts |= {"host": request_log.host, "provider": request_log.provider, "detail": request_log.detail}
    log.log(level, "request", extra=facts)
