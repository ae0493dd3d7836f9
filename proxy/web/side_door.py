"""
The side door: what workers ask of each other, on sockets that nobody else can reach.

The same handlers as in front answer here, with three differences: nothing is counted or recorded, because that is done
where the client is; who asks for an image may join a fill but has none made; and what is told of an image that is being
fetched is how far its file has come (`growth.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from proxy.core.model import Digest, Key
from proxy.web.exchange import over_aiohttp
from proxy.web.growth import lay_open
from proxy.web.images import IMG, img
from proxy.web.problems import problems
from proxy.web.siblings import OUTCOME, Notice
from proxy.web.site import NOTES, SITE, Notes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from proxy.web.exchange import Answer, Ask
    from proxy.web.site import Site

NOTICE_BYTES_MAX: Final = 16_777_216
"""Some hundred thousand copies that were used in a second."""


def side_door(
    site: Site,
    name: str,
    learn: Callable[[Collection[Digest], Collection[Key], Mapping[str, int], Collection[Digest]], Awaitable[None]],
    add_api: Callable[[web.UrlDispatcher], None],
) -> web.Application:
    """Make the application for the siblings of the worker `name`. `learn` is told what they tell."""
    app = web.Application(middlewares=[notes, problems], client_max_size=NOTICE_BYTES_MAX)
    app[SITE] = site
    app.router.add_get(IMG, over_aiohttp(_img))
    add_api(app.router)

    async def wait(request: web.Request) -> web.Response:
        await site.keeper.landed(Key(request.match_info["key"]))
        return web.Response(status=204)

    async def notices(request: web.Request) -> web.Response:
        notice = msgspec.msgpack.decode(await request.read(), type=Notice)
        refused, changed = map(Digest, notice.refused), map(Key, notice.changed)
        await learn([*refused], [*changed], notice.copies, [*map(Digest, notice.restored)])
        return web.Response(status=204)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=site.meter.tell(name))

    app.router.add_get("/fills/{key}", wait)
    app.router.add_post("/notices", notices)
    app.router.add_get("/metrics", metrics)
    app.on_response_prepare.append(_tell_outcome)
    return app


@web.middleware
async def notes(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The outermost layer, in the place of `records`."""
    request[NOTES] = Notes()
    try:
        return await handler(request)
    except ConnectionError:
        return web.Response(status=499)


async def _img(ask: Ask) -> Answer:
    return await lay_open(ask, await img(ask))


async def _tell_outcome(request: web.Request, response: web.StreamResponse) -> None:
    noted = request[NOTES]
    response.headers[OUTCOME] = f"{noted.code or noted.outcome} {noted.key or ''}".strip()
