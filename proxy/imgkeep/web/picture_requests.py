"""
Requests for derived pictures: reads their options, judges them, and opens the picture as a delivery.

A request whose options have no effect gets the original, and so does one for an SVG that is not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgkeep.core.derived.names import parameters_of
from imgkeep.core.derived.negotiation import read_accept, varies
from imgkeep.core.errors import Busy, InvalidOption, OptionsForbidden, StorageError
from imgkeep.derived.pictures import StoredOriginal
from imgkeep.images.request_context import CacheStatus, Delivery, Located, RedirectToObject, RedirectToSource

if TYPE_CHECKING:
    from imgkeep.core.derived.derive_policy import DerivePolicy
    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.derived.options import PictureOptions
    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.core.source_url import ImgQuery, PictureQuery
    from imgkeep.derived.picture_store import PictureStore
    from imgkeep.derived.pictures import DerivedPictures, Picture
    from imgkeep.images.request_context import RequestContext
    from imgkeep.images.service import ImageService
    from imgkeep.web.auth import Auth
    from imgkeep.web.request_response import ImageRequest


@dataclass(frozen=True, slots=True)
class PictureRequests:
    """
    The requests for pictures: reads their options, and opens the pictures.

    Attributes:
        picture_store: Where clients can be sent for a picture.
        policy: The options that a client may ask for.
    """

    image_service: ImageService
    pictures: DerivedPictures
    picture_store: PictureStore
    policy: DerivePolicy
    auth: Auth

    def read_options(self, request: ImageRequest, query: ImgQuery | PictureQuery) -> PictureOptions | None:
        """
        Return the options of a request, and note until when it is permitted; `None`: it is for the original.

        Raises:
            InvalidOption, OptionsForbidden, SignatureInvalid, SignatureExpired: As `DerivePolicy.judge`.
        """
        if not query.picture:
            return None
        permission = self.policy.judge(query, self.auth.signatures, self.auth.clock().timestamp())
        request.varies = varies(permission.options)
        if permission.ends is not None:
            known = request.request_log.permitted_until
            request.request_log.permitted_until = permission.ends if known is None else min(known, permission.ends)
        return permission.options

    async def open_of_source(
        self,
        request: ImageRequest,
        source: Source,
        info: SourceInfo,
        options: PictureOptions,
        request_context: RequestContext,
    ) -> Delivery | RedirectToObject | RedirectToSource | None:
        """
        Open a picture of the image behind a link, which is fetched and stored first if need be.

        `None`: the original is the answer.

        Raises:
            ImgkeepError: As `ImageService.locate`, and `DerivedPictures.open`.
        """
        await self.pictures.require_usable()  # before an original is fetched in vain
        for checked in (False, True):
            located = await self.image_service.locate(source, info, request_context, checked=checked)
            if isinstance(located, RedirectToSource):
                return located
            original = StoredOriginal.of(located.record)
            names = self.pictures.find_names(original, options, read_accept(request.field("Accept")))
            if not names:
                return None
            picture = await self._open(request, original, names, request_context)
            if picture is not None:
                return await self._deliver(request, picture, original, located)
        raise StorageError("the object of a record is not in the store")

    async def open_of_object(
        self, request: ImageRequest, name: str, options: PictureOptions
    ) -> Delivery | RedirectToObject | None:
        """
        Open a picture of the object `<digest>.<ext>`; `None`: the object itself is the answer, or there is none.

        Raises:
            Removed: It was removed.
            ImgkeepError: As `DerivedPictures.open`.
        """
        original = StoredOriginal.named(name)
        if original is None:
            return None
        await self.pictures.require_usable()
        await self.image_service.stored.learn_removal(original.digest)
        names = self.pictures.find_names(original, options, read_accept(request.field("Accept")))
        picture = None
        if names:
            picture = await self._open(request, original, names, self.auth.make_context(request))
        return None if picture is None else await self._deliver(request, picture, original, None)

    async def _open(
        self,
        request: ImageRequest,
        original: StoredOriginal,
        names: tuple[PictureName, ...],
        request_context: RequestContext,
    ) -> Picture | None:
        try:
            return await self.pictures.open(original, names, request_context)
        except Busy:
            request.request_log.is_for_client = True  # each client has a part of the queue
            raise

    async def _deliver(
        self, request: ImageRequest, picture: Picture, original: StoredOriginal, located: Located | None
    ) -> Delivery | RedirectToObject:
        """Return the delivery of an open picture, or the redirect to it in the store."""
        name = picture.name
        immutable = located is None or located.immutable
        try:
            address = await self.picture_store.url_of(name, head=request.head)
        except BaseException:
            await picture.body.aclose()
            raise
        if address is not None:
            await picture.body.aclose()
            permanent_url = None if address.private else address.url
            return RedirectToObject(address, picture.etag, self._own_name(original, name), permanent_url, immutable)
        key = original.object_name if located is None else located.record.key
        status = CacheStatus.HIT if located is None else located.cache_status
        if status is CacheStatus.HIT and picture.is_new:
            status = CacheStatus.DERIVED
        return Delivery(
            key,
            status,
            name.format,
            picture.etag,
            f"{key[:16]}-{name.stem}.{name.format.extension}",
            picture.body,
            self._own_name(original, name),
            immutable=immutable,
            repeatable=located is None or located.repeatable,
            record=None if located is None else located.record,
        )

    def _own_name(self, original: StoredOriginal, name: PictureName) -> str | None:
        """
        Return the last part of a picture's own URL.

        `None`: this server refuses that URL without a signature, or no parameter tells the picture from its original.
        """
        parameters = parameters_of(name)
        if not parameters:
            return None
        try:
            self.policy.require(parameters, is_signed=False)
        except (OptionsForbidden, InvalidOption):
            return None
        query = "&".join(f"{parameter}={value}" for parameter, value in parameters)
        return f"{original.object_name}?{query}"
