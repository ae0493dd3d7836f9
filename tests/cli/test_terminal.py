"""Commands on a terminal: their output, Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import sys
import termios
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgkeep.cli.interruption import INTERRUPTED, TERMINATED
from tests.support.images import make_image
from tests.support.program import environment
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.origins import Exchange, FakeOrigin

CTRL_C = b"\x03"


@dataclass
class Terminal:
    """A program on a terminal of its own, and its output."""

    process: asyncio.subprocess.Process
    end: int
    shown: bytearray

    @property
    def text(self) -> str:
        return self.shown.decode("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """The text on the screen at the end, without what was erased."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text)
        return [line.rsplit("\r", 1)[-1] for line in plain.replace("\r\n", "\n").split("\n")]

    def press(self, keys: bytes) -> None:
        os.write(self.end, keys)


@asynccontextmanager
async def terminal(folder: Path, *arguments: str, command: str = "") -> AsyncGenerator[Terminal]:
    """Run a command with a terminal for all three streams; `command`: a line for the shell instead."""
    ours, theirs = pty.openpty()
    words = ("/bin/bash", "-c", command) if command else (sys.executable, "-m", "imgkeep", *arguments)

    def prepare() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder.parent,
        env={**environment(folder), "TERM": "xterm-256color", "COLUMNS": "100"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=prepare,
    )
    os.close(theirs)
    shown = Terminal(process, ours, bytearray())
    os.set_blocking(ours, False)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        try:
            shown.shown += os.read(ours, 65_536)
        except OSError:  # the other end is closed
            loop.remove_reader(ours)
            ended.set()

    loop.add_reader(ours, read)
    try:
        yield shown
        await process.wait()
        await ended.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        loop.remove_reader(ours)
        os.close(ours)


async def test_urls_stand_above_the_bar(folder: Path, origin: FakeOrigin) -> None:
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(3)]
    async with terminal(folder, "save", *urls, origin.url("/missing")) as shown:
        assert await shown.process.wait() == 1
    stored = [line for line in shown.lines if line.startswith("/images/")]
    assert len(stored) == 3, shown.lines
    assert all(re.fullmatch(r"/images/[0-9a-f]{64}\.png", line) for line in stored), "nothing of the bar is in them"
    assert [line for line in shown.lines if line.startswith("imgkeep: link 4: source_not_found")]
    assert "4/4" in shown.text
    assert "3 saved, 0 known, 1 failed" in shown.lines


async def test_answers_go_to_the_pipe_and_messages_to_the_terminal(folder: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/0.png", make_image())
    line = f"'{sys.executable}' -m imgkeep save --json '{url}' > answers.jsonl"
    async with terminal(folder, command=line) as shown:
        assert await shown.process.wait() == 0
    (answer,) = (folder.parent / "answers.jsonl").read_text("utf-8").splitlines()
    facts = json.loads(answer)
    assert (facts["success"], facts["source_url"]) == (True, url)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["stored_at"])
    assert "source_url" not in shown.text


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
async def test_interrupted_save_continues_in_the_next_run(folder: Path, origin: FakeOrigin, how: str) -> None:
    held = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await held.wait()
        await exchange.answer(make_image(seed=2))

    urls = [origin.gives("/1.png", make_image(seed=1)), origin.on("/2.png", answer)]
    async with terminal(folder, "save", *urls) as shown:
        await until(lambda: "/images/" in shown.text and origin.asked("/2.png") == 1, within_s=60)
        if how == "Ctrl-C":
            shown.press(CTRL_C)
        else:
            shown.process.send_signal(signal.SIGTERM)
        assert await shown.process.wait() == (INTERRUPTED if how == "Ctrl-C" else TERMINATED)
    assert "1 saved, 0 known, 0 failed, 1 not done" in shown.lines
    assert [line for line in shown.lines if "run the same command again" in line]
    assert "Traceback" not in shown.text
    assert not list((folder / "partial").iterdir()), "nothing is left half"
    held.set()
    async with terminal(folder, "save", *urls) as shown:
        assert await shown.process.wait() == 0
    assert "1 saved, 1 known, 0 failed" in shown.lines
    assert origin.asked("/1.png") == 1


@pytest.mark.parametrize("words", ["save -", "inspect -", "rewrite -", "remove -"])
async def test_ctrl_c_ends_a_command_that_waits_for_input(folder: Path, words: str) -> None:
    async with terminal(folder, *words.split()) as shown:
        waits_at = Path(f"/proc/{shown.process.pid}/syscall")
        # The system call with its first argument: it reads standard input.
        await until(lambda: waits_at.read_text().startswith("0 0x0 "), within_s=60)
        shown.press(CTRL_C)
        assert await shown.process.wait() == INTERRUPTED
    assert "imgkeep: interrupted" in shown.text
    assert "Traceback" not in shown.text


@pytest.mark.parametrize("words", ["--help", "save --help", "inspect --json -", "completion bash"])
async def test_closed_pipe_shows_no_traceback(folder: Path, words: str) -> None:
    line = f"yes https://example.com/a.png | head -n 5000 | '{sys.executable}' -m imgkeep {words} | head -n 1"
    process = await asyncio.create_subprocess_exec(
        *("/bin/bash", "-c", line),
        cwd=folder.parent,
        env=environment(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (out.count(b"\n"), err) == (1, b"")
