"""The middleware and the filters for Django, in both kinds of chain."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.template import Context, Template
from django.test import AsyncClient, Client, override_settings
from django.test.utils import setup_test_environment, teardown_test_environment
from django.urls import path
from django.utils.module_loading import import_string
from django.utils.safestring import mark_safe
from django.views import View

from imgkeep.integrations import asgi, wsgi
from imgkeep.integrations.django import ImgkeepMiddleware, img_url
from imgkeep.integrations.django.links import configured
from tests.support import django_settings
from tests.support.asgi_messages import body_of
from tests.support.pages import LINK, NEW_LINK, PAGE, WANTED
from tests.support.wsgi_server import WsgiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

OPTIONS = {"public_url": "https://k.example", "which": ["h.example"]}
OURS = "imgkeep.integrations.django.ImgkeepMiddleware"

django_settings.configure()


@pytest.fixture(autouse=True)
def _django() -> Iterator[None]:
    setup_test_environment()
    with override_settings(IMGKEEP=OPTIONS):
        yield
    teardown_test_environment()


def page(request: HttpRequest) -> HttpResponse:
    response = HttpResponse(PAGE, headers={"ETag": '"a"', **request.GET.dict()})
    if "length" in request.path:
        response["Content-Length"] = str(len(response.content))
    return response


def streamed(_: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([PAGE[:50], PAGE[50:]]), headers={"Content-Length": str(len(PAGE))})


async def streamed_later(_: HttpRequest) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield PAGE[:50]
        yield PAGE[50:]

    return StreamingHttpResponse(pieces())


class Headless(View):
    """Answers to HEAD itself."""

    def head(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse(headers={"Content-Length": "99", "ETag": '"a"'})


urlpatterns = [
    path("page", page),
    path("page/length", page),
    path("streamed", streamed),
    path("streamed-later", streamed_later),
    path("headless", Headless.as_view()),
]


def test_page_is_rewritten() -> None:
    for url, length in (("/page", None), ("/page/length", str(len(WANTED)))):
        response = Client().get(url)
        assert response.content == WANTED
        assert (response.get("Content-Length"), response["ETag"]) == (length, 'W/"a"')


@pytest.mark.parametrize(
    "order", [[OURS, "django.middleware.gzip.GZipMiddleware"], ["django.middleware.gzip.GZipMiddleware", OURS]]
)
def test_order_of_gzip_middleware_does_not_matter(order: list[str]) -> None:
    def large(_: HttpRequest) -> HttpResponse:
        return HttpResponse(PAGE * 9)

    chain: Any = large
    for name in reversed(order):
        chain = import_string(name)(chain)
    request = HttpRequest()
    request.META["HTTP_ACCEPT_ENCODING"] = "gzip"
    response = chain(request)
    assert response["Content-Encoding"] == "gzip"
    assert response["Content-Length"] == str(len(response.content))
    assert gzip.decompress(response.content) == WANTED * 9


def test_stream_is_rewritten_piece_by_piece() -> None:
    response = Client().get("/streamed")
    assert isinstance(response, HttpResponseBase)
    assert "Content-Length" not in response
    assert list(response.streaming_content) == [PAGE[:45], WANTED[45:]]  # type: ignore[attr-defined]


def test_head_is_answered_as_the_view_does() -> None:
    response = Client().head("/page/length")
    assert (response.content, response["Content-Length"], response["ETag"]) == (b"", str(len(WANTED)), 'W/"a"')
    response = Client().head("/headless")
    assert ("Content-Length" in response, response["ETag"]) == (False, 'W/"a"')


async def test_asynchronous_chains() -> None:
    client = AsyncClient()
    response = await client.get("/page/length")
    assert (response.content, response["Content-Length"]) == (WANTED, str(len(WANTED)))
    response = await client.get("/streamed-later")
    assert b"".join([piece async for piece in response.streaming_content]) == WANTED  # type: ignore[attr-defined]


@contextmanager
def without_middleware() -> Iterator[None]:
    with override_settings(MIDDLEWARE=[]):
        yield


def test_wsgi_middleware_wraps_django() -> None:
    with without_middleware():
        app = wsgi.Imgkeep(WSGIHandler(), public_url="https://k.example", which=["h.example"])
        assert WsgiServer(app, PATH_INFO="/page").run() == WANTED
        server = WsgiServer(app, PATH_INFO="/page/length")
        assert server.run() == WANTED
        assert server.headers["Content-Length"] == str(len(WANTED))


async def test_asgi_middleware_wraps_django() -> None:
    with without_middleware():
        app = asgi.Imgkeep(ASGIHandler(), public_url="https://k.example", which=["h.example"])
        sent: list[Any] = []
        came = asyncio.Event()
        asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            for message in asked:
                return message
            await came.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/page", "query_string": b"", "headers": []}
        await app(scope, receive, send)
        assert body_of(sent) == WANTED


def rendered(source: str, **values: Any) -> str:
    return Template("{% load imgkeep %}" + source).render(Context(values))


def test_filters() -> None:
    html = f'<img src="{LINK}">'
    assert rendered("{{ url|img_url }}", url=LINK) == NEW_LINK
    assert rendered("{{ url|img_url }}", url="https://o.example/b.png") == NEW_LINK.replace(
        "h.example%2Fa", "o.example%2Fb"
    )
    assert rendered("{{ url|img_url }}", url="a.png?a=1&b=2") == "a.png?a=1&amp;b=2"
    assert img_url(LINK) == NEW_LINK
    assert img_url("") == ""
    assert rendered("{{ html|safe|imgkeep }}", html=html) == html.replace(LINK, NEW_LINK)
    assert rendered("{{ url|img_url:'preset=thumb' }}", url=LINK) == f"{NEW_LINK}&amp;preset=thumb"
    assert rendered("{{ url|img_url:'w=5' }}", url=mark_safe(LINK)) == f"{NEW_LINK}&amp;w=5"
    assert img_url(LINK, "w=5") == f"{NEW_LINK}&w=5"
    assert rendered("{{ missing|img_url }}{{ missing|imgkeep }}") == ""


def test_filters_keep_the_safe_mark() -> None:
    html = f'<img src="{LINK}">'
    assert rendered("{{ html|imgkeep }}", html=html) == (
        html.replace(LINK, NEW_LINK).replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    )
    escaped = mark_safe(f"{LINK}?a=1&amp;b=2")
    assert rendered("{{ url|img_url }}", url=escaped) == f"{NEW_LINK}%3Fa%3D1%26b%3D2"
    assert rendered("{{ url|img_url }}", url=mark_safe("a.png?a=1&amp;b=2")) == "a.png?a=1&amp;b=2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "IMGKEEP is missing"),
        ({}, "public_url"),
        ({"public_url": "img.example.com"}, "public_url: it is not an absolute"),
        ({"public_url": "", "which": "some"}, "which: is temporary, all"),
        ({"public_url": "", "why": 1}, "why"),
    ],
)
def test_invalid_setting_is_an_error_at_start(options: Any, message: str) -> None:
    with override_settings(IMGKEEP=options), pytest.raises(ImproperlyConfigured, match=message):
        ImgkeepMiddleware(lambda _: HttpResponse())


def test_settings_are_read_once() -> None:
    assert configured() is configured()
