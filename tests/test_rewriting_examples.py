"""The examples of rewriting in `examples/`, run as they stand there: Python, curl, and nginx in front of all."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from contextlib import AsyncExitStack
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from imgkeep.cli.demo_images import draw
from tests.support.checkout import EXAMPLES, Shell, copy_checkout
from tests.support.images import make_image
from tests.support.page_links import DIES, SIGNED, STAYS
from tests.support.program import ROOT, cannot, environment, serving
from tests.support.raw_http import port_of, target_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

TOKEN = "token-of-these-tests"
PAGE = f'<img src="{DIES}"><img src="{STAYS}">'


async def output(*command: str, **variables: str) -> tuple[bytes, str]:
    """Run an example to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "PYTHONPATH": str(ROOT / "proxy"), **variables},  # noqa: TID251 - tests read what they run in
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out, err.decode()


async def test_python_rewrites_a_page_whole_or_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    script = str(EXAMPLES / "python" / "rewrite_page.py")
    ways = [
        output(sys.executable, script, str(tmp_path / "page.html"), *way, IMGKEEP_URL="https://img.example.com")
        for way in ((), ("--pieces",))
    ]
    expected = PAGE.replace(DIES, f"https://img.example.com{target_of(DIES)}").encode()
    assert await asyncio.gather(*ways) == [(expected, "")] * 2


async def test_curl_rewrites_a_page_and_waits_for_its_images(start: Start, origin: FakeOrigin, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        cannot("curl is not installed")
    imgkeep = await start(security={"api_tokens": [TOKEN]})
    url = f"{origin.gives('/a.png', make_image())}?{SIGNED}"
    base = f"http://127.0.0.1:{port_of(imgkeep)}"
    page = tmp_path / "page.html"
    page.write_text(f'<img src="{url}">')
    script = ("sh", str(EXAMPLES / "rewrite_api.sh"), str(page))
    out, err = await output(*script, IMGKEEP=base, IMGKEEP_TOKEN=TOKEN)
    assert out.decode() == f'<img src="{base}{target_of(url)}">'
    assert '"state":"done"' in err
    await origin.stop()
    assert await (await imgkeep.img(url)).read() == make_image()
    page.write_text("<p>nothing")
    assert await output(*script, IMGKEEP=base, IMGKEEP_TOKEN=TOKEN) == (b"<p>nothing", "")


async def test_command_rewrites_a_folder_and_saves_its_images(tmp_path: Path, origin: FakeOrigin) -> None:
    url = f"{origin.gives('/a.png', make_image())}?{SIGNED}"
    page = tmp_path / "site" / "page.html"
    page.parent.mkdir()
    page.write_text(f'<p>\n<img src="{url}">\n')
    script = ("sh", str(EXAMPLES / "rewrite_files.sh"), str(page.parent))
    settings = environment(tmp_path / "data", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # noqa: TID251
    settings["IMGKEEP"] = "https://img.example.com"
    changed = f'<p>\n<img src="https://img.example.com{target_of(url)}">\n'
    out, err = await output(*script, **settings)
    assert (out.decode().count("\n+<img"), "1 images stored" in err) == (1, True), err
    assert page.read_text() == changed
    await origin.stop()
    async with serving(tmp_path / "data") as program:
        assert (await program.img(url)).body == make_image()
    out, _ = await output(*script, **settings)
    assert (out, page.read_text()) == (b"", changed), "twice is once"


# --- nginx


async def test_pages_and_images_come_from_one_host_through_nginx(
    tmp_path: Path, reserve_port: Callable[[], int]
) -> None:
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():  # noqa: ASYNC240 - before anything runs
        cannot("nginx is not installed")
    checkout, shell = copy_checkout(tmp_path, reserve_port), Shell(tmp_path)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        root = URL(checkout.url("8090"))

        async def get(path: str) -> tuple[int, str, bytes]:
            async with session.get(root.join(URL(path, encoded=True))) as response:
                return response.status, response.headers["Content-Type"], await response.read()

        async with shell.serving("python examples/origin.py", checkout.url("9000"), "origin"):
            await stack.enter_async_context(shell.serving("sh examples/nginx/run.sh", str(root), "nginx"))
        status, kind, page = await get("/")
        assert (status, kind) == (200, "text/html")
        found = re.search(r'<img alt="temporary"[^>]* src="([^"]*)"', page.decode())
        assert found is not None
        assert found[1].startswith("/img?src=http%3A%2F%2F127.0.0.1%3A"), "a path, on this host"
        # The script has stored the image, so its origin is needed no more.
        assert await get(unescape(found[1])) == (200, "image/png", draw("dusk"))
        for path in ("/api/images", "/metrics", "/readyz", "/openapi.json", "/imgx"):
            status, kind, _ = await get(path)
            assert (status, "json" in kind) == (404, False), f"nginx does not pass {path} on"
        assert "Signature" not in (tmp_path / "nginx.log").read_text()
    assert not list(tmp_path.glob("tmp*")), "the example leaves nothing behind"  # noqa: ASYNC240 - quick
