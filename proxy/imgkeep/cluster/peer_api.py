"""
What workers ask of each other, on sockets in a folder that only they can open.

Rules:
- A peer is a worker of this run only if it knows its secret; any other is refused and cut off.
- Access was judged where the client is. No field here is a client's but `relay.FIELDS`, and none is judged.
- A connection that has carried a body ends with the answer, whether the body was read or not.
- Nothing is counted or recorded, because that is done where the client is.
"""

from __future__ import annotations

import json
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.cluster.peers import OUTCOME, PEER, Notice
from imgkeep.cluster.progress import tell_failure, tell_fill
from imgkeep.core.errors import InvalidRequest
from imgkeep.core.records import Digest, Key
from imgkeep.images.peer_fill import FillFailure
from imgkeep.web.admission import API_PREFIX, reject_content_codings
from imgkeep.web.aiohttp_adapter import send_body_range
from imgkeep.web.api_relay import JUDGED
from imgkeep.web.context import ADMISSION, REQUEST_LOG, Admission, RequestLog
from imgkeep.web.messages import BodyRange, HttpResponse
from imgkeep.web.problems import problem_middleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from aiohttp.typedefs import Middleware

    from imgkeep.core.records import WorkerInfo
    from imgkeep.images.recent_failures import RecentFailures
    from imgkeep.images.service import ImageService
    from imgkeep.observability.metrics import Metrics

NOTICE_BYTES_MAX: Final = 16_777_216
"""Some hundred thousand copies that were used in a second."""

_FILL: Final = r"/fills/{name:(?:try\.)?[0-9a-f]{64}}"
"""A fill has the name of its lease (`images/service.py`)."""


def make_peer_api(
    image_service: ImageService,
    counters: Metrics,
    recent_failures: RecentFailures,
    place: WorkerInfo,
    learn: Callable[[Collection[Digest], Collection[Key], Mapping[str, int], Collection[Digest]], Awaitable[None]],
    add_api: Callable[[web.Application], None],
) -> web.Application:
    """Make the application for the peers of a worker. `learn` is told what they tell."""
    app = web.Application(
        middlewares=[_known_by(place.secret), notes, problem_middleware, plain], client_max_size=NOTICE_BYTES_MAX
    )
    add_api(app)

    async def follow(request: web.Request) -> web.StreamResponse:
        joined = await image_service.join(request.match_info["name"])
        if joined is None:
            return web.Response(status=204)
        if isinstance(joined, FillFailure):
            return web.Response(body=tell_failure(joined))
        telling = await tell_fill(*joined)
        return await send_body_range(request, HttpResponse(200, {}), BodyRange(telling, 0, None, telling.message))

    async def wait(request: web.Request) -> web.Response:
        await image_service.wait_for_fill(Key(request.match_info["name"]))
        return web.Response(status=204)

    async def notices(request: web.Request) -> web.Response:
        try:
            notice = msgspec.msgpack.decode(await request.read(), type=Notice)
        except msgspec.DecodeError:
            raise InvalidRequest("the notice is not understood") from None
        refused, changed = map(Digest, notice.refused), map(Key, notice.changed)
        await learn([*refused], [*changed], notice.copies, [*map(Digest, notice.restored)])
        return web.Response(status=204)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=counters.tell(place.name))

    async def failures(_request: web.Request) -> web.Response:
        return web.Response(body=msgspec.msgpack.encode(recent_failures.list()))

    app.router.add_get(_FILL, follow, allow_head=False)
    app.router.add_get(f"{_FILL}/end", wait, allow_head=False)
    app.router.add_post("/notices", notices)
    app.router.add_get("/metrics", metrics, allow_head=False)
    app.router.add_get("/failures", failures, allow_head=False)
    app.on_response_prepare.append(_tell_outcome)
    app.on_response_prepare.append(_end_with_body)
    return app


def _known_by(secret: str) -> Middleware:
    expected = secret.encode()

    @web.middleware
    async def known(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """The outermost layer: let in who knows the secret."""
        given = request.headers.getall(PEER, [])
        if len(given) != 1 or not compare_digest(given[0].encode("utf-8", "surrogateescape"), expected):
            response = web.Response(status=403)
            response.force_close()
            return response
        return await handler(request)

    return known


@web.middleware
async def notes(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """In the place of `records`."""
    request[REQUEST_LOG] = RequestLog()
    try:
        return await handler(request)
    except ConnectionError:
        return web.Response(status=499)


@web.middleware
async def plain(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """In the place of `admission`: take what was judged where the client is."""
    reject_content_codings(request)
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical.startswith(API_PREFIX):
        try:
            request[ADMISSION] = msgspec.json.decode(request.headers.get(JUDGED, ""), type=Admission)
        except msgspec.DecodeError:
            raise InvalidRequest("the request was not judged") from None
    return await handler(request)


async def _tell_outcome(request: web.Request, response: web.StreamResponse) -> None:
    noted = request.get(REQUEST_LOG)
    if noted is not None:
        response.headers[OUTCOME] = json.dumps(
            [noted.code, noted.outcome, noted.key, noted.host, noted.provider, noted.detail]
        )


async def _end_with_body(request: web.Request, response: web.StreamResponse) -> None:
    if request.body_exists:
        response.force_close()
        response.headers["Connection"] = "close"
