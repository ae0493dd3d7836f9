"""`/api`: reading links, saving images."""

from __future__ import annotations

import asyncio
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from imgkeep.core.data_url import read_data_url
from imgkeep.core.errors import InvalidRequest, LoopDetected
from imgkeep.core.layout import read_object_name
from imgkeep.core.policy_document import describe_policy
from imgkeep.core.records import Wanted
from imgkeep.core.source_url import own_path, read_img_query, read_source
from imgkeep.images.record_facts import as_dict
from imgkeep.images.upload import Saved
from imgkeep.web.context import ADMISSION, REQUEST_LOG, SITE
from imgkeep.web.request_body import JSON, LARGE_BODY_BYTES, read_file, read_pieces, unsupported_media_type

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from imgkeep.core.records import Record, Source
    from imgkeep.web.context import Site


class SaveImage(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/save-image`: one of the two."""

    url: str | None = None
    data: str | None = None


async def inspect(request: web.Request) -> web.Response:
    """Tell what a link names and whether it may be fetched; asks nobody."""
    site = api_context(request)
    facts = site.inspector.inspect(read_img_query(request.raw_path.partition("?")[2], "/api/inspect").source)
    return answer({"success": True, **facts})


async def show_policy(request: web.Request) -> web.Response:
    """Tell which links would be refused, so that nothing leads them through us."""
    site = api_context(request)
    return answer({"success": True, **describe_policy(site.inspector.policy, signature=site.auth.signature)})


async def save_image(request: web.Request) -> web.Response:
    """Keep an image now: by its link, as a data URL, as an uploaded file, or as the body itself."""
    site = api_context(request)
    kind = request.content_type
    if kind == "multipart/form-data":
        chunks, size = await read_file(request, "file")
        saved = await site.saver.save_bytes(chunks, size)
    elif kind.startswith("image/"):  # which, the bytes tell
        saved = await site.saver.save_bytes(read_pieces(request), request[ADMISSION].body_bytes)
    elif kind != JSON:
        raise unsupported_media_type(
            f"the body has to be {JSON} (url or data), multipart/form-data (file), or image/* (the image itself)",
            *(JSON, "multipart/form-data", "image/*"),
        )
    else:
        body = await site.bodies.read_json(request, SaveImage)
        if (body.url is None) == (body.data is None):
            raise InvalidRequest("the body needs url or data, and not both")
        if body.url is not None:
            saved = await _save_link(request, body.url)
        else:
            assert body.data is not None
            saved = await _save_data(site, body.data)
    request[REQUEST_LOG].key = saved.record.key
    request[REQUEST_LOG].outcome = "stored" if saved.created else "hit"
    return answer(describe(request, saved), status=201 if saved.created else 200)


async def _save_link(request: web.Request, url: str) -> Saved:
    """Keep what a link names; a permanent URL of ours names what is kept, and any other of our own would be a loop."""
    site = request.app[SITE]
    source = read_source(url)
    path = _find_own_path(request, source)
    request[REQUEST_LOG].set_source(source, site.image_service.identify(source))
    if path is None:
        return await site.saver.save_link(source)
    folder, _, name = path.partition("?")[0].rpartition("/")
    read = read_object_name(name) if folder == "/images" else None
    if read is None:
        raise LoopDetected("the source is this server")
    site.image_service.require_not_removed(read[0])
    found = await site.image_index.page(limit=1, wanted=Wanted(digest=read[0]))
    record = await site.image_service.find(found[0].key) if found else None
    if record is None:
        raise web.HTTPNotFound(text="no image is kept under this URL of ours")
    return Saved(record, created=False)


def _find_own_path(request: web.Request, source: Source) -> str | None:
    base = request[ADMISSION].base
    return own_path(source, read_source(base)) if base else None


def describe(request: web.Request, saved: Saved) -> dict[str, Any]:
    """Return what the API says of an image that is kept."""
    record = saved.record
    return {"success": True, **image_facts(request, record), "created": saved.created}


def image_facts(request: web.Request, record: Record) -> dict[str, Any]:
    """Return what the API says of a record, whatever the store."""
    return as_dict(request.app[SITE].image_service.describe(record, base=request[ADMISSION].base))


def answer(facts: object, *, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> web.Response:
    """Return JSON that nobody stores."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(facts),
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **headers},
    )


def api_context(request: web.Request) -> Site:
    """
    Return what a handler of the API works with.

    Raises:
        LookupError: Nothing has judged whether the request may be made. That is an error of ours.
    """
    if ADMISSION not in request:
        raise LookupError("access was not judged")
    return request.app[SITE]


def read_query(request: web.Request, known: Collection[str]) -> dict[str, str]:
    """
    Return the parameters of a request, each of which is known and given once at most.

    Raises:
        InvalidRequest: One is not.
    """
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known or name in query:
            raise InvalidRequest(f"the parameters are {', '.join(sorted(known))}, each given once at most")
        if not value.isprintable():
            raise InvalidRequest(f"{name} holds a control character or is not Unicode text")
        query[name] = value
    return query


async def _save_data(site: Site, text: str) -> Saved:
    read = partial(read_data_url, text)
    data = read() if len(text) <= LARGE_BODY_BYTES else await asyncio.to_thread(read)
    return await site.saver.save_bytes(_once(data), len(data))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
