"""`GET|HEAD /img?src=`, the permanent URL, `GET|HEAD /images/<digest>.<ext>`, and old file names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiohttp import web

from imgkeep.core.data_url import identify_legacy
from imgkeep.core.errors import LoopDetected, OriginError, RateLimited, SourceRejected
from imgkeep.core.source_url import own_path, read_img_query
from imgkeep.images.context import RedirectToObject, RedirectToSource
from imgkeep.web.responses import redirect, redirect_to_object, respond

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from imgkeep.images.context import Delivery
    from imgkeep.web.messages import Handler, HttpResponse, ImageRequest

T = TypeVar("T")

IMG: Final = "/img"
IMAGES: Final = "/images/{name}"

_IMG: Final = b"/img?"
_IMAGES: Final = re.compile(rb"/images/([0-9a-z.]+)")


def find_handler(target: bytes) -> tuple[Handler, str, str] | None:
    """Return who answers a request target, as which route and with which name; `None` if it is not plain."""
    if target.startswith(_IMG):
        return img, IMG, ""
    match = _IMAGES.fullmatch(target)
    return None if match is None else (image, IMAGES, match[1].decode())


async def img(request: ImageRequest) -> HttpResponse:
    """Show the image behind a source URL, for ever."""
    query = read_img_query(request.target.partition("?")[2])
    source, site = query.source, request.site
    request.request_log.host = source.host
    try:
        request_context = site.auth.authorize_image(request, query)
    except SourceRejected:
        request.request_log.set_source(source, site.image_service.identify(source))
        raise
    own = None if site.public is None else own_path(source, site.public)
    if own is not None:
        return await _own(request, own)
    info = site.image_service.identify(source)
    request.request_log.set_source(source, info)
    looking = site.image_service.deliver(source, info, request_context)
    # What is known to be stored is no look in vain, and is shown whatever its client has asked for before.
    known = site.image_service.records.cached(info.key) is not None
    return await _show(request, await (looking if known else _look(request, looking)))


async def image(request: ImageRequest) -> HttpResponse:
    """Show an object under its permanent URL."""
    delivery = await _find(request, request.name)
    if delivery is None:
        raise web.HTTPNotFound
    return await _give(request, delivery)


def legacy(mount: str) -> Handler:
    """Return who shows what was adopted under old names."""

    async def show(request: ImageRequest) -> HttpResponse:
        info = identify_legacy(mount, request.name)
        request.request_log.key = info.key
        delivery = await _look(request, request.site.image_service.deliver_stored(info.key, head=request.head))
        if delivery is None:
            raise web.HTTPNotFound
        return await _give(request, delivery)

    return show


async def _own(request: ImageRequest, path: str) -> HttpResponse:
    """A source under our own permanent URL is simply served; any other of our own would be a loop."""
    folder, _, name = path.partition("?")[0].rpartition("/")
    delivery = await _find(request, name) if folder == "/images" else None
    if delivery is None:
        raise LoopDetected("the source is this server")
    return await _give(request, delivery)


async def _find(request: ImageRequest, name: str) -> Delivery | RedirectToObject | None:
    return await _look(request, request.site.image_service.deliver_object(name, head=request.head))


async def _look(request: ImageRequest, looking: Coroutine[Any, Any, T]) -> T:
    """
    Look for an image, and count it against the client if there is none.

    Raises:
        RateLimited: The client has looked in vain too often. Or as `looking`.
    """
    misses = request.site.misses
    if misses is None:
        return await looking
    client = request.site.auth.identify_client(request)
    try:
        misses.check(client)
    except RateLimited:
        looking.close()
        raise
    try:
        found = await looking
    except (SourceRejected, OriginError):
        misses.note(client)
        raise
    if found is None:
        misses.note(client)
    return found


async def _show(request: ImageRequest, delivery: Delivery | RedirectToObject | RedirectToSource) -> HttpResponse:
    return redirect(request, delivery) if isinstance(delivery, RedirectToSource) else await _give(request, delivery)


async def _give(request: ImageRequest, delivery: Delivery | RedirectToObject) -> HttpResponse:
    return (
        redirect_to_object(request, delivery)
        if isinstance(delivery, RedirectToObject)
        else await respond(request, delivery)
    )
