"""
Errors as `application/problem+json` (RFC 9457): one ordered table from error to status.

The first class that fits decides, so a subclass stands before its base. `tests/web/test_problems.py` proves that every
error of `core.errors` is in the table.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.core import errors
from imgkeep.core.content_negotiation import FORM_FIELDS
from imgkeep.core.http_headers import cache_status
from imgkeep.web.aiohttp_adapter import as_aiohttp_response
from imgkeep.web.error_presentation import PLACEHOLDER, PROBLEM, Problem, present_failure
from imgkeep.web.image_headers import EXPOSED_HEADERS, IMAGE_HEADERS
from imgkeep.web.request_response import HttpResponse
from imgkeep.web.request_state import IS_IMAGE, REQUEST_LOG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.web.request_state import RequestLog

log = logging.getLogger(__name__)

STATUSES: Final[tuple[tuple[type[errors.ImgkeepError], int, str], ...]] = (
    (errors.InvalidSource, 400, "The source URL is not usable"),
    (errors.InvalidRequest, 400, "The request is not understood"),
    (errors.InvalidOption, 400, "An option of the picture is not usable"),
    (errors.OptionsForbidden, 403, "The options of the picture are not allowed"),
    (errors.NotSupported, 501, "Not supported here"),
    (errors.DeriveFailed, 422, "No picture can be made of the image"),
    (errors.SourceForbidden, 403, "The source is refused"),
    (errors.SignatureRequired, 403, "The URL is not signed"),
    (errors.SignatureInvalid, 403, "The signature is wrong"),
    (errors.SignatureExpired, 403, "The signature has expired"),
    (errors.Forbidden, 403, "Not allowed from there"),
    (errors.Unauthorized, 401, "The request needs a valid token"),
    (errors.LoopDetected, 508, "The source is this server"),
    (errors.Removed, 410, "The image was removed"),
    (errors.RateLimited, 429, "Too many images for one address"),
    (errors.Busy, 503, "Too much work at the moment"),
    (errors.SourceExpired, 410, "The link has expired"),
    (errors.SourceNotFound, 404, "The origin does not have the image"),
    (errors.OriginRefused, 502, "The origin refuses the image"),
    (errors.OriginTimeout, 504, "The origin is too slow"),
    (errors.NotAnImage, 422, "Not an image"),
    (errors.TooLarge, 422, "The image is too large"),
    (errors.OriginError, 502, "The origin failed"),
    (errors.StorageError, 503, "The storage is unavailable"),
)

_ACCEPT_FIELDS: Final = ("Allow", "Accept", "Accept-Encoding")
"""Header fields that state what the server would accept instead."""

# Codes of the framework's own errors that the routes of imgkeep can cause.
_HTTP_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    431: "request_too_large",
}


def problem_response(error: errors.ImgkeepError, *, api: bool = False) -> HttpResponse:
    """Return the response to a typed error; under `/api` it has `"success": false` too."""
    status, title = next((status, title) for kind, status, title in STATUSES if isinstance(error, kind))
    response = _make_response(status, title, error.code, str(error), api=api)
    if isinstance(error, errors.OriginError) and not api:
        forwarded = () if error.origin_status is None else (f"fwd-status={error.origin_status}",)
        response.headers["Cache-Status"] = cache_status("fwd=uri-miss", *forwarded)
    if isinstance(error, errors.Unauthorized):
        response.headers["WWW-Authenticate"] = 'Bearer realm="imgkeep"'  # RFC 6750, 3
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is None and status == 503:
        retry_after_s = 5
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    return response


def error_response(error: Exception, request_log: RequestLog, *, api: bool = False) -> HttpResponse:
    """Return the response to an error of a handler, and note it; an unexpected error is logged, without its message."""
    if isinstance(error, errors.ImgkeepError):
        request_log.fail_with(error)
        if isinstance(error, errors.StorageError):
            log.warning("storage unavailable", extra={"key": request_log.key, "reason": error.in_full})
        response = problem_response(error, api=api)
        if isinstance(error, errors.OriginError) and error.image is not None and not api:
            return _origin_image(response, *error.image)
        return response
    if isinstance(error, web.HTTPException):
        return _http_error_response(error, request_log, api=api)
    log.error("unforeseen error", exc_info=error)
    code, detail = "internal_error", "The server met an error of its own; it was logged."
    request_log.fail(code, detail)
    return _make_response(500, "Internal error", code, detail, api=api)


def _http_error_response(error: web.HTTPException, request_log: RequestLog, *, api: bool) -> HttpResponse:
    """Return the response to an error of the framework, or of a handler that raised one."""
    code, status = _HTTP_CODES.get(error.status, "http_error"), HTTPStatus(error.status)
    text = error.text if error.text != f"{status.value}: {error.reason}" else None
    if isinstance(error, web.HTTPMethodNotAllowed):
        text = f"this endpoint does not take that method; use {' or '.join(sorted(error.allowed_methods))}"
    detail = text or status.description
    request_log.fail(code, detail)
    response = _make_response(error.status, status.phrase, code, detail, api=api)
    for name in _ACCEPT_FIELDS:
        if name in error.headers:
            response.headers[name] = error.headers[name]
    return response


def _origin_image(response: HttpResponse, media_type: str, body: bytes) -> HttpResponse:
    """Return the image that the origin sent with an error, in place of the problem and with its status."""
    fixed = {name: value for name, value in IMAGE_HEADERS.items() if name != "Accept-Ranges"}
    return HttpResponse(response.status, {**fixed, **response.headers, "Content-Type": media_type}, body)


def parser_error_response(status: int, request_log: RequestLog) -> HttpResponse:
    """Return the response to a request that the parser of HTTP refuses; it repeats no byte of the request."""
    known = HTTPStatus(status)
    code, detail = _HTTP_CODES.get(status, "http_error"), known.description or known.phrase
    request_log.fail(code, detail)
    return _make_response(status, known.phrase, code, detail)


@web.middleware
async def problem_middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer an error of a handler with a problem, in the form that the client reads."""
    try:
        return await handler(request)
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 - `error_response` logs an unexpected one
        response = error_response(error, request[REQUEST_LOG], api=request.path.startswith("/api"))
        placeholder = request.app.get(PLACEHOLDER) if IS_IMAGE in request else None
        return as_aiohttp_response(present_failure(response, request.method, request.headers, placeholder))


def _make_response(status: int, title: str, code: str, detail: str, *, api: bool = False) -> HttpResponse:
    problem = Problem(
        type=f"urn:imgkeep:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        success=False if api else msgspec.UNSET,
    )
    headers = {
        "Content-Type": PROBLEM,
        "Cache-Control": "no-store",
        "Vary": FORM_FIELDS,
        "X-Content-Type-Options": "nosniff",
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }
    return HttpResponse(status, headers, msgspec.json.encode(problem))
