"""`save`, `import`, `export` and `remove` on the command line."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import pty
import signal
import sys
from hashlib import sha256
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.cli.client import pin_address
from imgkeep.cli.save import CONCURRENT_MAX
from tests.support.images import make_image
from tests.support.program import ROOT, environment, run, run_here, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin


def digest(seed: int) -> str:
    return sha256(make_image(seed=seed)).hexdigest()


# --- save


@pytest.mark.parametrize("way", ["store", "server"])
async def test_permanent_urls_are_printed_in_order(folder: Path, origin: FakeOrigin, way: str) -> None:
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(5)]
    file = folder.parent / "links.txt"
    file.write_text("\n".join([*urls[1:], "", "nonsense", origin.url("/missing")]) + "\n")
    token = "a-token-for-this-test"
    settings: dict[str, Any] = {"server__public_url": "https://img.example", "security__api_tokens": token}
    async with serving(folder, **settings) as program:
        there = ["--server", f"http://{program.address}"] if way == "server" else []
        status, out, err = await run_here(folder, "save", urls[0], "-f", str(file), *there, **settings)
        lines = out.splitlines()
        assert status == 1, err
        assert lines == [*[f"https://img.example/images/{digest(n)}.png" for n in range(5)], "-", "-"]
        assert err.splitlines()[-1] == "5 saved, 0 known, 2 failed", err
        assert "link 6: invalid_source" in err
        assert "link 7: source_not_found" in err
        status, out, err = await run_here(folder, "save", *urls, "--json", *there, **settings)
        facts = [json.loads(line) for line in out.splitlines()]
        assert (status, err) == (0, "")
        assert [(fact["source_url"], fact["digest"], fact["created"]) for fact in facts] == [
            (url, digest(n), False) for n, url in enumerate(urls)
        ]
        for n in range(5):
            assert (await program.get(f"/images/{digest(n)}.png")).body == make_image(seed=n)
    assert {origin.asked(f"/{n}.png") for n in range(5)} == {1}


async def test_second_run_finishes_hundreds_of_links(folder: Path, origin: FakeOrigin) -> None:
    half, killed = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if len(origin.seen) > 150:
            half.set()
            await killed.wait()
        await exchange.answer(make_image(seed=int(exchange.target[1:-4])))

    file = folder.parent / "links.txt"
    urls = [origin.on(f"/{n}.png", answer) for n in range(300)]
    file.write_text("\n".join(urls))
    settings = environment(folder)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "imgkeep",
        "save",
        "-f",
        str(file),
        cwd=ROOT,
        env=settings,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await asyncio.wait_for(half.wait(), 60)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    killed.set()
    assert len(origin.seen) <= 150 + CONCURRENT_MAX
    status, out, err = await run_here(folder, "save", "-f", str(file))
    assert (status, len(out.splitlines())) == (0, 300), err
    assert len(origin.seen) <= 300 + CONCURRENT_MAX, "what is stored is not fetched again"
    status, out, err = await run_here(folder, "save", "-f", str(file))
    assert (status, err) == (0, "0 saved, 300 known, 0 failed\n")


async def test_terminal_shows_a_progress_bar(folder: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/0.png", make_image())
    ours, theirs = pty.openpty()
    settings = {**environment(folder), "TERM": "xterm-256color", "COLUMNS": "120"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "imgkeep",
        "save",
        url,
        cwd=ROOT,
        env=settings,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    assert await process.wait() == 0
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "saving" in shown
    assert "1/1" in shown
    assert "127.0.0.1" in shown


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "name URLs"),
        (["-f", "/nowhere"], 2, "No such file"),
        (["https://a.example/", "--server", "http://127.0.0.1:1"], 2, "the file api-token cannot be read"),
        (
            ["https://a.example/", "--server", "nonsense"],
            2,
            "--server: expected a URL like http://127.0.0.1:8080, got 'nonsense'",
        ),
        (["https://a.example/", "--server", "http://[::1"], 2, "--server: expected a URL like"),
    ],
)
async def test_failure_to_save_is_reported(folder: Path, arguments: list[str], status: int, says: str) -> None:
    got, _, err = await run_here(folder, "save", *arguments)
    assert got == status
    assert says in err


async def test_refusal_of_the_server_is_reported(folder: Path) -> None:
    async with serving(folder, security__api_tokens="a-token-for-this-test") as program:
        there = ("save", "https://a.example/", "--server", f"http://{program.address}")
        status, _, err = await run_here(folder, *there, security__api_tokens="another-token-here")
    assert status == 1
    assert f"the server at {program.address} says: the API needs a token" in err
    status, _, err = await run_here(folder, *there, security__api_tokens="another-token-here")
    assert (status, err.splitlines()[-1]) == (
        1,
        f"imgkeep: --server: no answer from {program.address}: Connection refused",
    )


async def test_command_reads_the_machine_token(folder: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image(seed=0))
    async with serving(folder) as program:
        there = ("--server", f"http://{program.address}")
        status, out, err = await run_here(folder, "save", url, *there)
        assert (status, out) == (0, f"http://{program.address}/images/{digest(0)}.png\n"), err
        assert await run_here(folder, "token", "--local") == (0, f"{program.token}\n", "")
        (folder / "api-token").unlink()
        status, _, err = await run_here(folder, "save", url, *there)
        assert (status, "the file api-token cannot be read: No such file" in err) == (2, True), err


async def test_machine_token_goes_to_this_machine_only(folder: Path) -> None:
    seen: list[str] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    folder.mkdir()  # noqa: ASYNC240 - before anything runs
    (folder / "api-token").write_text("t" * 43)
    (folder / "api-token").chmod(0o600)
    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # Linux takes the second for the first, and the command for an address of another machine.
    for host, shown in (("127.0.0.1", True), ("0.0.0.0", False)):
        await run_here(folder, "save", "https://a.example/", "--server", f"http://{host}:{port}")
        assert ("t" * 43 in seen.pop()) is shown
    server.close()
    assert not seen


@pytest.mark.parametrize(("command", "host"), [("save", "127.0.0.1"), ("remove", "localhost")])
async def test_localhost_is_the_address_of_the_server(folder: Path, host: str, command: str) -> None:
    folder.mkdir()  # noqa: ASYNC240 - before anything runs
    (folder / "api-token").write_text("t" * 43)
    (folder / "api-token").chmod(0o600)
    shown: list[str] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        [name] = [line for line in head.decode().split("\r\n") if line.startswith("Host: ")]
        shown.append(name)
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = f"http://LocalHost:{port}/"
        await run_here(folder, command, "https://a.example/", "--server", target, server__host=host)
    assert set(shown) == {f"Host: 127.0.0.1:{port}"}, "the name has an address where another user may listen"


@pytest.mark.parametrize(
    ("url", "host", "pinned"),
    [
        ("http://localhost:8080/a?b", "::1", "http://[::1]:8080/a?b"),
        ("http://localhost", "::", "http://[::1]"),
        ("http://localhost:1", "127.0.0.5", "http://127.0.0.5:1"),
        ("http://127.0.0.1:1/", "::1", "http://127.0.0.1:1/"),
        ("https://img.example", "127.0.0.1", "https://img.example"),
        ("http://localhost:1", "0.0.0.0", "http://127.0.0.1:1"),
        ("http://localhost:1", "", "http://127.0.0.1:1"),
        ("https://localhost:1", "127.0.0.1", "https://localhost:1"),
        ("http://localhost:x", "127.0.0.1", "http://localhost:x"),
    ],
)
def test_only_localhost_is_pinned(url: str, host: str, pinned: str) -> None:
    assert pin_address(url, host) == pinned


# --- import and export


async def test_import_keeps_names(folder: Path) -> None:
    old = folder.parent / "public" / "generated-images"
    (old / "2025" / "süß").mkdir(parents=True)
    names = ["a.png", "2025/b 1.png", "2025/süß/c.png"]
    for n, name in enumerate(names):
        (old / name).write_bytes(make_image(seed=n))
    (old / "same.png").write_bytes(make_image(seed=0))
    (old / "notes.txt").write_text("no image")
    (old / "cut.png").write_bytes(make_image(seed=5)[:-20])
    (old / ".hidden.png").write_bytes(make_image(seed=6))
    (old / "link.png").symlink_to(old / "a.png")
    config = folder.parent / "ours.toml"
    config.write_text('[[legacy]]\nmount = "generated-images"\n')
    for line in ("4 adopted, 0 known, 2 passed over, 0 failed\n", "0 adopted, 4 known, 2 passed over, 0 failed\n"):
        status, out, err = await run(folder, "--config", str(config), "import", str(old), "--mount", "generated-images")
        assert (status, out) == (0, line), err
        assert "notes.txt" in err
    assert len(list((folder / "v1" / "objects").rglob("*.png"))) == 3, "equal bytes are stored once"
    async with serving(folder, IMGKEEP_CONFIG=str(config)) as program:
        for n, name in enumerate(["a.png", "2025/b%201.png", "2025/s%C3%BC%C3%9F/c.png"]):
            answer = await program.get(f"/generated-images/{name}")
            assert (answer.status, answer.body) == (200, make_image(seed=n))
            assert answer.headers["Content-Location"].endswith(f"{digest(n)}.png")
        assert (await program.get("/generated-images/link.png")).status == 404
        assert (await program.get("/other/a.png")).status == 404
    (old / "a.png").write_bytes(make_image(seed=9))
    status, out, err = await run(folder, "import", str(old), "--mount", "generated-images", "--json")
    assert status == 1
    assert json.loads(out) == {"adopted": 0, "known": 3, "passed_over": 2, "failed": 1}
    assert "[[legacy]]" in err
    assert "another image is stored under this name" in err


@pytest.mark.parametrize("mount", ["img", "api/x", "/a", "a/", "", "../x", "a b"])
async def test_mount_must_be_a_free_path(folder: Path, mount: str) -> None:
    status, _, err = await run_here(folder, "import", str(folder.parent), "--mount", mount)
    assert status == 2
    assert "--mount" in err


async def test_export_is_csv_or_json_lines(folder: Path, origin: FakeOrigin) -> None:
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(3)]
    settings: dict[str, Any] = {"server__public_url": "https://img.example"}
    await run_here(folder, "save", *urls, **settings)
    status, out, _ = await run_here(folder, "export", **settings)
    rows = list(csv.DictReader(StringIO(out)))
    assert status == 0
    assert {(row["source"].rpartition("/")[2], row["url"], row["digest"]) for row in rows} == {
        (f"{n}.png", f"https://img.example/images/{digest(n)}.png", digest(n)) for n in range(3)
    }
    status, out, _ = await run_here(folder, "export", "--format", "jsonl", **settings)
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["digest"] for line in lines} == {digest(n) for n in range(3)}
    assert all(set(line) == set(rows[0]) for line in lines)


# --- remove


async def test_removed_image_is_not_saved_again(folder: Path, origin: FakeOrigin) -> None:
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(4)]
    _, out, _ = await run_here(folder, "save", "--json", *urls)
    keys = [json.loads(line)["key"] for line in out.splitlines()]
    assert (await run_here(folder, "remove", keys[0], urls[1]))[:2] == (0, "removed\nremoved\n")
    assert (await run_here(folder, "remove", "--digest", digest(2)))[:2] == (0, "removed\n")
    status, _, err = await run_here(folder, "remove", "0" * 64, "nonsense")
    assert (status, err.count("\n")) == (1, 2)
    async with serving(folder) as program:
        assert [(await program.img(url)).status for url in urls] == [410, 410, 410, 200]
        assert (await program.get(f"/images/{digest(0)}.png")).status == 410

    status, out, err = await run_here(folder, "remove", urls[3], digest(9), "--force")
    assert (status, out) == (0, "removed\nremoved\n"), err
    assert "restored" in (await run_here(folder, "restore", urls[0], digest(1), keys[2]))[1]


async def test_refetch_by_url_needs_one_key(folder: Path) -> None:
    status, _, err = await run_here(folder, "refetch", "0" * 64, "1" * 64, "--url", "https://a.example/")
    assert (status, "--url" in err) == (2, True)
