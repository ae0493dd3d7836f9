"""The examples of rewriting in `examples/`, run as they stand there: Python, curl, and nginx in front of all."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from tests.images import picture
from tests.program import ROOT, cannot, environment, serving
from tests.web.raw import port_of, target_of
from tests.web.test_rewrite import DIES, SIGNED, STAYS, TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from tests.conftest import Imgkeep
    from tests.origins import FakeOrigin

    Start = Callable[..., Awaitable[Imgkeep]]

EXAMPLES = ROOT / "examples"
PAGE = f'<img src="{DIES}"><img src="{STAYS}">'
PATIENCE_S = 30


async def output(*command: str, **variables: str) -> tuple[bytes, str]:
    """Run an example to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},  # noqa: TID251 - tests read what they run in
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out, err.decode()


async def test_python_rewrites_a_page_whole_or_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    script = str(EXAMPLES / "python" / "rewrite_page.py")
    ways = [output(sys.executable, script, str(tmp_path / "page.html"), *way) for way in ((), ("--pieces",))]
    expected = PAGE.replace(DIES, f"https://img.example.com{target_of(DIES)}").encode()
    assert await asyncio.gather(*ways) == [(expected, "")] * 2


async def test_curl_rewrites_a_page_and_waits_for_its_images(start: Start, origin: FakeOrigin, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        cannot("curl is not installed")
    imgkeep = await start(security={"api_tokens": [TOKEN]})
    url = f"{origin.gives('/a.png', picture())}?{SIGNED}"
    base = f"http://127.0.0.1:{port_of(imgkeep)}"
    page = tmp_path / "page.html"
    page.write_text(f'<img src="{url}">')
    script = ("sh", str(EXAMPLES / "rewrite_api.sh"), str(page))
    out, err = await output(*script, IMGKEEP=base, IMGKEEP_TOKEN=TOKEN)
    assert out.decode() == f'<img src="{base}{target_of(url)}">'
    assert '"state":"done"' in err
    await origin.stop()
    assert await (await imgkeep.img(url)).read() == picture()
    page.write_text("<p>nothing")
    assert await output(*script, IMGKEEP=base, IMGKEEP_TOKEN=TOKEN) == (b"<p>nothing", "")


async def test_the_command_rewrites_a_folder_and_keeps_its_images(tmp_path: Path, origin: FakeOrigin) -> None:
    url = f"{origin.gives('/a.png', picture())}?{SIGNED}"
    page = tmp_path / "site" / "page.html"
    page.parent.mkdir()
    page.write_text(f'<p>\n<img src="{url}">\n')
    script = ("sh", str(EXAMPLES / "rewrite_files.sh"), str(page.parent))
    settings = environment(tmp_path / "data", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # noqa: TID251
    changed = f'<p>\n<img src="https://img.example.com{target_of(url)}">\n'
    out, err = await output(*script, **settings)
    assert (out.decode().count("\n+<img"), "1 images kept, 0 failed" in err) == (1, True), err
    assert page.read_text() == changed
    await origin.stop()
    async with serving(tmp_path / "data") as program:
        assert (await program.img(url)).body == picture()
    out, _ = await output(*script, **settings)
    assert (out, page.read_text()) == (b"", changed), "twice is once"


# --- nginx


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def behind_nginx(folder: Path, link: str) -> AsyncGenerator[URL]:
    """Run `examples/nginx` with a link of ours in its page, on ports that are free, until the end of the block."""
    ports = _copy_example(folder, link)
    own = {
        "IMGKEEP_FETCH__ALLOW_NETWORKS": "127.0.0.0/8",
        "IMGKEEP_SOURCES__ALLOW": "127.0.0.1",
        "IMGKEEP_STORE__FREE_BYTES_MIN": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",  # noqa: TID251 - likewise
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
    }
    log = (folder / "log").open("w")
    process = await asyncio.create_subprocess_exec(
        "sh", str(folder / "run.sh"), env=own, stdout=log, stderr=log, start_new_session=True
    )
    try:
        root = URL(f"http://127.0.0.1:{ports['8000']}/")
        async with aiohttp.ClientSession() as session:
            for place in ("", "img"):
                await _answered(session, root / place, folder / "log")
        yield root
    finally:
        process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def _copy_example(folder: Path, link: str) -> dict[str, str]:
    """Copy `examples/nginx`, and return which ports are meant by those that stand there."""
    shutil.copytree(EXAMPLES / "nginx", folder)
    ports = {port: str(free_port()) for port in ("8000", "8080", "9000")}
    for path in (folder / "nginx.conf", folder / "config.toml", folder / "run.sh"):
        path.write_text(re.sub(r"\b(?:8000|8080|9000)\b", lambda port: ports[port[0]], path.read_text()))
    page = folder / "pages" / "index.html"
    page.write_text(re.sub(r'https://bucket[^"]*', lambda _: link.replace("&", "&amp;"), page.read_text()))
    return ports


async def _answered(session: aiohttp.ClientSession, url: URL, log: Path) -> None:
    """Wait until whoever is behind nginx answers."""
    for _ in range(PATIENCE_S * 20):
        with suppress(aiohttp.ClientError):
            async with session.get(url) as response:
                if response.status < 500:
                    return
        await asyncio.sleep(0.05)
    raise AssertionError(await asyncio.to_thread(log.read_text))


async def test_pages_and_images_come_from_one_host_through_nginx(tmp_path: Path, origin: FakeOrigin) -> None:
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():  # noqa: ASYNC240 - before anything runs
        cannot("nginx is not installed")
    link = f"{origin.gives('/a.png', picture())}?{SIGNED}"
    async with behind_nginx(tmp_path / "nginx", link) as root, aiohttp.ClientSession() as session:

        async def get(path: str) -> tuple[int, str, bytes]:
            async with session.get(root.join(URL(path, encoded=True))) as response:
                return response.status, response.headers["Content-Type"], await response.read()

        status, kind, page = await get("/")
        assert (status, kind) == (200, "text/html")
        found = re.search(r'<img src="([^"]*)"', page.decode())
        assert found is not None
        assert unescape(found[1]) == target_of(link), "a path, on this host"
        assert await get(unescape(found[1])) == (200, "image/png", picture())
        await origin.stop()
        assert await get(unescape(found[1])) == (200, "image/png", picture()), "for ever"
        for path in ("/api/images", "/metrics", "/readyz", "/openapi.json", "/imgx"):
            status, kind, _ = await get(path)
            assert (status, "json" in kind) == (404, False), f"{path} is not imgkeep's to everybody"
        assert "Signature" not in (tmp_path / "nginx" / "log").read_text()
    assert not list((tmp_path / "nginx").glob("tmp*")), "the example leaves nothing behind"
