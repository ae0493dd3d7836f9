"""`/api/images`: looking through what is kept, removing it, undoing that, and fetching it again."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.core.errors import InvalidRequest
from imgkeep.core.records import Digest, Key, Wanted
from imgkeep.core.source_url import read_source
from imgkeep.web.api.context import API, api_context, image_facts, json_response, read_query
from imgkeep.web.context import REQUEST_LOG
from imgkeep.web.request_body import BODIES, JSON, unsupported_media_type

if TYPE_CHECKING:
    from imgkeep.core.records import Source
    from imgkeep.images.refetch import Refetched
    from imgkeep.images.removal import Restored

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000

FORMS: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""What a page can send to other sites without asking them (WHATWG Fetch, "CORS-safelisted request-header")."""

_FORCE: Final = "force=true sees to it that none ever is"

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_CURSOR: Final = re.compile(r"([0-9]{1,12})-([0-9a-f]{64})")


async def list_images(request: web.Request) -> web.Response:
    """Return images, newest first, a page at a time."""
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
    page = await context.image_index.page(
        limit=limit + 1, after=read_cursor(query.get("cursor"), _CURSOR), wanted=wanted
    )
    shown = page[:limit]
    following = None
    if len(page) > limit:
        following = make_cursor(shown[-1].stored_at, shown[-1].key)
    return json_response(
        {"success": True, "images": [image_facts(request, record) for record in shown], "next": following}
    )


async def show_image(request: web.Request) -> web.Response:
    """Return what is known of an image."""
    context = api_context(request)
    key = _read_key(request)
    record = await context.image_service.find(key)
    if record is None:
        raise web.HTTPNotFound(text="no image is kept under this key")
    return json_response({"success": True, **image_facts(request, record)})


async def remove_image(request: web.Request) -> web.Response:
    """Remove an image by its key."""
    context = api_context(request)
    key = _read_key(request)
    force = _read_force(read_query(request, {"force"}))
    if not await context.remover.remove_key(key, force=force):
        raise web.HTTPNotFound(text=f"no image is stored under this key; {_FORCE}")
    return json_response({"success": True, "key": key})


async def remove_images(request: web.Request) -> web.Response:
    """Remove the image that a link names, or that a digest does."""
    context = api_context(request)
    query = read_query(request, {"src", "digest", "force"})
    force = _read_force(query)
    if ("src" in query) == ("digest" in query):
        raise InvalidRequest("DELETE /api/images needs ?src= or ?digest=, and not both")
    if "digest" in query:
        digest = Digest(_read_hash("digest", query["digest"]))
        if not await context.remover.remove_digest(digest, force=force):
            raise web.HTTPNotFound(text=f"these bytes are not stored; {_FORCE}")
        return json_response({"success": True, "digest": digest})
    source = read_source(query["src"])
    key = _log_source(request, source)
    if not await context.remover.remove_source(source, force=force):
        raise web.HTTPNotFound(text=f"no image is stored for this link; {_FORCE}")
    return json_response({"success": True, "key": key})


class Restore(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/restore`: one of the two."""

    url: str | None = None
    digest: str | None = None


class RefetchBy(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/images/<key>/refetch`: the link to fetch by, where it is known."""

    url: str | None = None


class Refetch(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/refetch`."""

    url: str


async def restore_image(request: web.Request) -> web.Response:
    """Undo the removal of an image by its key."""
    context = api_context(request)
    key = _read_key(request)
    if has_body(request):
        raise InvalidRequest("takes no body")
    restored = await context.remover.restore_key(key)
    if restored is None:
        raise web.HTTPNotFound(text="nothing is removed under this key")
    return json_response({"success": True, "key": key, **_tell_restored(restored)})


async def restore(request: web.Request) -> web.Response:
    """Undo the removal of an image by its link, or by its digest."""
    context = api_context(request)
    body = await request.app[BODIES].read_json(request, Restore)
    if body.digest is not None and body.url is None:
        restored = await context.remover.restore_digest(Digest(_read_hash("digest", body.digest)))
        if restored is None:
            raise web.HTTPNotFound(text="this digest is not blocked")
        return json_response({"success": True, **_tell_restored(restored)})
    if body.url is None or body.digest is not None:
        raise InvalidRequest("the body needs url or digest, and not both")
    source = read_source(body.url)
    key = _log_source(request, source)
    restored = await context.remover.restore_source(source)
    if restored is None:
        raise web.HTTPNotFound(text="nothing is removed under this link")
    return json_response({"success": True, "key": key, **_tell_restored(restored)})


async def refetch_image(request: web.Request) -> web.Response:
    """Fetch an image again, by its key and maybe a link."""
    context = api_context(request)
    key = _read_key(request)
    url = (await request.app[BODIES].read_json(request, RefetchBy)).url if has_body(request) else None
    source = None if url is None else read_source(url)
    if source is not None:
        request[REQUEST_LOG].host = source.host
    refetched = await context.refetcher.refetch(key, source)
    return _tell_refetched(request, refetched)


async def refetch(request: web.Request) -> web.Response:
    """Fetch an image again, by its link."""
    context = api_context(request)
    body = await request.app[BODIES].read_json(request, Refetch)
    source = read_source(body.url)
    _log_source(request, source)
    return _tell_refetched(request, await context.refetcher.refetch_source(source))


def _tell_refetched(request: web.Request, refetched: Refetched | None) -> web.Response:
    if refetched is None:
        raise web.HTTPNotFound(text="no image is stored under this key")
    request[REQUEST_LOG].outcome = "stored" if refetched.replaced else "hit"
    return json_response({"success": True, **image_facts(request, refetched.record), "replaced": refetched.replaced})


def _tell_restored(restored: Restored) -> dict[str, object]:
    meaning = (
        "the bytes are still stored, and shown again"
        if restored.stored
        else "the image can be stored again; its bytes were deleted, so it has to be fetched or uploaded"
    )
    return {
        "restored": True,
        "digest": restored.digest,
        "keys": restored.keys,
        "stored": restored.stored,
        "detail": meaning,
    }


def has_body(request: web.Request) -> bool:
    """
    Tell whether a body is sent along.

    Raises:
        HTTPUnsupportedMediaType: A page of another site may have sent the request, as a form, empty or not.
    """
    if "Content-Type" in request.headers and request.content_type in FORMS:
        raise unsupported_media_type(f"the body has to be JSON (Content-Type: {JSON}), or left out", JSON)
    return request.body_exists


def _log_source(request: web.Request, source: Source) -> Key:
    """Note which link a request is about, and return its key."""
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


def read_limit(text: str | None) -> int:
    """
    Return how many entries of a list are wanted.

    Raises:
        InvalidRequest: Too many, none, or no number.
    """
    if text is None:
        return LIMIT_DEFAULT
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise InvalidRequest(f"limit has to be a number from 1 to {LIMIT_MAX}")
    return int(text)


def make_cursor(moment: datetime, name: str) -> str:
    """Return what names an entry of a list that is ordered by time."""
    return urlsafe_b64encode(f"{int(moment.timestamp())}-{name}".encode()).decode().rstrip("=")


def read_cursor(text: str | None, form: re.Pattern[str]) -> tuple[int, str] | None:
    """
    Return the second and the name that a cursor holds; `form` matches both.

    Raises:
        InvalidRequest: It is none.
    """
    if text is None:
        return None
    try:
        read = form.fullmatch(urlsafe_b64decode(f"{text}==").decode("ascii"))
    except ValueError:
        read = None
    if read is None:
        raise InvalidRequest("cursor is none that next has given")
    return int(read[1]), read[2]


def _read_time(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name} has to be a time like 2026-11-22T10:00:00Z") from None
