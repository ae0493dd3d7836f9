"""
`POST /api/rewrite`: returns a page or a text with its links to images replaced by links of this server.

A document comes as it is (`text/html`, `text/markdown`) and goes back as it is, byte for byte but for links, with the
facts about it in header fields; or it comes and goes as a string in JSON.

The server reads the whole document before it responds, and streams nothing: many clients do not read before they have
sent all, and a response that has begun could no longer say that the document is too large or that no job was accepted.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from aiohttp import web

from imgkeep.core.errors import InvalidRequest
from imgkeep.core.rewrite import PictureSettings
from imgkeep.jobs.job_json import describe_job
from imgkeep.jobs.runner import ITEMS_MAX
from imgkeep.page_rewriting import MARKDOWN_BYTES_MAX, check_page_url, find_sizes
from imgkeep.web.api import schemas
from imgkeep.web.api.api_services import API, api_context, json_response, read_query
from imgkeep.web.request_body import (
    BODIES,
    BODY_BYTES_MAX,
    JSON,
    LARGE_BODY_BYTES,
    read_json,
    read_whole,
    unsupported_media_type,
)
from imgkeep.web.request_state import ADMISSION, REQUEST_LOG

if TYPE_CHECKING:
    from imgkeep.core.jobs import Job
    from imgkeep.core.records import PixelSize
    from imgkeep.page_rewriting import DocumentFormat, LinkChoice, Rewritten

FORMS: Final[dict[str, DocumentFormat]] = {"text/html": "html", "text/markdown": "markdown"}
REWRITTEN: Final = "Imgkeep-Rewritten"
"""Header field of a response that is the document itself: the number of rewritten links."""
PARAMETERS: Final = ("which", "url", "save", "pictures", "widths", "sizes", "lazy", "dimensions")

HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # The page belongs to another site.
    "Content-Security-Policy": "default-src 'none'; sandbox",
}

_WIDTH: Final = re.compile(r"[0-9]{1,5}")
_CHARSET: Final = re.compile(r"[A-Za-z0-9][\w.:-]{0,39}", re.ASCII)


class Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The options of a rewrite, whichever way the document comes."""

    which: Literal["temporary", "all"] | list[str] = "temporary"
    url: str | None = None
    save: bool = False
    pictures: str | dict[str, str] = ""
    widths: Literal["auto"] | list[int] | None = None
    sizes: str = ""
    lazy: bool = False
    dimensions: bool = False


class Document(Options, forbid_unknown_fields=True, kw_only=True):
    """The JSON body: one of the two documents."""

    html: str | None = None
    markdown: str | None = None


async def rewrite(request: web.Request) -> web.Response:
    """Rewrite the links to images in a document, and have a job save the images if the client wants that."""
    api_context(request)
    if request.content_type == JSON:
        if request.query:
            raise InvalidRequest("the options of a JSON body stand in it, and not in the query")
        async with request.app[BODIES].reserve(request):
            return await _rewrite_json(request, await read_json(request, Document))
    form = FORMS.get(request.content_type)
    if form is None:
        raise unsupported_media_type(f"the body has to be {', '.join(FORMS)} or {JSON}", *FORMS, JSON)
    options = _read_options(request)
    bytes_max = MARKDOWN_BYTES_MAX if form == "markdown" else BODY_BYTES_MAX
    charset = request.charset if request.charset and _CHARSET.fullmatch(request.charset) else None
    async with request.app[BODIES].reserve(request):
        data = await read_whole(request, bytes_max=bytes_max)
        rewritten = await _rewrite(request, data, form, options, charset)
        job = await _save(request, rewritten) if options.save else None
    headers = {**HEADERS, REWRITTEN: str(len(rewritten.links))}
    if job is not None:
        headers["Location"] = f"{request[ADMISSION].base}/api/jobs/{job.id}"
    return web.Response(body=rewritten.document, content_type=request.content_type, charset=charset, headers=headers)


async def _rewrite_json(request: web.Request, body: Document) -> web.Response:
    if (body.html is None) == (body.markdown is None):
        raise InvalidRequest("the body needs html or markdown, and not both")
    form: DocumentFormat = "html" if body.markdown is None else "markdown"
    data = (body.html or body.markdown or "").encode()
    rewritten = await _rewrite(request, data, form, body, "utf-8")
    job = await _save(request, rewritten) if body.save else None

    def make() -> web.Response:
        response = schemas.RewrittenDocument(rewritten=len(rewritten.links))
        if form == "html":
            response.html = rewritten.document.decode()
        else:
            response.markdown = rewritten.document.decode()
        if body.save:
            response.job = None if job is None else schemas.JobFacts(**describe_job(job))
        return json_response(response)

    return make() if len(data) <= LARGE_BODY_BYTES else await asyncio.to_thread(make)


async def _rewrite(
    request: web.Request, data: bytes | bytearray, form: DocumentFormat, options: Options, charset: str | None
) -> Rewritten:
    context = request.app[API]
    if options.url is not None:
        check_page_url(options.url)
    which: LinkChoice = tuple(options.which) if isinstance(options.which, list) else options.which
    selection, base = context.rewriting.link_selection, request[ADMISSION].base
    settings = PictureSettings(options.pictures, options.widths, options.sizes, is_lazy=options.lazy)
    sizes: dict[str, PixelSize] = {}
    read = partial(selection.read_pictures, settings, sizes.get if options.dimensions else None)
    # A hundred patterns take some tens of milliseconds.
    pictures = read() if isinstance(options.pictures, str) else await asyncio.to_thread(read)
    linker = selection.linker(which, base, pictures)
    if options.dimensions:
        found = await context.rewriting.service.try_out(data, form, linker, url=options.url, charset=charset)
        if len(frozenset(found.links)) > ITEMS_MAX:
            raise InvalidRequest(f"dimensions: the document has more than {ITEMS_MAX} links")
        sizes |= await find_sizes(found.links, context.inspector, context.image_index.find_all, context.facts.add_to)
    rewritten = await context.rewriting.service.rewrite(data, form, linker, url=options.url, charset=charset)
    request[REQUEST_LOG].outcome = "rewritten"
    return rewritten


async def _save(request: web.Request, rewritten: Rewritten) -> Job | None:
    """Submit the images to a job; `None`: the document has none."""
    links = list(dict.fromkeys(rewritten.links))
    if len(links) > ITEMS_MAX:
        raise InvalidRequest(f"save: the document has more than {ITEMS_MAX} links, the maximum of a job")
    return await request.app[API].jobs.submit(links) if links else None


def _read_options(request: web.Request) -> Options:
    """Read the options of a document that is the body itself. Commas separate host globs."""
    query: dict[str, object] = dict(read_query(request, PARAMETERS))
    which = query.get("which")
    if isinstance(which, str) and which not in {"temporary", "all"}:
        query["which"] = which.split(",")
    widths = query.get("widths")
    if isinstance(widths, str) and widths != "auto":
        query["widths"] = [int(width) if _WIDTH.fullmatch(width) else width for width in widths.split(",")]
    try:
        return msgspec.convert(query, Options, strict=False)
    except msgspec.ValidationError:
        raise InvalidRequest(
            "save, lazy and dimensions have to be true or false; widths auto, or whole numbers with commas between them"
        ) from None
