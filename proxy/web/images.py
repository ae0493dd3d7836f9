"""`GET|HEAD /img?src=`, the permanent URL, `GET|HEAD /images/<digest>.<ext>`, and old file names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.core.content import identify_legacy
from proxy.core.errors import Busy, LoopDetected
from proxy.core.model import Key
from proxy.core.source import own_path, read_img_query
from proxy.service.keep import Elsewhere, Redirect, Referral
from proxy.web.delivery import redirect, refer, respond
from proxy.web.siblings import TRIES_MAX
from proxy.web.site import NOTES, SITE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.service.keep import Delivery


async def img(request: web.Request) -> web.StreamResponse:
    """Show the image behind a source URL, for ever."""
    # The raw target, because decoding loses what tells the two ways of writing `src` apart.
    query = read_img_query(request.raw_path.partition("?")[2])
    source, site = query.source, request.app[SITE]
    visit = site.door.admit(request, query)
    own = None if site.public is None else own_path(source, site.public)
    if own is not None:
        return await _own(request, own)
    info = site.keeper.identify(source)
    request[NOTES].key = info.key
    delivery = await site.keeper.deliver(source, info, visit)
    if isinstance(delivery, Elsewhere):
        return await _follow(request, delivery, partial(site.keeper.deliver, source, info, visit))
    return await _show(request, delivery)


async def image(request: web.Request) -> web.StreamResponse:
    """Show an object under its permanent URL."""
    delivery = await _find(request, request.match_info["name"])
    if delivery is None:
        raise web.HTTPNotFound
    return await _give(request, delivery)


def legacy(mount: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return who shows what was adopted under old names."""

    async def show(request: web.Request) -> web.StreamResponse:
        info = identify_legacy(mount, request.match_info["name"])
        request[NOTES].key = info.key
        delivery = await request.app[SITE].keeper.deliver_kept(info.key, head=request.method == "HEAD")
        if delivery is None:
            raise web.HTTPNotFound
        return await _give(request, delivery)

    return show


async def _follow(
    request: web.Request,
    delivery: Delivery | Referral | Redirect | Elsewhere,
    look_again: Callable[[], Awaitable[Delivery | Referral | Redirect | Elsewhere]],
) -> web.StreamResponse:
    """Have the worker answer that fetches the image, until it is here or we may fetch it."""
    site = request.app[SITE]
    for _ in range(TRIES_MAX):
        if not isinstance(delivery, Elsewhere):
            return await _show(request, delivery)
        if site.is_side_door or site.siblings is None:
            raise web.HTTPMisdirectedRequest  # it was here a moment ago
        answer = await site.siblings.follow(request, delivery.holder, Key(request[NOTES].key or ""))
        if answer is not None:
            return answer
        delivery = await look_again()
    raise Busy("the image is fetched now here, now there")


async def _own(request: web.Request, path: str) -> web.StreamResponse:
    """A source under our own permanent URL is simply served; any other of our own would be a loop."""
    folder, _, name = path.partition("?")[0].rpartition("/")
    delivery = await _find(request, name) if folder == "/images" else None
    if delivery is None:
        raise LoopDetected("the source is this server")
    return await _give(request, delivery)


async def _find(request: web.Request, name: str) -> Delivery | Referral | None:
    return await request.app[SITE].keeper.deliver_object(name, head=request.method == "HEAD")


async def _show(request: web.Request, delivery: Delivery | Referral | Redirect) -> web.StreamResponse:
    return redirect(request, delivery) if isinstance(delivery, Redirect) else await _give(request, delivery)


async def _give(request: web.Request, delivery: Delivery | Referral) -> web.StreamResponse:
    return refer(request, delivery) if isinstance(delivery, Referral) else await respond(request, delivery)
