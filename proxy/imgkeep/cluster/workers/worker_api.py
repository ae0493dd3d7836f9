"""
The peer API for workers: internal HTTP, on a Unix socket in a folder that only the workers of this run can open.

| route | answer |
|---|---|
| `GET /fills/<name>` | the progress of a fill (`cluster/progress.py`); 204: this worker runs none of this name |
| `GET /fills/<name>/end` | 204 as soon as this worker runs no fill or derivation of this name |
| `POST /notices` | 204 when this worker knows what has changed |
| `GET /metrics`, `GET /failures` | the counters and the recent failures of this worker |

Rules:
- A request without the secret of this run is not from a peer: the API refuses it and closes the connection.
- The name of a fill is that of its lease (`images/fill_coalescing.py`). The worker that has the client checks access;
  this API checks none, and starts no fill for a peer.
- A connection that has carried a body ends with the answer, whether a handler has read the body or not.
- The worker that has the client counts and logs; this API does neither.

After 204 the image is stored, or its fill has failed: the peer looks it up, and may acquire the lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.cluster.fill_route import END_ROUTE, FILL_ROUTE, follow_fill
from imgkeep.cluster.notice import decode
from imgkeep.cluster.progress import SHARE_FILE
from imgkeep.cluster.workers.peers import SECRET_FIELD
from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp.typedefs import Middleware

    from imgkeep.cluster.notice import Learn
    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.images.failure_history import RecentFailure
    from imgkeep.images.service import ImageService

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_BYTES_MAX: Final = 16_777_216
"""Maximum size of a request body: a notice of some hundred thousand copies that were used in a second."""


def make_worker_api(  # noqa: PLR0913 - all but two by keyword
    info: WorkerInfo,
    images: ImageService,
    *,
    wait: Callable[[str], Awaitable[None]],
    learn: Learn,
    counters: Callable[[], bytes],
    failures: Callable[[], Sequence[RecentFailure]],
) -> web.Application:
    """
    Make the application that answers the peers of a worker.

    Args:
        info: The worker.
        images: The service whose fills peers follow.
        wait: Waits until this worker runs no fill or derivation of a name.
        learn: Applies the notice of a peer: blocked digests, changed keys, copies by name and size, unblocked digests.
        counters: Returns the counters of this worker.
        failures: Returns its recent failures.
    """
    routes = _Routes(images, wait, learn, counters, failures)
    app = web.Application(middlewares=[_require_secret(info.secret)], client_max_size=BODY_BYTES_MAX)
    app.router.add_get(FILL_ROUTE, routes.follow, allow_head=False)
    app.router.add_get(END_ROUTE, routes.wait_for_end, allow_head=False)
    app.router.add_post("/notices", routes.take_notice)
    app.router.add_get("/metrics", routes.show_counters, allow_head=False)
    app.router.add_get("/failures", routes.show_failures, allow_head=False)
    app.on_response_prepare.append(_close_after_body)
    return app


@dataclass(frozen=True, slots=True)
class _Routes:
    """The handlers."""

    images: ImageService
    wait: Callable[[str], Awaitable[None]]
    learn: Learn
    counters: Callable[[], bytes]
    failures: Callable[[], Sequence[RecentFailure]]

    async def follow(self, request: web.Request) -> web.StreamResponse:
        return await follow_fill(request, self.images, share_file=request.query_string == SHARE_FILE)

    async def wait_for_end(self, request: web.Request) -> web.Response:
        await self.wait(request.match_info["name"])
        return web.Response(status=204)

    async def take_notice(self, request: web.Request) -> web.Response:
        try:
            notice = decode(await request.read())
        except msgspec.DecodeError:
            return web.Response(status=400)
        try:
            await self.learn(notice.blocked, notice.changed, notice.copies, notice.unblocked)
        except StorageError:
            return web.Response(status=503)
        return web.Response(status=204)

    async def show_counters(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.counters())

    async def show_failures(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.msgpack.encode(self.failures()))


def _require_secret(secret: str) -> Middleware:
    expected = secret.encode()

    @web.middleware
    async def require_secret(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the secret of a peer; the outermost layer."""
        given = request.headers.getall(SECRET_FIELD, [])
        if len(given) != 1 or not compare_digest(given[0].encode("utf-8", "surrogateescape"), expected):
            response = web.Response(status=403)
            response.force_close()
            return response
        return await handler(request)

    return require_secret


async def _close_after_body(request: web.Request, response: web.StreamResponse) -> None:
    if request.body_exists:
        response.force_close()
        response.headers["Connection"] = "close"
