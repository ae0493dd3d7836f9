"""`/api/images`: looking through what is kept, and removing it."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from proxy.core.errors import InvalidRequest
from proxy.core.model import Digest, Key, Wanted
from proxy.core.source import read_source
from proxy.web.api import answer, enter, facts_of, read_query
from proxy.web.site import NOTES

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_CURSOR: Final = re.compile(r"([0-9]{1,12})-([0-9a-f]{64})")


async def list_images(request: web.Request) -> web.Response:
    """Return images, newest first, a page at a time."""
    site = enter(request)
    query = read_query(request, {"limit", "cursor", "host", "provider", "digest", "since", "until"})
    limit = _read_limit(query.get("limit"))
    wanted = Wanted(
        host=query.get("host"),
        provider=query.get("provider"),
        digest=None if "digest" not in query else Digest(_read_hash("digest", query["digest"])),
        since=_read_time("since", query.get("since")),
        until=_read_time("until", query.get("until")),
    )
    page = await site.ledger.page(limit=limit + 1, after=_read_cursor(query.get("cursor")), wanted=wanted)
    shown = page[:limit]
    following = None
    if len(page) > limit:
        last = f"{int(shown[-1].stored_at.timestamp())}-{shown[-1].key}"
        following = urlsafe_b64encode(last.encode()).decode().rstrip("=")
    return answer({"success": True, "images": [facts_of(request, record) for record in shown], "next": following})


async def show_image(request: web.Request) -> web.Response:
    """Return what is known of an image."""
    site = enter(request)
    key = Key(_read_hash("the key", request.match_info["key"]))
    request[NOTES].key = key
    record = await site.keeper.find(key)
    if record is None:
        raise web.HTTPNotFound(text="no image is kept under this key")
    return answer({"success": True, **facts_of(request, record)})


async def remove_image(request: web.Request) -> web.Response:
    """Remove an image by its key."""
    site = enter(request)
    key = Key(_read_hash("the key", request.match_info["key"]))
    request[NOTES].key = key
    if not await site.remover.remove_key(key):
        raise web.HTTPNotFound(text="no image is kept under this key")
    return answer({"success": True, "key": key})


async def remove_images(request: web.Request) -> web.Response:
    """Remove the image that a link names, or that a digest does; what is not kept yet, will never be."""
    site = enter(request)
    query = read_query(request, {"src", "digest"})
    if len(query) != 1:
        raise InvalidRequest("needs src or digest, and not both")
    if "digest" in query:
        digest = Digest(_read_hash("digest", query["digest"]))
        await site.remover.remove_digest(digest)
        return answer({"success": True, "digest": digest})
    info = site.keeper.identify(read_source(query["src"]))
    request[NOTES].key = info.key
    await site.remover.remove_source(info)
    return answer({"success": True, "key": info.key})


def _read_hash(name: str, text: str) -> str:
    if _HASH.fullmatch(text) is None:
        raise InvalidRequest(f"{name} has to be 64 lower-case hexadecimal digits")
    return text


def _read_limit(text: str | None) -> int:
    if text is None:
        return LIMIT_DEFAULT
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise InvalidRequest(f"limit has to be a number from 1 to {LIMIT_MAX}")
    return int(text)


def _read_cursor(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    try:
        read = _CURSOR.fullmatch(urlsafe_b64decode(f"{text}==").decode("ascii"))
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
