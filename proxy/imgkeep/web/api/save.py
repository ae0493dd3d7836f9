"""`POST /api/save-image`: saves one image, by its link or by its bytes."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from imgkeep.core.data_url import read_data_url
from imgkeep.core.errors import InvalidRequest, LoopDetected
from imgkeep.core.layout import read_object_name
from imgkeep.core.records import Wanted
from imgkeep.core.source_url import own_path, read_source
from imgkeep.images.upload import Saved
from imgkeep.web.api import schemas
from imgkeep.web.api.api_services import API, api_context, describe_images, json_response
from imgkeep.web.request_body import BODIES, JSON, LARGE_BODY_BYTES, read_file, read_pieces, unsupported_media_type
from imgkeep.web.request_state import ADMISSION, REQUEST_LOG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.core.records import Source
    from imgkeep.web.api.api_services import ApiContext


class SaveImage(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/save-image`: one of the two."""

    url: str | None = None
    data: str | None = None


async def save_image(request: web.Request) -> web.Response:
    """Save an image now: by its link, as a data URL, as an uploaded file, or as the body itself."""
    context = api_context(request)
    kind = request.content_type
    if kind == "multipart/form-data":
        chunks, size = await read_file(request, "file")
        saved = await context.saver.save_bytes(chunks, size)
    elif kind.startswith("image/"):  # the bytes decide which format it is
        saved = await context.saver.save_bytes(read_pieces(request), request[ADMISSION].body_bytes)
    elif kind != JSON:
        raise unsupported_media_type(
            f"the body has to be {JSON} (url or data), multipart/form-data (file), or image/* (the image itself)",
            *(JSON, "multipart/form-data", "image/*"),
        )
    else:
        body = await request.app[BODIES].read_json(request, SaveImage)
        if (body.url is None) == (body.data is None):
            raise InvalidRequest("the body needs url or data, and not both")
        if body.url is not None:
            saved = await _save_link(request, body.url)
        else:
            assert body.data is not None
            saved = await _save_data(context, body.data)
    request[REQUEST_LOG].key = saved.record.key
    request[REQUEST_LOG].outcome = "stored" if saved.created else "hit"
    (facts,) = await describe_images(request, [saved.record])
    response = schemas.show_image(schemas.SavedImage, facts, created=saved.created)
    return json_response(response, status=201 if saved.created else 200)


async def _save_link(request: web.Request, url: str) -> Saved:
    """Save the image of a link. A permanent URL of this server names a stored image; its other URLs would be loops."""
    context = request.app[API]
    source = read_source(url)
    path = _find_own_path(request, source)
    request[REQUEST_LOG].set_source(source, context.image_service.identify(source))
    if path is None:
        return await context.saver.save_link(source)
    folder, _, name = path.partition("?")[0].rpartition("/")
    read = read_object_name(name) if folder == "/images" else None
    if read is None:
        raise LoopDetected("the source is this server")
    context.image_service.require_not_removed(read[0])
    found = await context.image_index.page(limit=1, wanted=Wanted(digest=read[0]))
    record = await context.image_service.find(found[0].key) if found else None
    if record is None:
        raise web.HTTPNotFound(text="no image is stored under this URL of the server")
    return Saved(record, created=False)


def _find_own_path(request: web.Request, source: Source) -> str | None:
    base = request[ADMISSION].base
    return own_path(source, read_source(base)) if base else None


async def _save_data(context: ApiContext, text: str) -> Saved:
    read = partial(read_data_url, text)
    data = read() if len(text) <= LARGE_BODY_BYTES else await asyncio.to_thread(read)
    return await context.saver.save_bytes(_once(data), len(data))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
