"""Our JavaScript module and its types are there for every page, and asked for anew at every visit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.core.test_signing import KEY
from tests.javascript.node import STATIC

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Imgkeep

TYPES = {"/imgkeep.js": "text/javascript; charset=utf-8", "/imgkeep.d.ts": "text/plain; charset=utf-8"}


@pytest.mark.parametrize("path", TYPES)
async def test_pages_of_everybody_may_import_it(start: Callable[..., Awaitable[Imgkeep]], path: str) -> None:
    security = {"signature": "always", "signing_keys": [KEY], "api_tokens": [KEY]}
    client = (await start(security=security)).client
    response = await client.get(path, headers={"Origin": "https://p.example", "Sec-Fetch-Site": "cross-site"})
    assert (response.status, response.headers["Content-Type"]) == (200, TYPES[path])
    assert await response.read() == (STATIC / path[1:]).read_bytes()
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "public, no-cache"


async def test_whoever_has_it_is_told_so(imgkeep: Imgkeep) -> None:
    client = imgkeep.client
    etag = (await client.get("/imgkeep.js")).headers["ETag"]
    assert etag != (await client.get("/imgkeep.d.ts")).headers["ETag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        response = await client.get("/imgkeep.js", headers={"If-None-Match": known})
        assert (response.status, await response.read()) == (304, b"")
        assert (response.headers["ETag"], response.headers["Access-Control-Allow-Origin"]) == (etag, "*")
    assert (await client.get("/imgkeep.js", headers={"If-None-Match": '"x"'})).status == 200


async def test_its_head_tells_its_size(imgkeep: Imgkeep) -> None:
    response = await imgkeep.client.head("/imgkeep.js")
    size = (STATIC / "imgkeep.js").stat().st_size
    assert (response.status, response.headers["Content-Length"], await response.read()) == (200, str(size), b"")


async def test_it_cannot_be_changed(imgkeep: Imgkeep) -> None:
    response = await imgkeep.client.post("/imgkeep.js")
    assert (response.status, (await response.json())["code"]) == (405, "method_not_allowed")
