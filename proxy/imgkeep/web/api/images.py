"""`/api/images`: lists stored images, removes them, undoes a removal, and fetches an image again."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.core.errors import DeriveFailed, InvalidRequest
from imgkeep.core.placeholder import placeholder_url
from imgkeep.core.records import Digest, Key, Wanted
from imgkeep.core.source_url import read_source
from imgkeep.core.thumbhash import InvalidThumbHash
from imgkeep.web.api import schemas
from imgkeep.web.api.api_services import API, api_context, describe_images, json_response, read_query
from imgkeep.web.api.paging import make_cursor, read_cursor, read_limit
from imgkeep.web.request_body import BODIES, has_body
from imgkeep.web.request_state import REQUEST_LOG

if TYPE_CHECKING:
    from imgkeep.core.records import Source
    from imgkeep.images.operator_refetch import Refetched
    from imgkeep.images.removal import Restored

_NOT_STORED: Final = "no image is stored under this key"
_FORCE: Final = "force=true makes sure that none ever will be"

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_CURSOR: Final = re.compile(r"([0-9]{1,12})-([0-9a-f]{64})")


class Restore(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/restore`: one of the two."""

    url: str | None = None
    digest: str | None = None


class RefetchBy(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/images/<key>/refetch`: the link to fetch by, where the client has one."""

    url: str | None = None


class Refetch(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/refetch`."""

    url: str


async def list_images(request: web.Request) -> web.Response:
    """List images, newest first, a page at a time."""
    context = api_context(request)
    query = read_query(request, {"limit", "cursor", "host", "provider", "digest", "since", "until"})
    limit = read_limit(query.get("limit"))
    wanted = Wanted(
        host=query.get("host"),
        provider=query.get("provider"),
        digest=None if "digest" not in query else Digest(_read_hash("digest", query["digest"])),
        since=_read_time("since", query.get("since")),
        until=_read_time("until", query.get("until")),
    )
    after = read_cursor(query.get("cursor"), _CURSOR)
    page = await context.image_index.page(limit=limit + 1, after=after, wanted=wanted)
    shown = page[:limit]
    following = make_cursor(shown[-1].stored_at, shown[-1].key) if len(page) > limit else None
    return json_response(schemas.Images(images=await describe_images(request, shown), next=following))


async def show_image(request: web.Request) -> web.Response:
    """Show the facts of an image."""
    context = api_context(request)
    record = await context.image_service.find(_read_key(request))
    if record is None:
        raise web.HTTPNotFound(text=_NOT_STORED)
    (facts,) = await describe_images(request, [record])
    return json_response(schemas.show_image(schemas.ShownImage, facts))


async def show_placeholder(request: web.Request) -> web.Response:
    """Show the placeholder of an image; what its pixels tell is found now if it is not known."""
    context = api_context(request)
    record = await context.image_service.find(_read_key(request))
    if record is None:
        raise web.HTTPNotFound(text=_NOT_STORED)
    facts = await context.facts.find(record)
    try:
        url = await asyncio.to_thread(placeholder_url, facts.thumbhash)
    except InvalidThumbHash:
        raise DeriveFailed("the stored ThumbHash is damaged: `imgkeep reindex` deletes it") from None
    return json_response(
        schemas.Placeholder(
            key=record.key,
            digest=record.digest,
            placeholder=url,
            thumbhash=facts.thumbhash,
            colour=f"#{facts.colour}",
            width=facts.width,
            height=facts.height,
        )
    )


async def remove_image(request: web.Request) -> web.Response:
    """Remove an image by its key."""
    context = api_context(request)
    key = _read_key(request)
    force = _read_force(read_query(request, {"force"}))
    if not await context.remover.remove_key(key, force=force):
        raise web.HTTPNotFound(text=f"no image is stored under this key; {_FORCE}")
    return json_response(schemas.Removed(key=key))


async def remove_images(request: web.Request) -> web.Response:
    """Remove the image of a link, or of a digest."""
    context = api_context(request)
    query = read_query(request, {"src", "digest", "force"})
    force = _read_force(query)
    if ("src" in query) == ("digest" in query):
        raise InvalidRequest("DELETE /api/images needs ?src= or ?digest=, and not both")
    if "digest" in query:
        digest = Digest(_read_hash("digest", query["digest"]))
        if not await context.remover.remove_digest(digest, force=force):
            raise web.HTTPNotFound(text=f"these bytes are not stored; {_FORCE}")
        return json_response(schemas.Removed(digest=digest))
    source = read_source(query["src"])
    key = _log_source(request, source)
    if not await context.remover.remove_source(source, force=force):
        raise web.HTTPNotFound(text=f"no image is stored for this link; {_FORCE}")
    return json_response(schemas.Removed(key=key))


async def restore_image(request: web.Request) -> web.Response:
    """Undo the removal of an image by its key."""
    context = api_context(request)
    key = _read_key(request)
    if has_body(request):
        raise InvalidRequest("takes no body")
    restored = await context.remover.restore_key(key)
    if restored is None:
        raise web.HTTPNotFound(text="nothing is removed under this key")
    return _show_restored(restored, key)


async def restore(request: web.Request) -> web.Response:
    """Undo the removal of an image by its link, or by its digest."""
    context = api_context(request)
    body = await request.app[BODIES].read_json(request, Restore)
    if body.digest is not None and body.url is None:
        restored = await context.remover.restore_digest(Digest(_read_hash("digest", body.digest)))
        if restored is None:
            raise web.HTTPNotFound(text="this digest is not blocked")
        return _show_restored(restored)
    if body.url is None or body.digest is not None:
        raise InvalidRequest("the body needs url or digest, and not both")
    source = read_source(body.url)
    key = _log_source(request, source)
    restored = await context.remover.restore_source(source)
    if restored is None:
        raise web.HTTPNotFound(text="nothing is removed under this link")
    return _show_restored(restored, key)


async def refetch_image(request: web.Request) -> web.Response:
    """Fetch an image again, by its key and maybe a link."""
    context = api_context(request)
    key = _read_key(request)
    url = (await request.app[BODIES].read_json(request, RefetchBy)).url if has_body(request) else None
    source = None if url is None else read_source(url)
    if source is not None:
        request[REQUEST_LOG].host = source.host
    return await _show_refetched(request, await context.refetcher.refetch(key, source))


async def refetch(request: web.Request) -> web.Response:
    """Fetch an image again, by its link."""
    context = api_context(request)
    body = await request.app[BODIES].read_json(request, Refetch)
    source = read_source(body.url)
    _log_source(request, source)
    return await _show_refetched(request, await context.refetcher.refetch_source(source))


async def _show_refetched(request: web.Request, refetched: Refetched | None) -> web.Response:
    if refetched is None:
        raise web.HTTPNotFound(text=_NOT_STORED)
    request[REQUEST_LOG].outcome = "stored" if refetched.replaced else "hit"
    (facts,) = await describe_images(request, [refetched.record])
    return json_response(schemas.show_image(schemas.RefetchedImage, facts, replaced=refetched.replaced))


def _show_restored(restored: Restored, key: Key | None = None) -> web.Response:
    detail = (
        "the bytes are still stored, and shown again"
        if restored.stored
        else "the image can be stored again; its bytes were deleted, so it has to be fetched or uploaded"
    )
    return json_response(
        schemas.Restored(
            key=msgspec.UNSET if key is None else key,
            digest=restored.digest,
            keys=list(restored.keys),
            stored=restored.stored,
            detail=detail,
        )
    )


def _log_source(request: web.Request, source: Source) -> Key:
    """Note the link of a request, and return its key."""
    info = request.app[API].image_service.identify(source)
    request[REQUEST_LOG].set_source(source, info)
    return info.key


def _read_key(request: web.Request) -> Key:
    key = Key(_read_hash("the key", request.match_info["key"]))
    request[REQUEST_LOG].key = key
    return key


def _read_force(query: dict[str, str]) -> bool:
    text = query.get("force", "false")
    if text not in {"true", "false"}:
        raise InvalidRequest("force has to be true or false")
    return text == "true"


def _read_hash(name: str, text: str) -> str:
    if _HASH.fullmatch(text) is None:
        raise InvalidRequest(f"{name} has to be 64 lower-case hexadecimal digits")
    return text


def _read_time(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name} has to be a time like 2026-11-22T10:00:00Z") from None
