"""`GET /api/inspect` and `GET /api/policy`: the facts of a link without a fetch, and the policy of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from imgkeep.core.policy_document import describe_policy
from imgkeep.core.source_url import read_img_query
from imgkeep.web.api import schemas
from imgkeep.web.api.api_services import api_context, json_response
from imgkeep.web.auth import AUTH

if TYPE_CHECKING:
    from aiohttp import web


async def inspect(request: web.Request) -> web.Response:
    """Return what a link names and whether it may be fetched; no other server is asked."""
    context = api_context(request)
    facts = context.inspector.inspect(read_img_query(request.raw_path.partition("?")[2], "/api/inspect").source)
    return json_response(msgspec.convert(facts, schemas.Inspection))


async def show_policy(request: web.Request) -> web.Response:
    """Return which links the server would refuse, so that pages send it none of them."""
    context = api_context(request)
    policy = describe_policy(context.inspector.policy, signature=request.app[AUTH].signature)
    widths = list(context.rewriting.link_selection.derive_policy.widths)
    return json_response(schemas.Policy(**policy, widths=widths))
