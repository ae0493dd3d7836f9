"""The description of the interface: complete, true, and readable without other servers."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

from imgkeep.bootstrap.server import build
from imgkeep.config import Config
from imgkeep.web.api.openapi.document import DOCUMENT, PATHS
from tests.support.api_calls import data_url
from tests.support.images import make_image
from tests.support.program import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.server import Imgkeep

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
]


def test_document_describes_every_route() -> None:
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in build(Config()).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {(method, path) for path, operations in PATHS.items() for method in operations}
    assert described == routes - {("get", "/openapi.json"), ("get", "/api")}


async def test_document_is_for_programs_and_people(imgkeep: Imgkeep) -> None:
    response = await imgkeep.client.get("/openapi.json")
    assert await response.json() == DOCUMENT
    page = await imgkeep.client.get("/api")
    text = await page.text()
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    for path in PATHS:
        assert path in text
    assert "`" not in text
    assert "<code>security.signature</code>" in text


async def test_running_server_keeps_to_the_document(tmp_path: Path) -> None:
    """Whatever the description allows, and much that it does not: no 5xx, and no answer of another form."""
    # The server may ask no origin: neither beyond this machine, nor one on it that a job would wait for.
    settings: dict[str, Any] = {"sources__allow": "nobody.invalid", "log__access": "false"}
    async with serving(tmp_path / "data", **settings) as program:
        saving = program.session.post(f"http://{program.address}/api/save-image", json={"data": data_url(make_image())})
        async with saving as response:
            assert response.status == 201
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
            "run",
            f"http://{program.address}/openapi.json",
            "--checks",
            ",".join(CHECKS),
            "--max-examples=10",
            "--mode=all",
            "--seed=1",
            "--generation-database=none",
            "--no-color",
            f"--header=Authorization: Bearer {program.token}",
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()[-6000:]
        assert (await program.get("/healthz")).status == 200
    assert "unforeseen" not in "".join(program.log)
