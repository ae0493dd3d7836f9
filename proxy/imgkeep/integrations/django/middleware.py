"""
The middleware for Django.

Rules:
- It works in synchronous and in asynchronous chains, and adapts neither to the other.
- Its position matters little: below `GZipMiddleware` it need not decompress pages, below `ConditionalGetMiddleware` the
  tags are those of the sent bytes.
- A request for a part of a page gets the whole page: the middleware calls the view again without the range.
- When a view fails in the middle of a stream, the buffered bytes go out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import StreamingHttpResponse

from imgkeep.integrations import cooperative
from imgkeep.integrations.django.links import configured
from imgkeep.integrations.response_body import Body, Streamed, Unaltered, Whole
from imgkeep.integrations.responses import Plan, is_part, plan, revalidated, rewritten

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase


class ImgkeepMiddleware:
    """The middleware that rewrites the pages of a site, with the options in `settings.IMGKEEP`."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        configured()  # an invalid setting is an error at start
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._call_async(request)
        response: Any = self._get_response(request)
        if _needs_whole_page(request, response):
            response = self._get_response(request)
        body = _plan_body(request, response)
        if body is not None:
            data = response.content
            decision = body.begin(data, is_last=True)
            streamed = b"".join((*body.feed(data), *body.close())) if isinstance(decision, Streamed) else b""
            _replace(response, decision, streamed)
        answer: HttpResponseBase = response
        return answer

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        response: Any = await self._get_response(request)
        if _needs_whole_page(request, response):
            response = await self._get_response(request)
        body = _plan_body(request, response)
        if body is not None:
            data = response.content
            decision = await cooperative.begin(body, data, is_last=True)
            pieces = []
            if isinstance(decision, Streamed):
                pieces += [piece async for piece in cooperative.in_steps(body, body.feed(data))]
                pieces += [piece async for piece in cooperative.in_steps(body, body.close())]
            _replace(response, decision, b"".join(pieces))
        answer: HttpResponseBase = response
        return answer


def _needs_whole_page(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Return whether the response is a part of a page; if so, remove the range from the request."""
    if not is_part(request.method or "", response.status_code, list(response.items())):
        return False
    response.close()
    for name in ("HTTP_RANGE", "HTTP_IF_RANGE"):
        request.META.pop(name, None)
    vars(request).pop("headers", None)  # a cached property, made from META
    return True


def _plan_body(request: HttpRequest, response: HttpResponseBase) -> Body | None:
    """Install the rewriter of a streaming response; return the rewriter of a complete one."""
    # A response to HEAD still has its body here, unless the view has removed it.
    has_body = response.streaming or bool(getattr(response, "content", b""))
    headers = list(response.items())
    planned = plan("GET" if has_body else request.method or "", response.status_code, headers)
    if planned is None:
        _set_headers(
            response, headers, revalidated(response.status_code, headers, request.headers.get("If-None-Match", ""))
        )
    elif not planned.has_body:
        _set_headers(response, headers, rewritten(headers, None))
    elif isinstance(response, StreamingHttpResponse):
        _stream(response, _body(request, planned))
        _set_headers(response, headers, rewritten(headers, None))
    else:
        return _body(request, planned)
    return None


def _body(request: HttpRequest, planned: Plan) -> Body:
    rewriter = configured()
    # Not get_host(), which raises for forbidden hosts, even on the error page about them.
    host = request.META.get("HTTP_HOST", "")
    url = rewriter.page_url(request.scheme or "http", host, request.get_full_path())
    return Body(planned, rewriter.of_page(url))


def _replace(response: Any, decision: Unaltered | Whole | Streamed, streamed: bytes) -> None:
    """Replace a complete body; `streamed` is the new one if the decision is `Streamed`."""
    if isinstance(decision, Unaltered):
        return
    headers = list(response.items())
    response.content = decision.data if isinstance(decision, Whole) else streamed
    _set_headers(response, headers, rewritten(headers, len(response.content)))


def _stream(response: Any, body: Body) -> None:
    pieces = response.streaming_content
    response.streaming_content = (
        _rewrite_pieces_async(pieces, body) if response.is_async else _rewrite_pieces(pieces, body)
    )


def _rewrite_pieces(pieces: Iterable[bytes], body: Body) -> Iterator[bytes]:
    try:
        for piece in pieces:
            yield from filter(None, body.feed_whole(piece))
    except Exception:
        yield b"".join(body.abandon())
        raise
    yield from filter(None, body.close())


async def _rewrite_pieces_async(pieces: AsyncIterable[bytes], body: Body) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            async for made in cooperative.in_steps(body, body.feed(piece)):
                yield made
    except Exception:
        async for made in cooperative.in_steps(body, body.abandon()):
            yield made
        raise
    async for made in cooperative.in_steps(body, body.close()):
        yield made


def _set_headers(response: HttpResponseBase, old: list[tuple[str, str]], new: list[tuple[str, str]]) -> None:
    left = dict(new)
    for name, value in old:
        if name not in left:
            del response[name]
        elif left[name] != value:
            response[name] = left[name]
