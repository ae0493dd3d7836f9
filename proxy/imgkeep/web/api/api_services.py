"""The services for the handlers of the API, and the functions that these handlers share."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.core.errors import InvalidRequest
from imgkeep.web.request_state import ADMISSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from imgkeep.cluster.workers.peers import WorkerPeers
    from imgkeep.core.records import Record
    from imgkeep.database import ImageIndex
    from imgkeep.derived.facts import FactsFinder
    from imgkeep.health import Health
    from imgkeep.images.failure_history import RecentFailure
    from imgkeep.images.inspect import Inspector
    from imgkeep.images.operator_refetch import Refetcher
    from imgkeep.images.record_json import ImageFacts
    from imgkeep.images.removal import Remover
    from imgkeep.images.service import ImageService
    from imgkeep.images.upload import Saver
    from imgkeep.jobs.runner import JobRunner
    from imgkeep.page_rewriting import LinkSelection, RewriteService


@dataclass(frozen=True, slots=True)
class Rewriting:
    """The rewriter of documents, and the rules for their links."""

    service: RewriteService
    link_selection: LinkSelection


@dataclass(frozen=True, slots=True)
class ApiContext:
    """
    The services of the API.

    Attributes:
        health: Tells handlers that wait whether the server is about to end.
        list_failures: Returns the recent failures of this process, and those of its peers.
        relay_peers: The workers of which the leader answers the API; `None`: this process does.
    """

    image_service: ImageService
    image_index: ImageIndex
    inspector: Inspector
    saver: Saver
    remover: Remover
    refetcher: Refetcher
    facts: FactsFinder
    jobs: JobRunner
    list_failures: Callable[[], Awaitable[Sequence[Sequence[RecentFailure]]]]
    rewriting: Rewriting
    health: Health
    relay_peers: WorkerPeers | None = None


API: Final = web.AppKey("api", ApiContext)


def api_context(request: web.Request) -> ApiContext:
    """
    Return the services for a handler of the API.

    Raises:
        LookupError: `admission.py` has not judged the request, which is an error of this program.
    """
    if ADMISSION not in request:
        raise LookupError("access was not judged")
    return request.app[API]


def image_facts(request: web.Request, record: Record) -> ImageFacts:
    """Return the facts in a record, whatever the store."""
    return request.app[API].image_service.describe(record, base=request[ADMISSION].base)


async def describe_images(request: web.Request, records: Sequence[Record]) -> list[ImageFacts]:
    """Return the facts of records, with what their pixels tell where that is known."""
    return [image_facts(request, record) for record in await request.app[API].facts.add_to(records)]


def json_response(
    facts: object, *, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})
) -> web.Response:
    """Return JSON that no cache stores."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(facts),
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **headers},
    )


def read_query(request: web.Request, known: Collection[str]) -> dict[str, str]:
    """
    Return the parameters of a request.

    Raises:
        InvalidRequest: A parameter is unknown, given twice, or not printable.
    """
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known or name in query:
            raise InvalidRequest(f"the parameters are {', '.join(sorted(known))}, each given once at most")
        if not value.isprintable():
            raise InvalidRequest(f"{name} holds a control character or is not Unicode text")
        query[name] = value
    return query
