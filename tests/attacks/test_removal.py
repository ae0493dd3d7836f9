"""
Attacks on removal, undo and refetch: by strangers, by pages of other sites, by links.

The tests count what an attack leaves in the store, and how often it has an origin asked.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.source_url import read_source
from imgkeep.images.operator_refetch import REFETCHES_MAX
from tests.support.api_calls import REMOVED, data_url, problem_code, save
from tests.support.images import make_image
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin, Script
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

GOOD, PLACEHOLDER = make_image(seed=1), make_image(seed=2)
TOKEN = "token-of-these-attacks"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NOWHERE = "0" * 64


def digest_of(body: bytes) -> str:
    return sha256(body).hexdigest()


def key_of(imgkeep: Imgkeep, url: str) -> str:
    return imgkeep.client.app[SERVICES].image_service.identify(read_source(url)).key


def signed(url: str, signature: str) -> str:
    """Return a link with a signature that its identity leaves out."""
    return (
        f"{url}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F20261122%2Fus-east-1%2Fs3%2Faws4_request"
        f"&X-Amz-Date=20261122T100000Z&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&X-Amz-Signature={signature * 64}"
    )


def unless_right(signature: str) -> Script:
    """Answer as an origin that sends a placeholder with 200 for a wrong signature."""

    async def script(exchange: Exchange) -> None:
        right = exchange.target.endswith(signature * 64)
        await exchange.answer(GOOD if right else PLACEHOLDER)

    return script


def contents(imgkeep: Imgkeep) -> dict[Path, bytes]:
    """Return all stored files and marks of removals."""
    return {path: path.read_bytes() for kind in ("objects", "records", "refused") for path in imgkeep.files(kind)}


async def refetch(imgkeep: Imgkeep, key: str, url: str | None = None, **how: Any) -> tuple[int, dict[str, Any]]:
    body = {"json": {"url": url}, **how} if url else how
    response = await imgkeep.client.post(f"/api/images/{key}/refetch", **body)
    return response.status, await response.json()


async def remove(imgkeep: Imgkeep, path: str = "", **query: str) -> int:
    return (await imgkeep.client.delete(f"/api/images{path}", params=query)).status


async def restore(imgkeep: Imgkeep, **body: str) -> tuple[int, dict[str, Any]]:
    response = await imgkeep.client.post("/api/restore", json=body)
    return response.status, await response.json()


def requests(key: str, url: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return every request that removes, restores or replaces."""
    digest = digest_of(GOOD)
    return [
        ("DELETE", f"/api/images/{key}", {}),
        ("DELETE", f"/api/images/{key}?force=true", {}),
        ("DELETE", "/api/images", {"params": {"src": url}}),
        ("DELETE", "/api/images", {"params": {"src": url, "force": "true"}}),
        ("DELETE", f"/api/images?digest={digest}", {}),
        ("DELETE", f"/api/images?digest={NOWHERE}&force=true", {}),
        ("POST", f"/api/images/{key}/refetch", {}),
        ("POST", f"/api/images/{key}/refetch", {"json": {"url": url}}),
        ("POST", f"/api/images/{key}/restore", {}),
        ("POST", "/api/refetch", {"json": {"url": url}}),
        ("POST", "/api/restore", {"json": {"url": url}}),
        ("POST", "/api/restore", {"json": {"digest": digest}}),
    ]


# --- strangers


STRANGERS: list[dict[str, str]] = [
    {},
    {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": "Bearer "},
    {"X-Forwarded-For": "127.0.0.1"},
    {"Host": "localhost"},
    {"X-HTTP-Method-Override": "DELETE"},
]
PAGES: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Host": "rebound.example"},
    {"X-Forwarded-For": "192.0.2.1"},
    {"Forwarded": "for=192.0.2.1"},
]


@pytest.mark.parametrize("tokens", [True, False], ids=["with tokens", "on loopback"])
async def test_stranger_causes_no_tombstone_block_or_fetch(start: Start, origin: FakeOrigin, *, tokens: bool) -> None:
    imgkeep = await start(security={"api_tokens": [TOKEN]} if tokens else {})
    url, gone = origin.gives("/a.png", GOOD), origin.gives("/gone.png", PLACEHOLDER)
    own: dict[str, Any] = {"headers": BEARER} if tokens else {}
    for link in (url, gone):
        await (await imgkeep.img(link)).read()
    assert (await imgkeep.client.delete("/api/images", params={"src": gone}, **own)).status == 200
    before, asked = contents(imgkeep), len(origin.seen)
    for headers in STRANGERS if tokens else PAGES:
        for link in (url, gone):
            for method, path, how in requests(key_of(imgkeep, link), link):
                response = await imgkeep.stranger.request(method, path, headers=headers, **how)
                assert response.status == 401, (method, path, headers)
    assert contents(imgkeep) == before
    assert len(origin.seen) == asked
    assert await (await imgkeep.img(url)).read() == GOOD
    assert await problem_code(await imgkeep.img(gone)) == REMOVED


FORMS = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"]


@pytest.mark.parametrize("media_type", FORMS)
async def test_form_of_other_site_changes_nothing(imgkeep: Imgkeep, origin: FakeOrigin, media_type: str) -> None:
    url, gone = origin.gives("/a.png", GOOD), origin.gives("/gone.png", PLACEHOLDER)
    for link in (url, gone):
        await (await imgkeep.img(link)).read()
    assert await remove(imgkeep, src=gone) == 200
    before, asked = contents(imgkeep), len(origin.seen)
    bodies = [b"", b'{"url": "%b"}' % gone.encode(), b'{"digest": "%b"}' % digest_of(PLACEHOLDER).encode()]
    for link in (url, gone):
        key = key_of(imgkeep, link)
        for path in ("/api/refetch", "/api/restore", f"/api/images/{key}/refetch", f"/api/images/{key}/restore"):
            for body in bodies:
                response = await imgkeep.client.post(path, data=body, headers={"Content-Type": media_type})
                assert response.status in {400, 415}, path
    assert contents(imgkeep) == before
    assert len(origin.seen) == asked


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
async def test_get_requests_change_nothing(imgkeep: Imgkeep, method: str) -> None:
    for path in ("/api/refetch", "/api/restore", f"/api/images/{NOWHERE}/refetch", f"/api/images/{NOWHERE}/restore"):
        assert (await imgkeep.client.request(method, path)).status == 405


async def test_upload_of_blocked_bytes_puts_no_tombstone(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", GOOD)
    await (await imgkeep.img(url)).read()
    assert await remove(imgkeep, src=url) == 200
    before = contents(imgkeep)
    for _ in range(3):
        assert (await save(imgkeep, {"data": data_url(GOOD)}))[1]["code"] == "removed"
    assert contents(imgkeep) == before


# --- reach of a removal


async def test_unknown_link_is_blocked_only_by_force(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = signed(origin.on("/a.png", unless_right("a")), "a")
    for attempt in (
        remove(imgkeep, src=url),
        remove(imgkeep, src=signed(origin.url("/a.png"), "f")),
        remove(imgkeep, src=url, force="false"),
        remove(imgkeep, f"/{key_of(imgkeep, url)}"),
        remove(imgkeep, digest=digest_of(GOOD)),
    ):
        assert await attempt == 404
    for force in ("1", "yes", "True", "", "true,true"):
        assert await remove(imgkeep, src=url, force=force) == 400
    assert contents(imgkeep) == {}
    assert await (await imgkeep.img(url)).read() == GOOD
    assert origin.asked("/a.png") == 1


async def test_refetch_by_good_link_replaces_wrong_image(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    place = origin.on("/a.png", unless_right("a"))
    invented, good = signed(place, "f"), signed(place, "a")
    assert key_of(imgkeep, invented) == key_of(imgkeep, good)
    await (await imgkeep.img(invented)).read()
    status, reply = await refetch(imgkeep, key_of(imgkeep, good), good)
    assert (status, reply["replaced"], reply["digest"]) == (200, True, digest_of(GOOD))
    for _ in range(3):
        assert await (await imgkeep.img(good)).read() == GOOD
    # The removal of the placeholder does not block the good link.
    assert await remove(imgkeep, digest=digest_of(PLACEHOLDER)) == 200
    assert await (await imgkeep.img(good)).read() == GOOD
    assert await problem_code(await imgkeep.client.get(f"/images/{digest_of(PLACEHOLDER)}.png")) == REMOVED
    # An invented signature neither brings the placeholder back nor removes the good image.
    status, reply = await refetch(imgkeep, key_of(imgkeep, good), invented)
    assert (status, reply["code"]) == REMOVED
    assert await (await imgkeep.img(good)).read() == GOOD


async def test_removal_of_wrong_image_can_be_undone(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    place = origin.on("/a.png", unless_right("a"))
    invented, good = signed(place, "f"), signed(place, "a")
    await (await imgkeep.img(invented)).read()
    assert await remove(imgkeep, f"/{key_of(imgkeep, good)}") == 200
    status, reply = await restore(imgkeep, url=good)
    assert (status, reply["restored"], reply["stored"]) == (200, True, False)
    assert reply["digest"] == digest_of(PLACEHOLDER)
    assert imgkeep.files("refused") == []
    assert await (await imgkeep.img(good)).read() == GOOD


async def test_last_of_crossing_removals_and_undos_wins(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", GOOD)
    await (await imgkeep.img(url)).read()
    for _ in range(3):
        crossing = [
            each
            for _ in range(5)
            for each in (remove(imgkeep, src=url, force="true"), remove(imgkeep, digest=digest_of(GOOD), force="true"))
        ]
        undoing = [restore(imgkeep, url=url) for _ in range(5)]
        await asyncio.gather(*crossing, *undoing)
        assert await remove(imgkeep, digest=digest_of(GOOD), force="true") == 200
        assert await remove(imgkeep, src=url, force="true") == 200
        assert await problem_code(await imgkeep.img(url)) == REMOVED
        for body in ({"url": url}, {"digest": digest_of(GOOD)}):
            await restore(imgkeep, **body)
        assert await (await imgkeep.img(url)).read() == GOOD
        assert imgkeep.files("refused") == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": "https://a.example/", "digest": NOWHERE},
        {"digest": "../../records/00/" + NOWHERE},
        {"digest": NOWHERE.upper().replace("0", "A")},
        {"url": "file:///etc/passwd"},
        {"url": ["https://a.example/"]},
        {"key": NOWHERE},
        [],
    ],
)
async def test_undo_of_unknown_name_does_nothing(imgkeep: Imgkeep, body: object) -> None:
    response = await imgkeep.client.post("/api/restore", json=body)
    assert response.status == 400
    for path in (f"/api/images/{'x' * 64}/restore", "/api/images/..%2F..%2Frefused/restore"):
        response = await imgkeep.client.post(URL(path, encoded=True))
        assert response.status in {400, 404}, path


# --- cost and targets of a refetch


async def test_thousand_refetches_share_one_fetch(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        if exchange.number:
            await go.wait()
        await exchange.answer(PLACEHOLDER if exchange.number == 0 else GOOD)

    url = origin.on("/a.png", slow)
    await (await imgkeep.img(url)).read()
    key = key_of(imgkeep, url)
    asking = [asyncio.create_task(refetch(imgkeep, key, url)) for _ in range(60)]
    await until(lambda: origin.asked("/a.png") == 2)
    assert await (await imgkeep.img(url)).read() == PLACEHOLDER, "the old image is shown meanwhile"
    go.set()
    answers = [await each for each in asking]
    assert {status for status, _ in answers} == {200}
    assert {reply["digest"] for _, reply in answers} == {digest_of(GOOD)}
    assert origin.asked("/a.png") == 2
    assert await (await imgkeep.img(url)).read() == GOOD


async def test_refetches_leave_fetches_to_clients(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def hangs(exchange: Exchange) -> None:
        if exchange.number:
            await go.wait()
        await exchange.answer(GOOD)

    urls = [origin.on(f"/{number}.png", hangs) for number in range(REFETCHES_MAX + 12)]
    for url in urls:
        await (await imgkeep.img(url)).read()
    origin.seen.clear()
    asking = [asyncio.create_task(refetch(imgkeep, key_of(imgkeep, url), url)) for url in urls]
    await until(lambda: sum(each.done() for each in asking) == 12)
    refused = [each.result() for each in asking if each.done()]
    assert {(status, reply["code"]) for status, reply in refused} == {(503, "busy")}
    assert len(origin.seen) <= REFETCHES_MAX
    cold = origin.gives("/cold.png", PLACEHOLDER)
    assert await (await imgkeep.img(cold)).read() == PLACEHOLDER
    go.set()
    assert sorted(status for status, _ in [await each for each in asking]) == [200] * REFETCHES_MAX + [503] * 12


async def test_link_of_other_key_replaces_nothing(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url, other = origin.gives("/a.png", GOOD), origin.gives("/b.png", PLACEHOLDER)
    for link in (url, other):
        await (await imgkeep.img(link)).read()
    before, asked = contents(imgkeep), len(origin.seen)
    key = key_of(imgkeep, url)
    for link in (other, f"{url}?v=2", url.replace("127.0.0.1", "localhost"), signed(other, "a")):
        status, reply = await refetch(imgkeep, key, link)
        assert (status, reply["code"]) == (400, "invalid_request"), link
    for link in ("ftp://a.example/", "https://user:secret@a.example/", ""):
        response = await imgkeep.client.post(f"/api/images/{key}/refetch", json={"url": link})
        assert (await problem_code(response))[0] in {400, 403}
    assert contents(imgkeep) == before
    assert len(origin.seen) == asked


async def test_denied_host_is_not_fetched_again(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    url = origin.gives("/a.png", GOOD)
    await (await imgkeep.img(url)).read()
    refusing: list[dict[str, Any]] = [
        {"sources": {"deny": ["127.0.0.1"]}},
        {"sources": {"allow": ["a.example"]}},
        {"fetch": {"allow_networks": []}},
        {"fetch": {"allow_networks": ["10.0.0.0/8"]}},
    ]
    for sections in refusing:
        node = await start(folder=imgkeep.folder, **sections)
        status, reply = await refetch(node, key_of(node, url), url)
        assert (status, reply["code"]) == (403, "source_forbidden")
    assert origin.asked("/a.png") == 1
    assert origin.connections == 1


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/a.png", "file:///etc/passwd"]
)
async def test_redirect_leads_no_refetch_to_private_address(
    imgkeep: Imgkeep, origin: FakeOrigin, location: str
) -> None:
    async def then_elsewhere(exchange: Exchange) -> None:
        if exchange.number:
            await exchange.answer(b"", status="302 Found", headers={"Location": location})
        else:
            await exchange.answer(GOOD)

    url = origin.on("/a.png", then_elsewhere)
    await (await imgkeep.img(url)).read()
    before = contents(imgkeep)
    status, reply = await refetch(imgkeep, key_of(imgkeep, url), url)
    assert (status, reply["code"]) == (403, "source_forbidden")
    assert contents(imgkeep) == before


# --- answers of an origin


def answers(body: bytes = b"", **how: Any) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(body, **how)

    return script


async def _cut(exchange: Exchange) -> None:
    await exchange.answer(PLACEHOLDER[:-30], length=len(PLACEHOLDER))
    exchange.finish()


async def _unframed(exchange: Exchange) -> None:
    await exchange.send_head("Connection: close")
    await exchange.send(PLACEHOLDER)
    exchange.finish()


async def _endless(exchange: Exchange) -> None:
    await exchange.send_head("Transfer-Encoding: chunked")
    piece = b"10000\r\n" + PLACEHOLDER[:100] + b"\0" * (65_536 - 100) + b"\r\n"
    while True:
        await exchange.send(piece)


ORIGINS = [
    pytest.param(answers(status="404 Not Found"), "source_not_found", id="404"),
    pytest.param(answers(status="410 Gone"), "source_not_found", id="410"),
    pytest.param(answers(status="403 Forbidden"), "origin_refused", id="403"),
    pytest.param(answers(status="500 Oh No"), "origin_error", id="500"),
    pytest.param(answers(status="304 Not Modified"), "origin_error", id="unsolicited 304"),
    pytest.param(answers(b"<html>sign in</html>"), "not_an_image", id="a page"),
    pytest.param(answers(), "origin_error", id="nothing"),
    pytest.param(answers(PLACEHOLDER[:-30]), "not_an_image", id="framed whole, and cut"),
    pytest.param(_cut, "origin_error", id="cut"),
    pytest.param(_unframed, "origin_error", id="unframed"),
    pytest.param(_endless, "too_large", id="endless"),
    pytest.param(answers(make_image(width=300, height=300)), "too_large", id="too many pixels"),
]


@pytest.mark.parametrize(("script", "error"), ORIGINS)
async def test_no_answer_replaces_image_by_less(start: Start, origin: FakeOrigin, script: Script, error: str) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 200_000, "pixels_max": 10_000})
    url = origin.gives("/a.png", GOOD)
    await (await imgkeep.img(url)).read()
    before = contents(imgkeep)
    origin.on("/a.png", script)
    status, reply = await refetch(imgkeep, key_of(imgkeep, url), url)
    assert reply["code"] == error
    assert status >= 400
    assert contents(imgkeep) == before
    assert imgkeep.files("partial") == []
    response = await imgkeep.img(url)
    assert (await response.read(), response.headers["Cache-Status"]) == (GOOD, "imgkeep; hit")


async def test_old_bytes_stay_under_permanent_url(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", GOOD)
    await (await imgkeep.img(url)).read()
    key = key_of(imgkeep, url)
    origin.gives("/a.png", PLACEHOLDER)
    assert (await refetch(imgkeep, key, url))[1]["replaced"] is True
    assert (await refetch(imgkeep, key, url))[1]["replaced"] is False
    for body in (GOOD, PLACEHOLDER):
        assert await (await imgkeep.client.get(f"/images/{digest_of(body)}.png")).read() == body


async def test_link_stays_secret(imgkeep: Imgkeep, origin: FakeOrigin, caplog: pytest.LogCaptureFixture) -> None:
    place = origin.on("/a.png", unless_right("a"))
    await (await imgkeep.img(signed(place, "a"))).read()
    secret = "e" * 64
    caplog.set_level("DEBUG")
    for path, body in (
        (f"/api/images/{key_of(imgkeep, place)}/refetch", {"url": signed(place, "e")}),
        (f"/api/images/{NOWHERE}/refetch", {"url": signed(place, "e")}),
        ("/api/refetch", {"url": signed(place, "e")}),
        ("/api/refetch", {"url": signed(origin.url("/b.png"), "e")}),
        ("/api/restore", {"url": signed(place, "e")}),
    ):
        response = await imgkeep.client.post(path, json=body)
        assert secret not in await response.text()
    assert secret not in "".join(str(vars(record)) for record in caplog.records if record.name.startswith("imgkeep"))
    assert not any(secret.encode() in data for data in contents(imgkeep).values())
