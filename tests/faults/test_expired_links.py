"""Expired is expired: what origins answer to links past their end, in whichever way they put it."""

from __future__ import annotations

import asyncio
import gzip
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.dead_link import READ_BYTES
from imgkeep.origin import client
from tests.support.images import make_image
from tests.support.network import Names, look, nothing_kept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

HTML = b"<!DOCTYPE html><html><title>Sign in</title></html>"
XML = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


def signed(url: str, *, past: bool, number: int = 0) -> str:
    """Return a link with a presigned end, which is past or an hour from now."""
    start = Platform().clock() - timedelta(hours=2 if past else 0, seconds=number)
    return (
        f"{url}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={start:%Y%m%dT%H%M%SZ}&X-Amz-Expires=3600"
        f"&X-Amz-Signature={'0' * 64}"
    )


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 410, 419, 422])
async def test_refused_link_past_its_end_is_expired(imgkeep: Imgkeep, origin: FakeOrigin, status: int) -> None:
    url = signed(origin.gives("/a.png", b"no", status=f"{status} No"), past=True)
    for _ in range(2):
        seen = await look(imgkeep, url)
        assert (seen.status, seen.code) == (410, "source_expired")
    assert origin.asked("/a.png") == 1
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_deferred_link_past_its_end_is_not_expired(imgkeep: Imgkeep, origin: FakeOrigin, status: int) -> None:
    seen = await look(imgkeep, signed(origin.gives("/a.png", XML, status=f"{status} Later"), past=True))
    assert (seen.status, seen.code) == (502, "origin_error")


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        ("400 Bad Request", XML, {}),
        ("400 Bad Request", gzip.compress(XML), {"Content-Encoding": "gzip"}),
        ("400 Bad Request", b'{"statusCode":"400","error":"InvalidJWT","message":"jwt expired"}', {}),
        ("403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", {}),
        ("400 Bad Request", XML + b" " * 1_000_000, {}),
        ("200 OK", b"<?xml version='1.0'?>" + XML, {"Content-Type": "image/png"}),
    ],
    ids=["S3", "compressed", "Supabase", "403", "long", "with 200"],
)
@pytest.mark.parametrize("kind", ["signed", "plain"])
async def test_link_that_the_origin_calls_expired_is_expired(  # noqa: PLR0917 - a table
    imgkeep: Imgkeep, origin: FakeOrigin, status: str, body: bytes, headers: dict[str, str], kind: str
) -> None:
    url = origin.gives("/a.png", body, status=status, headers=headers)
    seen = await look(imgkeep, signed(url, past=False) if kind == "signed" else url)
    assert (seen.status, seen.code) == (410, "source_expired")
    await nothing_kept(imgkeep)


async def test_other_error_words_mean_nothing_and_none_is_shown(
    imgkeep: Imgkeep, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for path, body in (("/a.png", b"<p>topsecret</p>"), ("/b.png", b"topsecret" + XML)):
        url = signed(origin.gives(path, body, status="400 Bad Request"), past=False)
        seen = await look(imgkeep, url)
        assert (seen.status, seen.code) == ((502, "origin_error") if path == "/a.png" else (410, "source_expired"))
        assert b"topsecret" not in seen.body
    assert "topsecret" not in caplog.text


async def test_words_far_behind_are_not_read(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", b" " * READ_BYTES + XML, status="400 Bad Request")
    assert (await look(imgkeep, url)).code == "origin_error"


async def test_dripping_error_body_delays_nothing(
    imgkeep: Imgkeep, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REFUSAL_TIMEOUT_S", 0.2)

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 100000", status="400 Bad Request")
        while True:
            await exchange.send(b"<")
            await asyncio.sleep(0.02)

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert (seen.status, seen.code) == (502, "origin_error")


async def test_error_body_is_not_awaited_past_the_end_of_a_link(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 100000", status="400 Bad Request")
        await exchange.gone()

    async with asyncio.timeout(client.REFUSAL_TIMEOUT_S - 1):
        assert (await look(imgkeep, signed(origin.on("/a.png", script), past=True))).code == "source_expired"


PAGES = {"HTML": (HTML, "text/html"), "HTML as an image": (HTML, "image/png"), "JSON": (b'{"a":1}', "image/png")}


@pytest.mark.parametrize(("body", "media_type"), PAGES.values(), ids=PAGES.keys())
@pytest.mark.parametrize("by_redirect", [False, True], ids=["200", "302"])
async def test_page_instead_of_an_image_past_its_end_means_expired(
    imgkeep: Imgkeep, origin: FakeOrigin, body: bytes, media_type: str, *, by_redirect: bool
) -> None:
    url = origin.gives("/login", body, headers={"Content-Type": media_type})
    if by_redirect:
        url = origin.gives("/a.png", b"", status="302 Found", headers={"Location": "/login"})
    seen = await look(imgkeep, signed(url, past=True))
    assert (seen.status, seen.code) == (410, "source_expired")
    seen = await look(imgkeep, signed(url, past=False))
    assert (seen.status, seen.code) == (422, "not_an_image")
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("location", ["https://login.example.com/", "http://10.0.0.1/", "file:///login"])
async def test_redirect_to_a_forbidden_place_means_expired(start: Start, origin: FakeOrigin, location: str) -> None:
    imgkeep = await start(sources={"allow": ["127.0.0.1"]})
    url = origin.gives("/a.png", b"", status="302 Found", headers={"Location": location})
    assert (await look(imgkeep, signed(url, past=True))).code == "source_expired"
    assert (await look(imgkeep, signed(url, past=False))).code == "source_forbidden"


@pytest.mark.parametrize("location", ["https://login.invalid/", "http://localhost:1/login", "http://login.intranet/"])
async def test_redirect_to_an_unreachable_host_means_expired(start: Start, origin: FakeOrigin, location: str) -> None:
    names = Names({"login.intranet": ["10.0.0.1"], "localhost": ["127.0.0.1"]})
    imgkeep = await start(fetch={"allow_ports": [80, 443, 1, origin.port]}, platform=Platform(resolver=lambda: names))
    url = origin.gives("/a.png", b"", status="302 Found", headers={"Location": location})
    assert (await look(imgkeep, signed(url, past=True))).code == "source_expired"
    assert (await look(imgkeep, signed(url, past=False))).code in {"origin_error", "source_forbidden"}
    gone = signed(url.replace("127.0.0.1", "gone.invalid"), past=True)
    assert (await look(imgkeep, gone)).code == "origin_error", "its own origin said nothing"


async def test_other_bytes_than_a_page_are_not_an_image(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", b"%PDF-1.7 \x00", headers={"Content-Type": "application/pdf"})
    assert (await look(imgkeep, signed(url, past=True))).code == "not_an_image"


async def test_stored_image_outlives_its_link(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = signed(origin.gives("/a.png", make_image()), past=False)
    assert (await look(imgkeep, url)).status == 200
    for number, (status, body) in enumerate((("400 No", XML), ("200 OK", HTML), ("404 No", b""), ("200 OK", b"")), 1):
        origin.gives("/a.png", body, status=status)
        for past in (False, True):
            seen = await look(imgkeep, signed(origin.url("/a.png"), past=past, number=number))
            assert (seen.status, seen.body) == (200, make_image())
    assert [path.read_bytes() for path in imgkeep.files("objects")] == [make_image()]


async def test_refresh_reports_expiry_alike(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = signed(origin.gives("/a.png", make_image()), past=False)
    assert (await look(imgkeep, url)).status == 200
    key = imgkeep.files("records")[0].stem
    origin.gives("/a.png", XML, status="400 Bad Request")
    response = await imgkeep.client.post(f"/api/images/{key}/refetch", json={"url": url})
    assert (response.status, (await response.json())["code"]) == (410, "source_expired")
    assert (await look(imgkeep, url)).body == make_image()


# --- images in the place of those that are gone


@pytest.mark.parametrize("how", ["redirect", "two redirects", "itself"])
async def test_known_placeholder_is_not_found_and_not_fetched(start: Start, origin: FakeOrigin, how: str) -> None:
    provider = {"name": "Acme", "hosts": ["img.acme.example"], "gone": ["127.0.0.1/images/removed*.png"]}
    imgkeep = await start(sources={"providers": [provider]})
    url = origin.gives("/images/removed-1.png", make_image())
    if how != "itself":
        url = origin.gives("/a.png", b"", status="302 Found", headers={"Location": "/images/removed-1.png?from=a"})
    if how == "two redirects":
        url = origin.gives("/b.png", b"", status="301 Moved", headers={"Location": "/a.png"})
    for _ in range(2):
        seen = await look(imgkeep, url)
        assert (seen.status, seen.code) == (404, "source_not_found")
    assert origin.asked("/images/removed-1.png") == 0
    assert (await look(imgkeep, origin.gives("/images/fine.png", make_image()))).status == 200
    assert len(imgkeep.files("objects")) == 1


async def test_known_placeholder_on_a_refused_host_is_not_found(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(sources={"allow": ["127.0.0.1"]})
    headers = {"Location": "https://i.imgur.com/removed.png"}
    seen = await look(imgkeep, origin.gives("/a.png", b"", status="302 Found", headers=headers))
    assert (seen.status, seen.code) == (404, "source_not_found")
