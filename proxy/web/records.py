"""One log record and one count per request, whatever becomes of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.core.headers import client_address
from proxy.web.site import NOTES, SITE, Notes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger("imgkeep.access")


@web.middleware
async def records(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The outermost layer: times the request, counts it, writes its record."""
    site = request.app[SITE]
    start = site.timer()
    notes = request[NOTES] = Notes()
    status = 499  # nginx's word for a client that left before the answer began
    try:
        response = await handler(request)
        status = response.status
        if isinstance(response, web.Response) and request.method != "HEAD":
            notes.sent = response.content_length or 0
        return response  # noqa: TRY300 - reads in the order of what happens
    except ConnectionError:
        # Nobody is there to read this one; but what a handler raises, aiohttp logs as an error.
        notes.code = "client_left"
        return web.Response(status=status)
    finally:
        seconds = site.timer() - start
        resource = request.match_info.route.resource
        route = "unmatched" if resource is None else resource.canonical
        outcome = notes.code or notes.outcome
        site.meter.answered(route, outcome, status, notes.sent, seconds)
        if site.access_log:
            client = client_address(request.remote or "", request.headers, site.door.trusted_proxies)
            record(str(client), request.method, route, notes.key, outcome, status, notes.sent, seconds)


def record(  # noqa: PLR0913, PLR0917 - the fields of a record, in their order
    client: str, method: str, route: str, key: str | None, outcome: str, status: int, size: int, seconds: float
) -> None:
    """Write the record of a request."""
    facts = {
        "client": client,
        "method": method,
        "route": route,
        "key": key,
        "outcome": outcome,
        "status": status,
        "bytes": size,
        "ms": round(seconds * 1000, 1),
    }
    log.info("request", extra=facts)
