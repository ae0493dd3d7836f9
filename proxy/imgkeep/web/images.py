"""Handlers of images: `/img?src=`, the permanent URL `/images/<digest>.<ext>`, and file names from before an import."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiohttp import HttpVersion11, web

from imgkeep.core.data_url import identify_legacy
from imgkeep.core.errors import LoopDetected, OriginError, RateLimited, SourceRejected
from imgkeep.core.source_url import own_path, read_img_query
from imgkeep.images.context import RedirectToObject, RedirectToSource
from imgkeep.web.aiohttp_adapter import as_aiohttp_response, presence_of, send_body_range
from imgkeep.web.context import IS_IMAGE, REQUEST_LOG
from imgkeep.web.messages import BodyRange, ImageRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from imgkeep.core.records import Source
    from imgkeep.images.context import Delivery
    from imgkeep.images.miss_limit import MissLimiter
    from imgkeep.images.service import ImageService
    from imgkeep.web.auth import Auth
    from imgkeep.web.messages import HttpResponse
    from imgkeep.web.responses import ImageResponses

    Handler = Callable[[ImageRequest], Awaitable[HttpResponse]]

T = TypeVar("T")

IMG_PATH: Final = "/img"
IMAGES_PATH: Final = "/images/{name}"

_IMG: Final = b"/img?"
_IMAGES: Final = re.compile(rb"/images/([0-9a-z.]+)")


@dataclass(frozen=True, slots=True)
class ImageHandlers:
    """
    The handlers of images, and what they work with.

    Attributes:
        public: `server.public_url`, read; `None`: not configured.
        miss_limiter: Limits lookups of what is not stored; `None`: such a lookup costs nothing.
    """

    image_service: ImageService
    auth: Auth
    responses: ImageResponses
    public: Source | None
    miss_limiter: MissLimiter | None = None

    def find_handler(self, target: bytes) -> tuple[Handler, str, str] | None:
        """Return the handler of a request target, its route and its name; `None` if the target is not plain."""
        if target.startswith(_IMG):
            return self.img, IMG_PATH, ""
        match = _IMAGES.fullmatch(target)
        return None if match is None else (self.image, IMAGES_PATH, match[1].decode())

    async def img(self, request: ImageRequest) -> HttpResponse:
        """Show the image behind a source URL, for ever."""
        query = read_img_query(request.target.partition("?")[2])
        source = query.source
        request.request_log.host = source.host
        try:
            request_context = self.auth.authorize_image(request, query)
        except SourceRejected:
            request.request_log.set_source(source, self.image_service.identify(source))
            raise
        own = None if self.public is None else own_path(source, self.public)
        if own is not None:
            return await self._own(request, own)
        info = self.image_service.identify(source)
        request.request_log.set_source(source, info)
        looking = self.image_service.deliver(source, info, request_context)
        # What is known to be stored is no look in vain, and is shown whatever its client has asked for before.
        known = self.image_service.records.cached(info.key) is not None
        return await self._show(request, await (looking if known else self._look(request, looking)))

    async def image(self, request: ImageRequest) -> HttpResponse:
        """Show an object under its permanent URL."""
        delivery = await self._find(request, request.name)
        if delivery is None:
            raise web.HTTPNotFound
        return await self._give(request, delivery)

    async def legacy(self, request: ImageRequest, mount: str) -> HttpResponse:
        """Show an image that was imported under its old name."""
        info = identify_legacy(mount, request.name)
        request.request_log.key = info.key
        delivery = await self._look(request, self.image_service.deliver_stored(info.key, head=request.head))
        if delivery is None:
            raise web.HTTPNotFound
        return await self._give(request, delivery)

    async def _own(self, request: ImageRequest, path: str) -> HttpResponse:
        """A source under our own permanent URL is simply served; any other of our own would be a loop."""
        folder, _, name = path.partition("?")[0].rpartition("/")
        delivery = await self._find(request, name) if folder == "/images" else None
        if delivery is None:
            raise LoopDetected("the source is this server")
        return await self._give(request, delivery)

    async def _find(self, request: ImageRequest, name: str) -> Delivery | RedirectToObject | None:
        return await self._look(request, self.image_service.deliver_object(name, head=request.head))

    async def _look(self, request: ImageRequest, looking: Coroutine[Any, Any, T]) -> T:
        """
        Look for an image, and count it against the client if there is none.

        Raises:
            RateLimited: The client has looked in vain too often. Or as `looking`.
        """
        limiter = self.miss_limiter
        if limiter is None:
            return await looking
        client = self.auth.identify_client(request)
        try:
            limiter.check(client)
        except RateLimited:
            looking.close()
            raise
        try:
            found = await looking
        except (SourceRejected, OriginError):
            limiter.note(client)
            raise
        if found is None:
            limiter.note(client)
        return found

    async def _show(
        self, request: ImageRequest, delivery: Delivery | RedirectToObject | RedirectToSource
    ) -> HttpResponse:
        return (
            self.responses.redirect(request, delivery)
            if isinstance(delivery, RedirectToSource)
            else await self._give(request, delivery)
        )

    async def _give(self, request: ImageRequest, delivery: Delivery | RedirectToObject) -> HttpResponse:
        return (
            self.responses.redirect_to_object(request, delivery)
            if isinstance(delivery, RedirectToObject)
            else await self.responses.respond(request, delivery)
        )


IMAGES: Final = web.AppKey("images", ImageHandlers)


def as_aiohttp_handler(
    find: Callable[[ImageHandlers], Handler],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return the handler for aiohttp that asks the handler of images which `find` returns."""

    async def handle(request: web.Request) -> web.StreamResponse:
        request[IS_IMAGE] = True
        handlers = request.app[IMAGES]
        resource = request.match_info.route.resource
        ask = ImageRequest(
            route="" if resource is None else resource.canonical,
            name=request.match_info.get("name", ""),
            head=request.method == "HEAD",
            # The raw one, because decoding loses what tells the two ways of writing `src` apart.
            target=request.raw_path,
            fields=request.headers,
            remote=request.remote or "",
            accepts_chunked=request.version >= HttpVersion11,
            request_log=request[REQUEST_LOG],
            presence=presence_of(request),
        )
        # Plain requests that come another way were compared with our names when their fields were read.
        handlers.auth.require_own_host(ask.field("Host"))
        answer = await find(handlers)(ask)
        if isinstance(answer.body, BodyRange):
            return await send_body_range(request, answer, answer.body)
        if ask.head:
            return web.StreamResponse(status=answer.status, headers=answer.headers)
        return as_aiohttp_response(answer)

    return handle
