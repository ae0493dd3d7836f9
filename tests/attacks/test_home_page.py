"""The page under `/`, and failures as pages: what strangers, other sites and hostile links get out of them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.accept_fields import IMG, TAB
from tests.support.image_requests import store_image
from tests.support.images import make_image
from tests.support.raw_http import ask, port_of, split, talk, target_of
from tests.support.signing_vectors import KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

IN_A_TAB = ("Sec-Fetch-Dest: document", f"Accept: {TAB}")
SCRIPT = "<script>alert(1)</script>"
PLACES: dict[str, list[str]] = {
    "a link": [target_of(f"https://{SCRIPT}/"), target_of(f"javascript:{SCRIPT}"), f"/img?src={SCRIPT}"],
    "a parameter": [f"/img?{SCRIPT}=1", f"/?src={quote(SCRIPT)}", f"/?{SCRIPT}", f"/login?ticket={quote(SCRIPT)}"],
    "a path": [f"/{quote(SCRIPT)}", f"/images/{quote(SCRIPT)}", f"/api/images/{quote(SCRIPT)}", f"/api/{SCRIPT}"],
}


@pytest.mark.parametrize("targets", PLACES.values(), ids=PLACES)
async def test_no_page_repeats_markup(imgkeep: Imgkeep, targets: list[str]) -> None:
    for target in targets:
        token = f"Authorization: Bearer {imgkeep.token}"
        for fields in (IN_A_TAB, (*IN_A_TAB, token), (*IN_A_TAB, f"X-Forwarded-Host: {SCRIPT}", f"Referer: {SCRIPT}")):
            answer = await ask(imgkeep, target, *fields)
            assert b"alert(1)" not in answer.body.replace(b"&lt;script&gt;alert(1)&lt;/script&gt;", b""), target
            if answer.headers["content-type"].startswith("text/html"):
                assert "'unsafe-inline'" not in answer.headers["content-security-policy"]
                assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "[::2]", "0.0.0.0", "10.0.0.1"]
)
async def test_rebound_name_gets_no_page(imgkeep: Imgkeep, origin: FakeOrigin, host: str) -> None:
    await store_image(imgkeep, origin.gives("/a.png", make_image()))
    for accept in (TAB, "*/*"):
        head = f"GET / HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        answer = split(await talk(port_of(imgkeep), head.encode()))
        assert answer.status == 403
        assert b"forbidden" in answer.body
        assert b"All parts" not in answer.body


async def test_page_shows_nothing_of_the_store(start: Start, origin: FakeOrigin) -> None:
    """For a client with a token too: images, and what is read from a link, come from the API alone."""
    for server in ({}, {"public_url": "https://img.example"}):
        imgkeep = await start(server=server, security={"api_tokens": [KEY]})
        target = target_of(origin.gives("/secret-name.png", make_image()))
        await store_image(imgkeep, origin.url("/secret-name.png"))
        image = await ask(imgkeep, target)
        place = image.headers["content-location"].rpartition("/")[2]
        for fields in (IN_A_TAB, (*IN_A_TAB, f"Authorization: Bearer {KEY}"), ("Accept: */*",)):
            body = (await ask(imgkeep, "/", *fields)).body.decode()
            assert "secret-name" not in body
            assert place not in body
            assert str(imgkeep.folder) not in body
            assert KEY not in body
        assert (await ask(imgkeep, "/api/images", "Sec-Fetch-Site: same-origin")).status == 401
        assert (await ask(imgkeep, "/api/inspect?src=https://a.example/", "Sec-Fetch-Site: same-origin")).status == 401


async def test_host_is_in_no_page_where_others_can_ask(start: Start) -> None:
    imgkeep = await start(server={"trusted_proxies": ["10.0.0.0/8"]})
    for accept in (TAB, "*/*"):
        head = f"GET / HTTP/1.1\r\nHost: evil.example\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        answer = split(await talk(port_of(imgkeep), head.encode()))
        assert answer.status == 200
        assert b"evil" not in answer.body


async def test_placeholder_has_the_status_of_its_problem(start: Start, origin: FakeOrigin, tmp_path: Path) -> None:
    """Neither form says that something is stored, forbidden or removed where the other does not."""
    (tmp_path / "a.png").write_bytes(make_image("PNG"))
    imgkeep = await start(
        delivery={"placeholder": str(tmp_path / "a.png")}, security={"signature": "always", "signing_keys": [KEY]}
    )
    for target in (target_of(origin.gives("/a.png", make_image())), "/images/x", "/img", target_of("http://10.0.0.1/")):
        answers = [await ask(imgkeep, target, f"Accept: {accept}") for accept in ("*/*", IMG, TAB)]
        assert len({answer.status for answer in answers}) == 1
        assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}
        same = [
            {name: value for name, value in answer.headers.items() if name.startswith(("retry", "www", "cache-status"))}
            for answer in answers
        ]
        assert same[0] == same[1] == same[2]
        assert json.loads(answers[0].body)["status"] == answers[0].status
    assert origin.seen == []


async def test_error_page_is_small_and_names_no_local_address(imgkeep: Imgkeep) -> None:
    accept = ",".join(["text/html;q=0.1;a=b"] * 800)
    answer = await ask(imgkeep, "/nowhere", f"Accept: {accept}")
    assert (answer.status, answer.headers["content-type"][:9]) == (404, "text/html")
    assert len(answer.body) < 16_384
    page = (await ask(imgkeep, "/", *IN_A_TAB)).body
    assert len(page) < 49_152
    assert not re.search(rb"\d+\.\d+\.\d+\.\d+(?!:\d+)", page.replace(b"127.0.0.1", b"")), "no address of this machine"
