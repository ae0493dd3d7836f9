"""Nothing of a visitor reaches an origin, and nothing of an origin reaches a visitor but the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep import __version__
from tests.support.images import make_image
from tests.support.network import look
from tests.support.origins import FakeOrigin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.server import Imgkeep

    StartImgkeep = Callable[..., Awaitable[Imgkeep]]

VISITOR = {
    "Accept": "text/html",
    "Accept-Encoding": "gzip, br",
    "Accept-Language": "de",
    "Authorization": "Bearer visitor",
    "Cache-Control": "no-cache",
    "Cookie": "session=visitor",
    "Forwarded": "for=203.0.113.7",
    "If-Modified-Since": "Sun, 22 Nov 2026 10:00:00 GMT",
    "If-None-Match": '"visitor"',
    "Origin": "https://page.example",
    "Pragma": "no-cache",
    "Proxy-Authorization": "Basic visitor",
    "Range": "bytes=0-9",
    "Referer": "https://page.example/private",
    "Sec-Fetch-Dest": "image",
    "Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "User-Agent": "visitor",
    "X-Api-Key": "visitor",
    "X-Forwarded-For": "203.0.113.7",
    "X-Real-IP": "203.0.113.7",
}


def ours(origin: FakeOrigin) -> dict[str, str]:
    return {
        "host": f"127.0.0.1:{origin.port}",
        "user-agent": f"Mozilla/5.0 (compatible; imgkeep/{__version__})",
        "accept": "image/png,image/jpeg,image/gif,image/webp;q=0.8,image/*;q=0.5,*/*;q=0.3",
        "accept-encoding": "identity",
        "via": "1.1 imgkeep",
        "cdn-loop": "imgkeep",
    }


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_origin_receives_own_headers_alone(imgkeep: Imgkeep, origin: FakeOrigin, method: str) -> None:
    url = origin.gives("/a.png", make_image()) + "?token=secret&a=%2f"
    await look(imgkeep, url, headers=VISITOR, method=method)
    [exchange] = origin.seen
    # Whatever the visitor's method, and the target to the letter.
    assert (exchange.method, exchange.target) == ("GET", "/a.png?token=secret&a=%2f")
    assert exchange.headers == ours(origin)


async def test_redirect_carries_no_other_headers(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    other = FakeOrigin()
    await other.start()
    there = other.gives("/b.png", make_image())
    headers = {"Location": there, "Set-Cookie": "a=b; Path=/", "WWW-Authenticate": "Basic"}
    await look(imgkeep, origin.gives("/a.png", b"", status="302 Found", headers=headers), headers=VISITOR)
    # A cookie is for a host, whatever the port (RFC 6265, 8.5).
    assert [exchange.headers for exchange in other.seen] == [{**ours(other), "cookie": "a=b"}]
    await other.stop()


async def test_operator_chooses_the_user_agent(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"user_agent": "image_service/7"})
    await look(imgkeep, origin.gives("/a.png", make_image()))
    assert origin.seen[0].headers["user-agent"] == "image_service/7"


@pytest.mark.parametrize(
    ("status", "sent"),
    [("200 OK", [None, None]), ("404 Not Found", [None, None]), ("302 Found", [None, "tracker=1", None])],
)
async def test_cookies_of_an_origin_end_with_their_chain(
    imgkeep: Imgkeep, origin: FakeOrigin, status: str, sent: list[str | None]
) -> None:
    headers = {"Set-Cookie": "tracker=1; Path=/", "Location": "/b.png"}
    origin.gives("/b.png", make_image())
    first = await look(imgkeep, origin.gives("/a.png", make_image(), status=status, headers=headers))
    await look(imgkeep, origin.gives("/c.png", make_image()))
    assert "Set-Cookie" not in first.headers
    assert [exchange.headers.get("cookie") for exchange in origin.seen] == sent


ORIGINS = {
    "Age": "7",
    "Alt-Svc": 'h3=":443"',
    "Clear-Site-Data": '"*"',
    "Content-Disposition": "attachment; filename=evil.html",
    "Content-Language": "de",
    "ETag": '"theirs"',
    "Last-Modified": "Sun, 22 Nov 2026 10:00:00 GMT",
    "Link": "</evil.css>; rel=stylesheet",
    "Location": "https://evil.example/",
    "NEL": "{}",
    "Refresh": "0; url=https://evil.example/",
    "Server": "theirs",
    "Server-Timing": "db",
    "Set-Cookie": "tracker=1",
    "SourceMap": "/map",
    "Strict-Transport-Security": "max-age=1",
    "Vary": "Cookie",
    "X-Theirs": "1",
}


async def test_no_header_of_an_origin_comes_through(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    plain = await look(imgkeep, origin.gives("/a.png", make_image()))
    theirs = {**ORIGINS, "Cache-Control": "no-store", "Content-Security-Policy": "", "Content-Type": "text/html"}
    seen = await look(imgkeep, origin.gives("/b.png", make_image(), headers=theirs))
    assert set(seen.headers) == set(plain.headers)
    changing = {"Etag", "Date", "Content-Disposition"}
    assert {name: value for name, value in seen.headers.items() if name not in changing} == {
        name: value for name, value in plain.headers.items() if name not in changing
    }
    assert "evil" not in str(seen.headers)
    assert "theirs" not in str(seen.headers)


async def test_proxies_of_the_environment_are_ignored(
    start: StartImgkeep, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = FakeOrigin()
    await between.start()
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{between.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    imgkeep = await start()
    seen = await look(imgkeep, origin.gives("/a.png", make_image()))
    assert (seen.status, seen.body, between.connections) == (200, make_image(), 0)
    await between.stop()
