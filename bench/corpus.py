"""
Ask imgkeep for every file below a folder, whole and broken ones, and see that each is kept byte for byte or refused.

    python -m bench.corpus FOLDER

A good folder is `Tests/images` of Pillow's source distribution (`pip download --no-binary :all: --no-deps pillow`):
over a thousand images, some sixty of them truncated, crashing or bombs. Every file is served in three framings: with
`Content-Length`, chunked, and ended by closing the connection. Exit status 1 if a file was altered, got a 5xx that is
not 502, or took longer than ten seconds, or if the server grew beyond `RSS_BYTES_MAX`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

RSS_BYTES_MAX: Final = 500 * 1024 * 1024
"""The memory for hot images, which such a corpus fills, and as much again for all the rest."""
FRAMINGS: Final = ("length", "chunked", "close")


async def _answer(root: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve `/<framing>/<number>` as the file of that number, typed as object stores do."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    _, framing, number = head.split(" ")[1].split("/")
    body = await asyncio.to_thread(_files(root)[int(number)].read_bytes)
    fields = {"length": f"Content-Length: {len(body)}\r\n", "chunked": "Transfer-Encoding: chunked\r\n", "close": ""}
    writer.write(
        f"HTTP/1.1 200 OK\r\nContent-Type: binary/octet-stream\r\nConnection: close\r\n{fields[framing]}\r\n".encode()
    )
    if framing == "chunked":
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    writer.write(body)
    writer.close()


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@asynccontextmanager
async def imgkeep(folder: str) -> AsyncGenerator[tuple[str, int]]:
    """Start a server on a free port; yield its URL and process id."""
    environment = {
        "PATH": "",
        "IMGKEEP_SERVER__PORT": "0",
        "IMGKEEP_LOG__FORMAT": "json",
        "IMGKEEP_LOG__ACCESS": "false",
        "IMGKEEP_FETCH__ALLOW_NETWORKS": "127.0.0.0/8",
        "IMGKEEP_FETCH__RETRIES_MAX": "0",
        "IMGKEEP_LIMITS__FILLS_PER_MINUTE": "0",
        "IMGKEEP_LIMITS__FILLS_CONCURRENT": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imgkeep", "serve", env=environment, cwd=folder, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while b'"listening"' not in (line := await process.stderr.readline()):
            assert line, "the server did not start"
        address = line.decode().partition('"address":"')[2].partition('"')[0]
        drain = asyncio.create_task(process.stderr.read())
        yield f"http://{address}", process.pid
        process.terminate()
        await drain
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _rss(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * 4096


async def run(root: Path) -> int:
    """Run over all files; return the exit status."""
    files = _files(root)
    origin = await asyncio.start_server(lambda reader, writer: _answer(root, reader, writer), "127.0.0.1", 0)
    port = origin.sockets[0].getsockname()[1]
    results: Counter[str] = Counter()
    wrong: list[str] = []
    rss_max = 0
    with tempfile.TemporaryDirectory() as folder:
        async with imgkeep(folder) as (base, process_id), aiohttp.ClientSession() as session:
            for number, path in enumerate(files):
                for framing in FRAMINGS:
                    source = quote(f"http://127.0.0.1:{port}/{framing}/{number}", safe="")
                    url = URL(f"{base}/img?src={source}", encoded=True)
                    result = await _ask(session, url, path)
                    results[f"{framing}: {result}"] += 1
                    if result not in ALLOWED:
                        wrong.append(f"{framing}: {result}: {path.relative_to(root)}")
                    rss_max = max(rss_max, _rss(process_id))
    origin.close()
    print(f"{len(files)} files, greatest memory {rss_max / 1024**2:.0f} MiB")
    for result, number in sorted(results.items()):
        print(f"{number:6}  {result}")
    print(*wrong, sep="\n")
    return 1 if wrong or rss_max > RSS_BYTES_MAX else 0


ALLOWED: Final = ("kept", "broken off", "400", "404", "422", "502")


async def _ask(session: aiohttp.ClientSession, url: URL, path: Path) -> str:
    """Ask twice and say what became of it."""
    body = await asyncio.to_thread(path.read_bytes)
    try:
        async with asyncio.timeout(10):
            for status in ("stored", "hit"):
                async with session.get(url) as response:
                    if response.status != 200:
                        return str(response.status)
                    if await response.read() != body:
                        return "altered"
                    if not response.headers["Cache-Status"].endswith(status):
                        return "not kept"
    except aiohttp.ClientPayloadError:
        return "broken off"
    except TimeoutError:
        return "hangs"
    return "kept"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("folder", type=Path)
    sys.exit(asyncio.run(run(parser.parse_args().folder)))
