"""`GET /api/inspect`, and links through the whole program."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from yarl import URL

from imgkeep.bootstrap.server import SERVICES
from tests.support.images import make_image
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

DISCORD = "https://cdn.discordapp.com/attachments/1/2/a.png?ex=69624c50&is=6960fad0&hm=" + "0a" * 32
ACME = {
    "name": "Acme",
    "hosts": ["127.0.0.1"],
    "signed_by": {"acme_sig": "hex64", "acme_end": "epoch"},
    "expires": ["epoch acme_end"],
}


async def test_inspection_states_all_facts_of_a_link(imgkeep: Imgkeep) -> None:
    response = await imgkeep.client.get(URL(f"/api/inspect?src={quote(DISCORD, safe='')}", encoded=True))
    facts = await response.json()
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert facts.pop("identity") == "//cdn.discordapp.com/attachments/1/2/a.png"
    assert len(facts.pop("key")) == 64
    assert facts == {
        "success": True,
        "url": DISCORD,
        "provider": "Discord",
        "scheme": "Discord",
        "temporary": True,
        "expires_at": "2026-01-10T12:55:44Z",
        "signature_checked": True,
        "ours": False,
        "allowed": True,
        "reason": None,
    }


@pytest.mark.parametrize(
    ("method", "path", "detail"),
    [
        ("GET", "/img", "src is missing: ask for /img?src=<percent-encoded URL>"),
        ("GET", "/img?url=https%3A%2F%2Fa.example", "src is missing: ask for /img?src=<percent-encoded URL>"),
        ("GET", "/api/inspect", "src is missing: ask for /api/inspect?src=<percent-encoded URL>"),
        ("DELETE", "/api/images", "DELETE /api/images needs ?src= or ?digest=, and not both"),
    ],
)
async def test_missing_src_names_the_endpoint(imgkeep: Imgkeep, method: str, path: str, detail: str) -> None:
    response = await imgkeep.client.request(method, path)
    assert (response.status, (await response.json())["detail"]) == (400, detail)


@pytest.mark.parametrize(
    "path", ["/api/save-image", "/api/save-images", "/api/rewrite", "/api/refetch", "/api/restore"]
)
async def test_wrong_method_names_the_right_one(imgkeep: Imgkeep, path: str) -> None:
    response = await imgkeep.client.get(path)
    reply = await response.json()
    assert (response.status, response.headers["Allow"], reply["code"]) == (405, "POST", "method_not_allowed")
    assert response.content_type == "application/problem+json"
    assert "use POST" in reply["detail"]


async def test_inspection_states_what_the_policy_refuses(imgkeep: Imgkeep) -> None:
    facts = await (await imgkeep.client.get("/api/inspect?src=http://10.0.0.1/a.png")).json()
    assert (facts["allowed"], facts["reason"]) == (False, "private")


async def test_unreadable_link_is_a_problem_without_success(imgkeep: Imgkeep) -> None:
    response = await imgkeep.client.get("/api/inspect?src=nonsense")
    problem = await response.json()
    assert (response.status, problem["code"], problem["success"]) == (400, "invalid_source", False)


async def test_configured_provider_folds_its_links(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    imgkeep = await start(sources={"providers": [{**ACME, "enforced": True}]})
    body = make_image()
    origin.gives("/a.png", body)
    first, second = (
        origin.url(f"/a.png?w=3&acme_end={end}&acme_sig={sign * 64}")
        for end, sign in ((1893456000, "a"), (1893459600, "b"))
    )
    assert await (await imgkeep.img(first)).read() == body
    again = await imgkeep.img(second)
    assert (again.headers["Cache-Status"], await again.read()) == ("imgkeep; hit", body)
    assert origin.asked("/a.png") == 1


async def test_expired_link_is_gone(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    imgkeep = await start(sources={"providers": [ACME]})
    url = origin.gives("/a.png", b"", status="403 Forbidden") + f"?acme_end=1700000000&acme_sig={'a' * 64}"
    response = await imgkeep.img(url)
    assert (response.status, (await response.json())["code"]) == (410, "source_expired")


async def test_permanent_links_are_redirected(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    imgkeep = await start(sources={"permanent": "redirect"}, delivery={"redirect_status": 307})
    url = origin.gives("/a.png", make_image())
    response = await imgkeep.img(url, allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (307, url)
    assert "max-age=300" in response.headers["Cache-Control"]
    assert (await imgkeep.img(url.replace("http:", "gopher:"))).status == 400
    assert origin.asked("/a.png") == 0


async def test_newly_signed_link_revalidates_the_image(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    sources = {"providers": [{**ACME, "enforced": True}], "refresh": ["127.0.0.*"]}
    imgkeep = await start(sources=sources)
    bodies = {'"1"': make_image(seed=1), '"2"': make_image(seed=2)}
    current = '"1"'

    async def script(exchange: Exchange) -> None:
        if exchange.headers.get("if-none-match") == current:
            await exchange.answer(b"", status="304 Not Modified")
        else:
            await exchange.answer(bodies[current], headers={"ETag": current})

    origin.on("/a.png", script)
    links = [origin.url(f"/a.png?acme_end=1893456000&acme_sig={sign * 64}") for sign in "abc"]
    assert await (await imgkeep.img(links[0])).read() == bodies['"1"']
    assert await (await imgkeep.img(links[1])).read() == bodies['"1"']
    await until(lambda: origin.asked("/a.png") == 2)
    current = '"2"'
    assert await (await imgkeep.img(links[2])).read() == bodies['"1"'], "no client waits for the origin"
    await until(lambda: len(imgkeep.files("objects")) == 2)
    app = imgkeep.client.app
    assert app is not None
    await app[SERVICES].image_service.drain()  # files have their names before the disk is sure of them
    assert await (await imgkeep.img(links[2])).read() == bodies['"2"']
    assert not imgkeep.files("partial")
    assert [exchange.headers.get("if-none-match") for exchange in origin.seen] == [None, '"1"', '"1"']
