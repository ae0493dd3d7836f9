"""`GET /api/failures`: the last failed fills, and why they failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import InvalidRequest
from imgkeep.images.failure_history import ENTRIES_MAX, merge_failures
from imgkeep.web.api import schemas
from imgkeep.web.api.api_services import api_context, json_response, read_query

if TYPE_CHECKING:
    from aiohttp import web

LIMIT_DEFAULT: Final = 100


async def list_failures(request: web.Request) -> web.Response:
    """List the last failures of all workers, the latest first."""
    context = api_context(request)
    query = read_query(request, {"limit", "host", "code"})
    limit = _read_limit(query.get("limit"))
    found = [
        entry
        for entry in merge_failures(await context.list_failures(), ENTRIES_MAX)
        if query.get("host") in {None, entry.host} and query.get("code") in {None, entry.code}
    ]
    return json_response(schemas.Failures(failures=found[:limit]))


def _read_limit(text: str | None) -> int:
    if text is None:
        return LIMIT_DEFAULT
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:4]) <= ENTRIES_MAX or len(text) > 3:
        raise InvalidRequest(f"limit is a whole number from 1 to {ENTRIES_MAX}")
    return int(text)
