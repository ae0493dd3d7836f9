"""`POST /api/rewrite`: pages and texts, as they are and in JSON; and everything that is no such request."""

from __future__ import annotations

import asyncio
import gzip
import json
from html import unescape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from yarl import URL

from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.signing import signed_path
from tests.support.api_calls import job_done
from tests.support.image_requests import store_image
from tests.support.images import make_image
from tests.support.page_links import DIES, SIGNED, STAYS
from tests.support.raw_http import port_of, target_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp import ClientResponse

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

KEY, TOKEN = "key-of-these-tests", "token-of-these-tests"
PAGE = f'<p>\r\n<IMG\tsrc="{DIES}" alt=ä>\n<img src="{STAYS}">'.encode()


async def post(imgkeep: Imgkeep, body: bytes, kind: str = "text/html", **query: str) -> ClientResponse:
    client = imgkeep.client
    return await client.post("/api/rewrite", data=BytesIO(body), headers={"Content-Type": kind}, params=query)


async def tell(imgkeep: Imgkeep, **body: Any) -> dict[str, Any]:
    response = await imgkeep.client.post("/api/rewrite", json=body)
    assert response.status == 200
    reply: dict[str, Any] = await response.json()
    return reply


def ours(imgkeep: Imgkeep, url: str) -> str:
    return f"http://127.0.0.1:{port_of(imgkeep)}{target_of(url)}"


# --- documents as they are


async def test_only_links_that_die_change_in_a_page(imgkeep: Imgkeep) -> None:
    response = await post(imgkeep, PAGE, "text/html; charset=UTF-8")
    assert response.status == 200
    assert await response.read() == PAGE.replace(DIES.encode(), ours(imgkeep, DIES).encode())
    assert response.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert response.headers["Imgkeep-Rewritten"] == "1"
    assert response.headers["Cache-Control"] == "no-store"
    assert "sandbox" in response.headers["Content-Security-Policy"]
    assert "Location" not in response.headers


async def test_markdown_comes_back_as_markdown(imgkeep: Imgkeep) -> None:
    response = await post(imgkeep, f"# A\n\n![b]({DIES} 'c')\n`![d]({DIES})`\n".encode(), "text/markdown")
    text = f"# A\n\n![b]({ours(imgkeep, DIES)} 'c')\n`![d]({DIES})`\n"
    assert (await response.text(), response.headers["Content-Type"]) == (text, "text/markdown")


WHICH = {
    "temporary": [DIES],
    "all": [DIES, STAYS],
    "*.example": [DIES, STAYS],
    "other.example": [STAYS],
    "nobody.example,o*.example": [STAYS],
    "nobody.example": [],
}


async def test_client_chooses_the_links(imgkeep: Imgkeep) -> None:
    for which, rewritten in WHICH.items():
        page = PAGE
        for link in rewritten:
            page = page.replace(link.encode(), ours(imgkeep, link).encode())
        response = await post(imgkeep, PAGE, which=which)
        assert (await response.read(), response.headers["Imgkeep-Rewritten"]) == (page, str(len(rewritten))), which
        options = which if which in {"temporary", "all"} else which.split(",")
        reply = await tell(imgkeep, html=PAGE.decode(), which=options)
        assert reply == {"success": True, "html": page.decode(), "rewritten": len(rewritten)}, which


async def test_rewriting_twice_changes_nothing(imgkeep: Imgkeep) -> None:
    once = await (await post(imgkeep, PAGE, which="all")).read()
    response = await post(imgkeep, once, which="all")
    assert (await response.read(), response.headers["Imgkeep-Rewritten"]) == (once, "0")


async def test_relative_links_are_those_of_the_page(imgkeep: Imgkeep) -> None:
    page = b'<img src="../c.png">'
    assert await (await post(imgkeep, page, which="all")).read() == page
    response = await post(imgkeep, page, which="all", url="https://h.example/a/b/")
    assert await response.text() == f'<img src="{ours(imgkeep, "https://h.example/a/c.png")}">'


@pytest.mark.parametrize(
    ("body", "codec", "kind", "link"),
    [
        pytest.param(
            '<img src="https://h.example/\xe4?\xe4">'.encode("latin-1"),
            "latin-1",
            "text/html; charset=ISO-8859-1",
            "https://h.example/\xe4?%E4",
            id="latin-1",
        ),
        pytest.param(
            '\ufeff<img src="https://h.example/\u20ac">'.encode("utf-16-le"),
            "utf-16-le",
            "text/html; charset=utf-8",
            "https://h.example/\u20ac",
            id="UTF-16 with a byte order mark",
        ),
        pytest.param(
            '<meta charset=gbk><img src="https://h.example/\u4e2d">'.encode("gbk"),
            "gbk",
            "text/html",
            "https://h.example/\u4e2d",
            id="what the page says itself",
        ),
    ],
)
async def test_pages_are_read_in_their_encoding(
    imgkeep: Imgkeep, body: bytes, codec: str, kind: str, link: str
) -> None:
    response = await post(imgkeep, body, kind, which="all")
    assert f'src="{ours(imgkeep, link)}"' in (await response.read()).decode(codec)
    assert response.headers["Content-Type"] == kind


async def test_binary_document_comes_back_unchanged(imgkeep: Imgkeep) -> None:
    garbage = (b"", b"\0\xff\xfe<" * 50_000, bytes(range(256)) * 300, b"<img src=" * 9_000, "\ufeff".encode())
    for kind in ("text/html", "text/markdown", "text/html; charset=x-nonsense"):
        for body in garbage:
            response = await post(imgkeep, body, kind, which="all", url="https://h.example/")
            assert (response.status, await response.read()) == (200, body), (kind, body[:8])


# --- in JSON


async def test_string_comes_back_in_json(imgkeep: Imgkeep) -> None:
    page = f'\ufeff<meta charset=latin-1>ä€\U0001f600<img src="{DIES}">\r'
    reply = await tell(imgkeep, html=page)
    assert reply == {"success": True, "html": page.replace(DIES, ours(imgkeep, DIES)), "rewritten": 1}
    reply = await tell(imgkeep, markdown=f"![ä]({DIES})", which="all")
    assert reply == {"success": True, "markdown": f"![ä]({ours(imgkeep, DIES)})", "rewritten": 1}
    assert await tell(imgkeep, html="") == {"success": True, "html": "", "rewritten": 0}


async def test_long_string_comes_back_whole(imgkeep: Imgkeep) -> None:
    page = f"<p>{'ä' * 70_000}<img src='{DIES}'>"
    assert (await tell(imgkeep, html=page))["html"] == page.replace(DIES, ours(imgkeep, DIES))


# --- derived pictures


async def test_img_gets_options_and_attributes_when_asked(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    await store_image(imgkeep, url)
    page = f'<img src="{url}"><img src="{DIES}">'
    asked = {"which": "all", "widths": "auto", "lazy": "true", "dimensions": "true", "pictures": "format=auto"}
    answer = unescape(await (await post(imgkeep, page.encode(), **asked)).text())
    first, _, second = answer.partition("><")
    assert first.endswith('" width="64" height="48" loading="lazy"')
    assert (
        "srcset" not in answer
    )  # an image of 64 pixels needs no other width, and the size of the other one is unknown
    assert answer.count("&w=3840&format=auto") == 2
    assert second.endswith('" loading="lazy">')
    body = {"html": page, "which": "all", "pictures": {"127.0.0.1/*": "w=32"}, "widths": [16, 32], "sizes": "50vw"}
    reply = unescape((await tell(imgkeep, **body))["html"])
    assert f'{target_of(url)}&w=32"><img' in reply
    assert f'&w=16 16w, {ours(imgkeep, DIES)}&w=32 32w" sizes="50vw">' in reply


async def test_pictures_that_the_server_would_refuse_are_not_written(start: Start) -> None:
    derive = {"allow": "presets", "presets": {"thumb": "w=32"}, "widths": [64, 128]}
    imgkeep = await start(derive=derive)
    for asked, says in (
        ({"pictures": "w=31"}, "pictures: derive.allow does not permit"),
        ({"pictures": {"*": "format=webp"}}, "pictures: derive.allow does not permit"),
        ({"pictures": "preset=other"}, "pictures: preset: there is no preset"),
        ({"pictures": {"https://a": "w=1"}}, "pictures: 'https://a' can match no"),
        ({"widths": [65]}, "pictures: derive.allow does not permit"),
        ({"widths": []}, "widths: expected auto"),
        ({"sizes": "\n"}, "sizes: expected"),
    ):
        response = await imgkeep.client.post("/api/rewrite", json={"html": "<img>", **asked})
        reply = await response.json()
        assert (response.status, reply["code"], reply["detail"][: len(says)]) == (400, "invalid_request", says)
    for query in ({"widths": "1,x"}, {"widths": "999999"}, {"lazy": "often"}):
        response = await post(imgkeep, b"<img>", **query)
        assert (response.status, (await response.json())["code"]) == (400, "invalid_request")
    asked = {"pictures": "format=webp", "widths": "128,64", "sizes": "1em", "which": "all"}
    page = unescape(await (await post(imgkeep, f'<img src="{DIES}">'.encode(), **asked)).text())
    assert page.count("format=webp") == 3


async def test_links_to_pictures_are_signed_and_lead_to_them(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(derive={"allow": "signed", "widths": []}, security={"signing_keys": [KEY]})
    url = origin.gives("/a.png", make_image())
    reply = await tell(imgkeep, html=f"<img src='{url}'>", which="all", pictures="w=31&format=webp")
    target = signed_path(KEY, url, options=[("format", "webp"), ("w", "31")])
    assert target in unescape(reply["html"])
    answer = await imgkeep.client.get(URL(target, encoded=True))
    picture = Image.open(BytesIO(await answer.read()))
    assert (answer.status, picture.format, picture.size) == (200, "WEBP", (31, 23))


# --- what is written


async def test_links_are_signed_and_lead_to_the_image(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(security={"signature": "always", "signing_keys": [KEY, "a-former-key-of-ours"]})
    url = origin.gives("/a.png", make_image()) + f"?{SIGNED}"
    reply = await tell(imgkeep, html=f"<img src='{url}'>")
    target = signed_path(KEY, url)
    assert unescape(reply["html"]) == f"<img src='http://127.0.0.1:{port_of(imgkeep)}{target}'>"
    assert await (await imgkeep.client.get(URL(target, encoded=True))).read() == make_image()


@pytest.mark.parametrize(
    ("server", "before"),
    [
        ({"public_url": "https://img.example/kept/"}, "https://img.example/kept"),
        ({"trusted_proxies": ["127.0.0.1/32"]}, ""),
    ],
)
async def test_links_ignore_what_clients_claim(start: Start, server: dict[str, Any], before: str) -> None:
    imgkeep = await start(server=server, security={"api_tokens": [TOKEN]})
    page = f"<img src='{DIES}'><img src='https://img.example/kept/images/x.png'><img src=/images/x.png>"
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "evil.example", "Content-Type": "text/html"}
    response = await imgkeep.client.post("/api/rewrite?which=all", data=page.encode(), headers=headers)
    text = await response.text()
    if before:
        assert text == page.replace(DIES, before + target_of(DIES))
    else:
        assert text.startswith(f"<img src='{target_of(DIES)}'><img src='/img?src=https%3A%2F%2Fimg.example")


async def test_refused_links_stay_and_configured_providers_count(start: Start) -> None:
    provider = {"name": "Acme", "hosts": ["img.acme.example"], "signed_by": {"acme": "hex64"}}
    imgkeep = await start(sources={"allow": ["*.acme.example"], "deny": ["no.acme.example"], "providers": [provider]})
    dies = f"https://img.acme.example/a?acme={'0a' * 32}"
    refused = [DIES, f"https://no.acme.example/b?{SIGNED}", "http://10.0.0.1/"]
    page = "".join(f"<img src='{link}'>" for link in [dies, *refused])
    assert (await tell(imgkeep, html=page))["html"] == page.replace(dies, ours(imgkeep, dies))
    assert (await tell(imgkeep, html=page, which="all"))["html"] == page.replace(dies, ours(imgkeep, dies))


# --- saving


@pytest.mark.parametrize("way", ["raw", "json"])
async def test_images_are_saved_at_once(imgkeep: Imgkeep, origin: FakeOrigin, way: str) -> None:
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) + f"?{SIGNED}" for n in range(3)]
    page = "".join(f'<img src="{url}#x">' for url in [*urls, urls[0]])
    if way == "raw":
        response = await post(imgkeep, page.encode(), save="true")
        assert response.headers["Imgkeep-Rewritten"] == "4"
        job = URL(response.headers["Location"]).name
        assert response.headers["Location"] == f"http://127.0.0.1:{port_of(imgkeep)}/api/jobs/{job}"
    else:
        reply = await tell(imgkeep, html=page, save=True)
        assert (reply["rewritten"], reply["job"]["total"], reply["job"]["state"]) == (4, 3, "queued")
        job = reply["job"]["id"]
    reply = await job_done(imgkeep, job)
    assert (reply["total"], reply["saved"]) == (3, 3)
    await origin.stop()
    for n, url in enumerate(urls):
        assert await (await imgkeep.img(url)).read() == make_image(seed=n)


async def test_unchanged_document_submits_no_job(imgkeep: Imgkeep) -> None:
    assert (await tell(imgkeep, html="<img>", save=True))["job"] is None
    response = await post(imgkeep, b"<img>", save="true")
    assert (response.status, "Location" in response.headers) == (200, False)


async def test_more_links_than_a_job_takes_are_refused(imgkeep: Imgkeep) -> None:
    page = "".join(f"<img src=//h.example/{n}>" for n in range(10_001))
    response = await post(imgkeep, page.encode(), which="all", url="https://h.example/", save="true")
    assert (response.status, (await response.json())["code"]) == (400, "invalid_request")
    assert imgkeep.client.app is not None
    assert imgkeep.client.app[SERVICES].jobs.waiting == 0


# --- what is no such request


OTHER_JSON: list[Any] = [
    {},
    {"html": "", "markdown": ""},
    {"html": 7},
    {"html": None},
    {"html": "", "which": "some"},
    {"html": "", "which": []},
    {"html": "", "which": ["a b"]},
    {"html": "", "which": ["x"] * 101},
    {"html": "", "url": "nonsense"},
    {"html": "", "url": "/a"},
    {"html": "", "url": "https://user:word@h.example/"},
    {"html": "", "save": 1},
    {"html": "", "more": 1},
    {"markdown": "a" * (4 * 1024 * 1024 + 1)},
]


async def test_other_json_is_refused(imgkeep: Imgkeep) -> None:
    for body in OTHER_JSON:
        response = await post(imgkeep, json.dumps(body).encode(), "application/json")
        reply = await response.json()
        assert (response.status, reply["code"], reply["success"]) == (400, "invalid_request", False), str(body)[:40]
    response = await post(imgkeep, rb'{"html": "\ud800"}', "application/json")
    assert response.status == 400, "half a character"
    response = await imgkeep.client.post("/api/rewrite?which=all", json={"html": ""})
    assert response.status == 400, "its options stand in it"


OTHER_QUERIES = ("which=", "which=a%20b", "url=a", "save=yes", "save=", "more=1", "which=all&which=all", "url=%ff")


async def test_other_parameters_are_refused(imgkeep: Imgkeep) -> None:
    headers = {"Content-Type": "text/html"}
    for query in OTHER_QUERIES:
        response = await imgkeep.client.post(URL(f"/api/rewrite?{query}", encoded=True), data=b"", headers=headers)
        assert (response.status, (await response.json())["code"]) == (400, "invalid_request"), query


async def test_other_kinds_of_bodies_are_refused(imgkeep: Imgkeep) -> None:
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/xhtml+xml"},
        {"Content-Type": "text/html", "Content-Encoding": "gzip"},
    ):
        body = BytesIO(gzip.compress(PAGE))
        response = await imgkeep.client.post("/api/rewrite", data=body, headers=headers)
        assert (response.status, (await response.json())["code"]) == (415, "unsupported_media_type"), headers


async def test_fifty_megabytes_are_refused(imgkeep: Imgkeep) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"<" * 1_000_000

    for kind in ("text/html", "text/markdown", "application/json"):
        for length in ({"Content-Length": "50000000"}, {}):
            headers = {"Content-Type": kind, **length}
            async with imgkeep.client.post("/api/rewrite", data=pieces(), headers=headers) as response:
                assert (response.status, (await response.json())["code"]) == (413, "request_too_large"), headers


async def test_without_a_token_nothing_is_read(start: Start) -> None:
    imgkeep = await start(security={"api_tokens": [TOKEN]})
    response = await imgkeep.stranger.post("/api/rewrite", data=PAGE)
    assert (response.status, (await response.json())["code"]) == (401, "unauthorized")
    assert "WWW-Authenticate" in response.headers


# --- who is told


async def test_documents_and_links_are_counted_and_recorded(imgkeep: Imgkeep, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "imgkeep.access")
    await post(imgkeep, PAGE, which="all")
    await tell(imgkeep, markdown="nothing")
    metrics = await (await imgkeep.client.get("/metrics")).text()
    for line in (
        'imgkeep_documents_total{form="html"} 1.0',
        'imgkeep_documents_total{form="markdown"} 1.0',
        "imgkeep_rewritten_links_total 2.0",
        'imgkeep_requests_total{outcome="rewritten",route="/api/rewrite",status="200"} 2.0',
    ):
        assert line in metrics
    record = next(each for each in caplog.records if each.name == "imgkeep.access")
    assert (vars(record)["route"], vars(record)["outcome"], vars(record)["status"]) == (
        "/api/rewrite",
        "rewritten",
        200,
    )
    assert "example" not in metrics
    assert not any("pictures.example" in str(vars(each)) for each in caplog.records)


async def test_long_document_blocks_no_other_request(imgkeep: Imgkeep) -> None:
    long = asyncio.create_task(post(imgkeep, PAGE * 5_000, which="all"))
    answered = 0
    while not long.done():
        assert (await post(imgkeep, PAGE)).status == 200
        answered += 1
    assert (await long).headers["Imgkeep-Rewritten"] == "10000"
    assert answered > 1
