"""The JavaScript module and its types: for every page, and revalidated each time."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.node import STATIC
from tests.support.signing_vectors import KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.server import Imgkeep

TYPES = {"/imgkeep.js": "text/javascript; charset=utf-8", "/imgkeep.d.ts": "text/plain; charset=utf-8"}


@pytest.mark.parametrize("path", TYPES)
async def test_pages_of_all_sites_may_import_it(start: Callable[..., Awaitable[Imgkeep]], path: str) -> None:
    security = {"signature": "always", "signing_keys": [KEY], "api_tokens": [KEY]}
    client = (await start(security=security)).client
    response = await client.get(path, headers={"Origin": "https://p.example", "Sec-Fetch-Site": "cross-site"})
    assert (response.status, response.headers["Content-Type"]) == (200, TYPES[path])
    body = await response.read()
    facts = re.search(rb"const SERVER = (.+);", body)
    assert (facts is not None) is (path == "/imgkeep.js")
    plain = body if facts is None else body.replace(facts[0], b"const SERVER = null;")
    assert plain == (STATIC / path[1:]).read_bytes()
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "public, no-cache"


async def test_current_copy_is_not_sent_again(imgkeep: Imgkeep) -> None:
    client = imgkeep.client
    etag = (await client.get("/imgkeep.js")).headers["ETag"]
    assert etag != (await client.get("/imgkeep.d.ts")).headers["ETag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        response = await client.get("/imgkeep.js", headers={"If-None-Match": known})
        assert (response.status, await response.read()) == (304, b"")
        assert (response.headers["ETag"], response.headers["Access-Control-Allow-Origin"]) == (etag, "*")
    assert (await client.get("/imgkeep.js", headers={"If-None-Match": '"x"'})).status == 200


async def test_head_states_the_size(imgkeep: Imgkeep) -> None:
    response = await imgkeep.client.head("/imgkeep.js")
    size = len(await (await imgkeep.client.get("/imgkeep.js")).read())
    assert (response.status, response.headers["Content-Length"], await response.read()) == (200, str(size), b"")


async def test_module_cannot_be_changed(imgkeep: Imgkeep) -> None:
    response = await imgkeep.client.post("/imgkeep.js")
    assert (response.status, (await response.json())["code"]) == (405, "method_not_allowed")


async def reply(start: Callable[..., Awaitable[Imgkeep]], folder: Path, **sections: Any) -> tuple[dict[str, Any], str]:
    response = await (await start(folder=folder, **sections)).client.get("/imgkeep.js")
    found = re.search(r"^const SERVER = (.+);$", await response.text(), re.MULTILINE)
    assert found is not None
    return json.loads(found[1]), response.headers["ETag"]


async def test_module_contains_the_policy_of_its_server(
    start: Callable[..., Awaitable[Imgkeep]], tmp_path: Path
) -> None:
    sources = {
        "allow": ("a.example", "b.example/x/*", "secret.example"),
        "deny": ("*.inside.example", "secret.example"),
    }
    fetch = {"allow_ports": (443,), "allow_networks": ("10.1.0.0/16",)}
    facts, etag = await reply(start, tmp_path / "a", sources=sources, fetch=fetch)
    assert (facts["allow"], facts["ports"]) == (["a.example", "b.example/x/*"], [443])
    assert all(word not in str(facts) for word in ("inside.example", "secret", "10.1"))
    facts, other = await reply(start, tmp_path / "b", sources={"allow": ("*",)})
    assert (facts["allow"], other != etag) == (["*"], True)
    security = {"signature": "misses", "signing_keys": (KEY,)}
    facts, _ = await reply(start, tmp_path / "c", security=security)
    assert facts["allow"] == [], "links of a page have no signature"
