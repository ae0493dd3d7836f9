"""`GET|HEAD /img?src=`, the permanent URL, `GET|HEAD /images/<digest>.<ext>`, and old file names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiohttp import web

from imgkeep.core.data_url import identify_legacy
from imgkeep.core.errors import LoopDetected, OriginError, RateLimited, SourceRejected
from imgkeep.core.source_url import own_path, read_img_query
from imgkeep.images.context import Redirect, Referral
from imgkeep.web.responses import redirect, refer, respond

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from imgkeep.images.context import Delivery
    from imgkeep.web.messages import Answer, Ask, Handler

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


async def img(ask: Ask) -> Answer:
    """Show the image behind a source URL, for ever."""
    query = read_img_query(ask.target.partition("?")[2])
    source, site = query.source, ask.site
    ask.notes.host = source.host
    try:
        visit = site.door.admit(ask, query)
    except SourceRejected:
        ask.notes.concern(source, site.keeper.identify(source))
        raise
    own = None if site.public is None else own_path(source, site.public)
    if own is not None:
        return await _own(ask, own)
    info = site.keeper.identify(source)
    ask.notes.concern(source, info)
    looking = site.keeper.deliver(source, info, visit)
    # What is known to be stored is no look in vain, and is shown whatever its client has asked for before.
    known = site.keeper.records.at_hand(info.key) is not None
    return await _show(ask, await (looking if known else _look(ask, looking)))


async def image(ask: Ask) -> Answer:
    """Show an object under its permanent URL."""
    delivery = await _find(ask, ask.name)
    if delivery is None:
        raise web.HTTPNotFound
    return await _give(ask, delivery)


def legacy(mount: str) -> Handler:
    """Return who shows what was adopted under old names."""

    async def show(ask: Ask) -> Answer:
        info = identify_legacy(mount, ask.name)
        ask.notes.key = info.key
        delivery = await _look(ask, ask.site.keeper.deliver_kept(info.key, head=ask.head))
        if delivery is None:
            raise web.HTTPNotFound
        return await _give(ask, delivery)

    return show


async def _own(ask: Ask, path: str) -> Answer:
    """A source under our own permanent URL is simply served; any other of our own would be a loop."""
    folder, _, name = path.partition("?")[0].rpartition("/")
    delivery = await _find(ask, name) if folder == "/images" else None
    if delivery is None:
        raise LoopDetected("the source is this server")
    return await _give(ask, delivery)


async def _find(ask: Ask, name: str) -> Delivery | Referral | None:
    return await _look(ask, ask.site.keeper.deliver_object(name, head=ask.head))


async def _look(ask: Ask, looking: Coroutine[Any, Any, T]) -> T:
    """
    Look for an image, and count it against the client if there is none.

    Raises:
        RateLimited: The client has looked in vain too often. Or as `looking`.
    """
    misses = ask.site.misses
    if misses is None:
        return await looking
    client = ask.site.door.find_client(ask)
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


async def _show(ask: Ask, delivery: Delivery | Referral | Redirect) -> Answer:
    return redirect(ask, delivery) if isinstance(delivery, Redirect) else await _give(ask, delivery)


async def _give(ask: Ask, delivery: Delivery | Referral) -> Answer:
    return refer(ask, delivery) if isinstance(delivery, Referral) else await respond(ask, delivery)
