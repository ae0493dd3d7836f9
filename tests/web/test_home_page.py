"""`/` tells what this server is: JSON for programs, a page for people, and no more than either may know."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html import unescape
from typing import TYPE_CHECKING

import pytest

from imgkeep import __version__
from imgkeep.bootstrap.server import SERVICES
from imgkeep.web.login_tickets import COOKIE, make_ticket
from tests.support.accept_fields import FIREFOX_TAB, TAB
from tests.support.raw_http import ask
from tests.support.signing_vectors import KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

AS_A_PERSON = f"Accept: {TAB}"
OPEN = {"public_url": "https://img.example/base"}


async def page_of(imgkeep: Imgkeep, *fields: str) -> str:
    answer = await ask(imgkeep, "/", AS_A_PERSON, *fields)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    return answer.body.decode()


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html;q=0, */*", "image/avif,image/*,*/*"])
async def test_programs_read_json(start: Start, accept: str | None) -> None:
    imgkeep = await start(server=OPEN)
    headers = {} if accept is None else {"Accept": accept}
    skip = ["Accept"] if accept is None else []
    async with imgkeep.stranger.get(imgkeep.client.make_url("/"), headers=headers, skip_auto_headers=skip) as response:
        reply = await response.json()
        assert response.headers["Vary"] == "Accept"
        assert response.headers["Cache-Control"] == "no-store"
    base = OPEN["public_url"]
    assert reply == {
        "name": "imgkeep",
        "summary": "Makes temporary image links permanent.",
        "version": __version__,
        "status": "ready",
        "image": f"{base}/img?src={{url}}",
        "openapi": f"{base}/openapi.json",
        "api": f"{base}/api",
        "documentation": f"{base}/docs",
        "health": f"{base}/healthz",
        "readiness": f"{base}/readyz",
        "module": f"{base}/imgkeep.js",
    }


async def test_links_lead_somewhere(imgkeep: Imgkeep) -> None:
    async with imgkeep.client.get("/") as response:
        reply = await response.json()
    for name in ("openapi", "api", "documentation", "health", "readiness", "module"):
        async with imgkeep.stranger.get(reply[name]) as response:
            assert response.status == 200, name
    async with imgkeep.client.head("/") as response:
        assert (response.status, await response.read()) == (200, b"")
    page = await page_of(imgkeep)
    links = re.findall(r'href="(?!data:)([^"]*)"', page)
    assert len(links) >= 4
    for link in links:
        async with imgkeep.stranger.get(
            imgkeep.client.make_url("/").join(imgkeep.client.make_url(f"/{link}"))
        ) as found:
            assert found.status == 200, link


@pytest.mark.parametrize("accept", [TAB, FIREFOX_TAB, "text/html"])
async def test_people_read_a_page(imgkeep: Imgkeep, accept: str) -> None:
    answer = await ask(imgkeep, "/", f"Accept: {accept}", "Sec-Fetch-Dest: document")
    text = answer.body.decode()
    headers = answer.headers
    assert (answer.status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (headers["vary"], headers["cache-control"]) == ("Accept, Authorization, Cookie, Sec-Fetch-Site", "no-store")
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert (headers["referrer-policy"], headers["cross-origin-resource-policy"]) == ("no-referrer", "same-origin")
    assert "access-control-allow-origin" not in headers
    assert "set-cookie" not in headers
    assert "All parts work" in text
    assert __version__ in text
    assert "$" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL).replace("$TOKEN", "")
    assert (await ask(imgkeep, "/", f"Accept: {accept}", method="HEAD")).headers[
        "content-type"
    ] == "text/html; charset=utf-8"


async def test_policy_names_style_and_script_alone(imgkeep: Imgkeep) -> None:
    answer = await ask(imgkeep, "/", AS_A_PERSON)
    policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
    text = answer.body.decode()

    def hash_of(tag: str) -> str:
        [body] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        return f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'"

    assert policy == {
        "default-src": "'none'",
        "style-src": hash_of("style"),
        "script-src": hash_of("script"),
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert not re.search(r"\s(on\w+|style)=", text), "what a policy of hashes forbids"
    markup = re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)
    assert not re.search(r"(?:src|href|action)=[\"'](?:https?:)?//", markup), "nothing is loaded from elsewhere"


async def test_policy_allows_other_servers_that_hold_images(start: Start) -> None:
    imgkeep = await start(sources={"permanent": "redirect"})
    policy = (await ask(imgkeep, "/", AS_A_PERSON)).headers["content-security-policy"]
    assert "img-src 'self' data: http: https:" in policy
    assert "connect-src 'self' http: https:" in policy
    assert "script-src 'sha256-" in policy


async def test_open_server_shows_strangers_no_parts_and_no_images(start: Start) -> None:
    imgkeep = await start(server=OPEN, security={"api_tokens": [KEY]})
    page = await page_of(imgkeep)
    assert "All parts work" in page
    assert "database" not in page
    assert 'id="newest"' not in page
    assert 'data-api=""' in page
    assert "log-in" not in page
    assert f'"{OPEN["public_url"]}/img?src=' in unescape(page)
    assert "database ok" in await page_of(imgkeep, f"Authorization: Bearer {KEY}")


async def test_loopback_server_shows_parts_and_asks_to_log_in(start: Start) -> None:
    page = await page_of(await start())
    assert "database ok" in page
    assert 'data-api=""' in page
    assert "imgkeep token --login" in page
    page = await page_of(await start(security={"api_tokens": [KEY]}))
    assert 'data-api=""' in page
    assert "imgkeep token --login" not in page


async def test_page_knows_the_session_of_its_browser(start: Start) -> None:
    imgkeep = await start()
    good = f"Cookie: {COOKIE}={make_ticket(imgkeep.token, 'session', 2**33)}"
    ended = f"Cookie: {COOKIE}={make_ticket(imgkeep.token, 'session', 1)}"
    elsewhere = "Sec-Fetch-Site: cross-site"
    for fields, session in (
        ([good], "session"),
        ([good, "Sec-Fetch-Site: none"], "session"),
        ([good, elsewhere], "ask"),
        ([good, "Sec-Fetch-Site: same-origin"], "session"),
        ([ended], ""),
        ([elsewhere], "ask"),
        (["Sec-Fetch-Site: same-site"], "ask"),
        (["Sec-Fetch-Site: none"], ""),
        ([f"Authorization: Bearer {imgkeep.token}"], ""),
    ):
        assert f'data-api="{session}"' in await page_of(imgkeep, *fields), fields
    assert imgkeep.client.app is not None
    imgkeep.client.app[SERVICES].health.note_fault("store", "the disk failed")
    assert b"the disk failed" in (await ask(imgkeep, "/readyz", good)).body
    assert b"the disk failed" not in (await ask(imgkeep, "/readyz", good, elsewhere)).body
    open_to_others = await start(server=OPEN)
    assert 'data-api=""' in await page_of(open_to_others, elsewhere)


@pytest.mark.parametrize(
    ("signature", "words"), [("misses", "new images for signed"), ("always", "by signed|for signed")]
)
async def test_page_states_which_urls_need_a_signature(start: Start, signature: str, words: str) -> None:
    page = await page_of(await start(security={"signature": signature, "signing_keys": [KEY]}))
    assert re.search(words, page)
    assert "imgkeep sign LINK" in page
    assert KEY not in page


async def test_fault_is_stated_in_words(imgkeep: Imgkeep) -> None:
    assert imgkeep.client.app is not None
    health = imgkeep.client.app[SERVICES].health
    health.note_fault("store", "the disk /secret/place failed")
    page = await page_of(imgkeep)
    assert "Some parts do not work" in page
    assert "store failing" in page
    assert "/secret" not in page
    health.draining = True
    assert "Stopping" in await page_of(imgkeep)


async def test_page_can_be_disabled(start: Start) -> None:
    imgkeep = await start(server={"welcome": False})
    for fields in ([], [AS_A_PERSON]):
        answer = await ask(imgkeep, "/", *fields)
        assert answer.status == 404
        assert b"not_found" in answer.body
