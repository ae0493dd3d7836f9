"""Header fields of responses of every class: on a miss, collapsed and on a hit (RFC 9110, 9111, 9211)."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.http_headers import CDN_ID
from imgkeep.database import ImageIndex
from tests.support.fast_path import WITH_AND_WITHOUT_FAST_PATH
from tests.support.image_requests import IMAGE_FIELDS, fills_done, store_image
from tests.support.images import make_image, png_of
from tests.support.origins import gated_body
from tests.support.raw_http import Answer, get, target_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

IMAGE = png_of(200_000)
SVG_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; sandbox"
VARYING = {"date", "connection", "etag", "content-disposition"}
SECRETS = {
    "Set-Cookie": "a=b",
    "Content-Disposition": "attachment; filename=evil.html",
    "Location": "/elsewhere",
    "Alt-Svc": "h3=evil",
    "Clear-Site-Data": "*",
    "Strict-Transport-Security": "max-age=1",
    "Link": "</x>; rel=preload",
    "Refresh": "0; url=/x",
    "Server-Timing": "x",
    "Content-Type": "text/html",
    "ETag": '"theirs"',
    "Last-Modified": "Sun, 22 Nov 2026 10:00:00 GMT",
    "Content-Security-Policy": "default-src *",
    "Cache-Control": "private, no-store",
    "Server": "theirs",
    "X-Anything": "x",
}


def varying(answer: Answer, *, ended: bool = True) -> dict[str, str]:
    """Check the fields of every image, and return the others; `ended`: the image was stored before."""
    caching = answer.headers["cache-control"]
    assert caching in (
        {IMAGE_FIELDS["cache-control"]} if ended else {IMAGE_FIELDS["cache-control"], "public, max-age=60"}
    )
    assert answer.headers.items() >= (IMAGE_FIELDS | {"cache-control": caching}).items()
    assert re.fullmatch(r'"[0-9a-f]{32}"', answer.headers["etag"])
    assert re.fullmatch(r'inline; filename="[0-9a-f]{16}\.png"', answer.headers["content-disposition"])
    return {name: value for name, value in answer.headers.items() if name not in IMAGE_FIELDS and name not in VARYING}


@WITH_AND_WITHOUT_FAST_PATH
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_headers_of_miss_and_hit(imgkeep: Imgkeep, origin: FakeOrigin, method: str) -> None:
    url = origin.gives("/a.png", IMAGE, headers=SECRETS)
    miss = await get(imgkeep, target_of(url), method=method)
    assert miss.status == 200
    assert varying(miss, ended=False) == {
        "content-type": "image/png",
        "content-length": "200000",
        "cache-status": "imgkeep; fwd=uri-miss; stored",
    }
    await fills_done(imgkeep)
    hit = await get(imgkeep, target_of(url), method=method)
    assert hit.status == 200
    assert varying(hit) == {
        "content-type": "image/png",
        "content-length": "200000",
        "cache-status": "imgkeep; hit",
        "content-location": hit.headers["content-location"],
    }
    assert re.fullmatch(r"/images/[0-9a-f]{64}\.png", hit.headers["content-location"])
    assert miss.body == hit.body == (IMAGE if method == "GET" else b"")
    for name in VARYING - {"date", "connection"}:
        assert miss.headers[name] == hit.headers[name]
    assert origin.asked("/a.png") == 1


@WITH_AND_WITHOUT_FAST_PATH
async def test_headers_of_a_collapsed_response(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(IMAGE, gate, ahead=100_000))
    leader = await imgkeep.img(url)
    follower = await imgkeep.img(url)
    assert follower.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; collapsed"
    assert "Content-Location" not in follower.headers
    assert await follower.content.readexactly(50_000) == IMAGE[:50_000]
    gate.set()
    assert await leader.read() == IMAGE
    assert await follower.read() == IMAGE[50_000:]
    different = {"Cache-Status", "Date"}
    assert {n: v for n, v in leader.headers.items() if n not in different} == {
        n: v for n, v in follower.headers.items() if n not in different
    }


@WITH_AND_WITHOUT_FAST_PATH
async def test_only_a_miss_of_unknown_size_is_chunked(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    gate = asyncio.Event()
    gate.set()
    url = origin.on("/a.png", gated_body(IMAGE, gate, ahead=100_000, declared=False))
    miss = await imgkeep.img(url)
    assert miss.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in miss.headers
    assert await miss.read() == IMAGE
    hit = await imgkeep.img(url)
    assert (hit.headers["Content-Length"], await hit.read()) == ("200000", IMAGE)


@WITH_AND_WITHOUT_FAST_PATH
async def test_head_on_a_miss_fills(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    assert (await get(imgkeep, target_of(url), method="HEAD")).body == b""
    await fills_done(imgkeep)
    assert len(imgkeep.files("objects")) == 1
    assert (await get(imgkeep, target_of(url))).headers["cache-status"] == "imgkeep; hit"


@WITH_AND_WITHOUT_FAST_PATH
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_headers_of_304(imgkeep: Imgkeep, origin: FakeOrigin, method: str) -> None:
    url = origin.gives("/a.png", IMAGE)
    etag = (await store_image(imgkeep, url)).headers["etag"]
    answer = await get(imgkeep, target_of(url), f"If-None-Match: {etag}", method=method)
    assert (answer.status, answer.body) == (304, b"")
    assert set(varying(answer)) == {"cache-status", "content-location"}
    assert answer.headers["etag"] == etag


CONDITIONS = {
    "strong": (["{}"], 304),
    "weak": (["W/{}"], 304),
    "star": (["*"], 304),
    "list": (['"x", W/{} , "y"'], 304),
    "list with an empty member": (['"x",, {}'], 304),
    "two lines": (['"x"', "{}"], 304),
    "another": (['"x"'], 200),
    "unquoted": (["x"], 200),
    "no comma": (['"x"  {}'], 200),
    "empty": ([""], 200),
}


@WITH_AND_WITHOUT_FAST_PATH
async def test_if_none_match_on_a_hit(imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests) -> None:
    for number, (name, (fields, status)) in enumerate(CONDITIONS.items()):
        with subtests.test(name):
            url = origin.gives(f"/{number}.png", IMAGE)
            etag = (await store_image(imgkeep, url)).headers["etag"]
            answer = await get(imgkeep, target_of(url), *(f"If-None-Match: {field.format(etag)}" for field in fields))
            assert (answer.status, answer.body) == (status, IMAGE if status == 200 else b"")


@WITH_AND_WITHOUT_FAST_PATH
async def test_if_none_match_on_a_collapsed_response(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(IMAGE, gate, ahead=100_000))
    leader = await imgkeep.img(url)
    answer = await imgkeep.img(url, headers={"If-None-Match": leader.headers["ETag"]})
    assert answer.status == 304
    gate.set()
    assert await leader.read() == IMAGE


@WITH_AND_WITHOUT_FAST_PATH
async def test_etag_outlives_a_restart_and_the_loss_of_the_database(start: Start, origin: FakeOrigin) -> None:
    first = await start()
    url = origin.gives("/a.png", IMAGE)
    etag = (await store_image(first, url)).headers["etag"]
    await first.client.close()
    (first.folder / "imgkeep.db").unlink()
    second = await start(folder=first.folder)
    answer = await get(second, target_of(url), f"If-None-Match: {etag}")
    assert (answer.status, answer.headers["etag"], answer.headers["cache-status"]) == (304, etag, "imgkeep; hit")


@WITH_AND_WITHOUT_FAST_PATH
async def test_etags_of_two_fills_of_equal_bytes_differ(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    one = await store_image(imgkeep, origin.gives("/a.png", IMAGE))
    other = await store_image(imgkeep, origin.gives("/b.png", IMAGE))
    assert one.headers["etag"] != other.headers["etag"]
    assert len(imgkeep.files("objects")) == 1
    assert len(imgkeep.files("records")) == 2


@WITH_AND_WITHOUT_FAST_PATH
async def test_both_spellings_of_a_source_reach_one_object(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE) + "?X-Expires=60&X-Signature=a%2Fb"
    encoded = await get(imgkeep, f"/img?src={quote(url, safe='')}")
    await fills_done(imgkeep)
    as_it_stands = await get(imgkeep, f"/img?src={url}")
    assert (encoded.status, as_it_stands.status) == (200, 200)
    assert as_it_stands.headers["cache-status"] == "imgkeep; hit"
    assert origin.seen[0].target == "/a.png?X-Expires=60&X-Signature=a%2Fb"
    assert len(origin.seen) == 1


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
async def test_http_1_0_client_gets_the_size(imgkeep: Imgkeep, origin: FakeOrigin, declared: bool) -> None:  # noqa: FBT001 - a table
    gate = asyncio.Event()
    gate.set()
    url = origin.on("/a.png", gated_body(IMAGE, gate, ahead=100_000, declared=declared))
    for outcome in ("fwd=uri-miss; stored", "hit"):
        answer = await get(imgkeep, target_of(url), version="1.0")
        assert answer.headers["content-length"] == "200000"
        assert "transfer-encoding" not in answer.headers
        assert answer.body == IMAGE
        assert answer.headers["cache-status"] == f"imgkeep; {outcome}"


@WITH_AND_WITHOUT_FAST_PATH
async def test_svg_is_unchanged_and_sandboxed(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
    url = origin.gives("/a.svg", body, headers={"Content-Type": "text/html"})
    first = await get(imgkeep, target_of(url))
    await fills_done(imgkeep)
    second = await get(imgkeep, target_of(url))
    permanent = await get(imgkeep, second.headers["content-location"])
    for answer in (first, second, permanent):
        assert answer.status == 200
        assert answer.headers.items() >= {**IMAGE_FIELDS, "content-security-policy": SVG_CSP}.items()
        assert answer.headers["content-type"] == "image/svg+xml"
        assert re.fullmatch(r'inline; filename="[0-9a-f]{16}\.svg"', answer.headers["content-disposition"])
        assert answer.body == body


CLIENT_HEADERS = [
    "Cookie: secret=1",
    "Authorization: Bearer secret",
    "Accept: text/html",
    "Accept-Encoding: gzip",
    "User-Agent: secret",
    "Referer: https://secret.example/",
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Proto: https",
    "Forwarded: host=evil.example;proto=https",
    "X-Original-URL: /evil",
    "Range: bytes=5-9",
    'If-None-Match: "secret"',
]


@WITH_AND_WITHOUT_FAST_PATH
async def test_client_headers_do_not_reach_the_origin(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", IMAGE)
    assert (await get(imgkeep, target_of(url), *CLIENT_HEADERS)).status == 206
    (exchange,) = origin.seen
    assert "secret" not in str(exchange.headers)
    assert not {"cookie", "authorization", "referer", "range", "if-none-match", "forwarded"} & set(exchange.headers)
    assert not any(name.startswith("x-") for name in exchange.headers)
    assert exchange.headers["host"] == f"127.0.0.1:{origin.port}"


@WITH_AND_WITHOUT_FAST_PATH
@pytest.mark.parametrize("public_url", ["", "https://img.example/base/"], ids=["without", "with"])
async def test_host_and_forwarding_headers_change_nothing(start: Start, origin: FakeOrigin, public_url: str) -> None:
    imgkeep = await start(server={"public_url": public_url, "trusted_proxies": ["127.0.0.0/8"]})
    url = origin.gives("/a.png", IMAGE)
    await store_image(imgkeep, url)
    plain = await get(imgkeep, target_of(url))
    forged = await get(
        imgkeep,
        target_of(url),
        *(header for header in CLIENT_HEADERS if "Range" not in header),
    )
    del plain.headers["date"], forged.headers["date"]
    assert forged == plain
    location = plain.headers["content-location"]
    assert re.fullmatch(re.escape(public_url.rstrip("/")) + r"/images/[0-9a-f]{64}\.png", location)
    assert len(imgkeep.files("records")) == 1


@WITH_AND_WITHOUT_FAST_PATH
async def test_own_permanent_url_is_served_and_other_own_urls_are_loops(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(server={"public_url": "http://img.example/base"})
    await store_image(imgkeep, origin.gives("/a.png", IMAGE))
    location = (await get(imgkeep, target_of(origin.url("/a.png")))).headers["content-location"]
    own = await get(imgkeep, target_of(location))
    assert (own.status, own.body) == (200, IMAGE)
    assert own.headers["content-location"] == location
    for path in ("/img?src=x", "/", "/images/", f"/images/{'0' * 64}.png", "/x/images/a.png"):
        loop = await get(imgkeep, target_of(f"http://img.example/base{path}"))
        assert (loop.status, loop.headers["content-type"]) == (508, "application/problem+json")
    assert len(origin.seen) == 1


@WITH_AND_WITHOUT_FAST_PATH
@pytest.mark.parametrize(
    "fields", [[f"CDN-Loop: {CDN_ID}"], ["CDN-Loop: other", f"CDN-Loop: {CDN_ID}"], [f"Via: 1.1 {CDN_ID}"]]
)
async def test_own_node_gets_stored_images_alone(imgkeep: Imgkeep, origin: FakeOrigin, fields: list[str]) -> None:
    url = origin.gives("/a.png", IMAGE)
    assert (await get(imgkeep, target_of(url), *fields)).status == 508
    assert not origin.seen
    await store_image(imgkeep, url)
    assert (await get(imgkeep, target_of(url), *fields)).status == 200


@WITH_AND_WITHOUT_FAST_PATH
async def test_warm_hits_cause_no_sql(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(platform=Platform())
    urls = [origin.gives(f"/{number}.png", make_image(seed=number)) for number in range(3)]
    for url in urls:
        await store_image(imgkeep, url)
    app = imgkeep.client.app
    assert app is not None
    database = app[SERVICES].image_service.records._image_index
    assert isinstance(database, ImageIndex)
    await until(lambda: database.complete)  # a new one is filled from the records, in the background
    await database.count()  # waits for rows that are still on their way
    statements: list[str] = []

    def note(*facts: object) -> None:
        statements.append(str(facts[2]))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        for url in urls * 10:
            answer = await get(imgkeep, target_of(url))
            assert answer.headers["cache-status"] == "imgkeep; hit"
        assert statements == []
        # And a statement would have been noted.
        await store_image(imgkeep, origin.gives("/new.png", make_image(seed=99)))
        await database.count()
        assert any("INSERT" in statement for statement in statements)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


# The permanent URL


@WITH_AND_WITHOUT_FAST_PATH
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_permanent_url_serves_the_object(imgkeep: Imgkeep, origin: FakeOrigin, method: str) -> None:
    await store_image(imgkeep, origin.gives("/a.png", IMAGE))
    location = (await get(imgkeep, target_of(origin.url("/a.png")))).headers["content-location"]
    answer = await get(imgkeep, location, method=method)
    digest = location.removeprefix("/images/").removesuffix(".png")
    assert answer.headers.items() >= IMAGE_FIELDS.items()
    assert answer.status == 200
    assert answer.headers["etag"] == f'"{digest}"'
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-location"] == location
    assert answer.headers["content-length"] == "200000"
    assert answer.headers["cache-status"] == "imgkeep; hit"
    assert answer.body == (IMAGE if method == "GET" else b"")
    assert (await get(imgkeep, location, f'If-None-Match: W/"{digest}"')).status == 304
    part = await get(imgkeep, location, "Range: bytes=-5")
    assert (part.status, part.body) == (206, IMAGE[-5:])


DIGEST = "0" * 64
ODD_NAMES = [
    "/images/../imgkeep.db",
    "/images/..%2f..%2fcatalog.db",
    "/images/%2e%2e/%2e%2e/imgkeep.db",
    "/images/..%5ccatalog.db",
    "/images/....//imgkeep.db",
    "/images/%2fetc%2fpasswd",
    "/images//etc/passwd",
    f"/images/{DIGEST}.png",
    f"/images/{DIGEST}.png%00",
    f"/images/{DIGEST}.png%0a",
    f"/images/{DIGEST}.png/",
    f"/images/{DIGEST}.png/..",
    f"/images/{DIGEST}.json",
    f"/images/{DIGEST}.PNG",
    f"/images/{'A' * 64}.png",
    f"/images/{DIGEST}",
    f"/images/{DIGEST}.",
    f"/images/{'0' * 63}.png",
    f"/images/{'0' * 6000}.png",
    "/images/" + quote("\u0660") * 64 + ".png",
    "/images/%ff%fe",
    "/images/",
    "/images",
    "/images/.",
    "/images/*",
    "/images/con",
    "/images/~root",
    "/images/;id",
    "/v1/records/",
    "/img/",
    "/IMG?src=x",
    "/favicon.ico",
    "//evil.example/images/x",
    "/%2e%2e/img",
]


async def test_odd_names_are_404_and_open_nothing_outside(
    imgkeep: Imgkeep, opened: list[str], subtests: pytest.Subtests
) -> None:
    for target in ODD_NAMES:
        with subtests.test(target):
            opened.clear()
            answer = await get(imgkeep, target)
            assert answer.status == 404
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["cache-control"] == "no-store"
            outside = [path for path in opened if not path.startswith(str(imgkeep.folder / "v1" / "objects"))]
            assert outside == []


@pytest.mark.parametrize("target", ["/img?src=https://a.example/x", f"/images/{DIGEST}.png", "/healthz", "/metrics"])
async def test_other_methods_are_405(imgkeep: Imgkeep, target: str, subtests: pytest.Subtests) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "PROPFIND", "TRACE"):
        with subtests.test(method):
            answer = await get(imgkeep, target, "Content-Length: 0", method=method)
            assert answer.status == 405
            assert answer.headers["content-type"] == "application/problem+json"
            is_image = target.startswith(("/img", "/images"))
            assert answer.headers["allow"] == ("GET,HEAD,OPTIONS" if is_image else "GET,HEAD")
            assert b'"code":"method_not_allowed"' in answer.body


async def test_probes_and_metrics_are_never_stored(imgkeep: Imgkeep) -> None:
    for target in ("/healthz", "/readyz", "/metrics"):
        for method in ("GET", "HEAD"):
            answer = await get(imgkeep, target, method=method)
            assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
            assert bool(answer.body) == (method == "GET")
