"""The examples as a newcomer runs them: a copy of `examples/` on free ports, a shell, and commands of the README."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

EXAMPLES = ROOT / "examples"
PORTS = ("5000", "8000", "8001", "8080", "8090", "8091", "8092", "9000")
"""Each port of the examples."""
PATIENCE_S = 90


@dataclass(frozen=True)
class Example:
    """A section of the README: what to type, and what to open."""

    name: str
    commands: str
    opens: str

    @property
    def serves(self) -> bool:
        """Whether the last command runs until it is ended."""
        return self.opens.startswith("http")


def read_examples(text: str) -> tuple[list[str], list[Example]]:
    """Return what the README says to start first, and each example."""
    first, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    started = re.findall(r"^(.*) &$", first, re.MULTILINE)
    examples = []
    for section in sections:
        block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
        opens = re.search(r"^Open (?:<(\S+)>|`(\S+)`|the URL in `(\S+)`)", section, re.MULTILINE)
        assert opens is not None, section
        name = section.partition("\n")[0]
        examples.append(Example(name, block[1] if block else "", next(filter(None, opens.groups()))))
    return started, examples


@dataclass(frozen=True)
class Checkout:
    """A copy of `examples/` in a folder; `ports` tells which port stands in it for another."""

    folder: Path
    ports: dict[str, str]

    @property
    def readme(self) -> str:
        """The README of the copy. Ports that are defaults of other programs are written out."""
        text = (self.folder / "examples" / "README.md").read_text("utf-8")
        return (
            text.replace("flask/app.py run", f"flask/app.py run --port {self.ports['5000']}")
            .replace("examples/config.toml serve", f"examples/config.toml serve --port {self.ports['8080']}")
            .replace("runserver", "runserver --noreload")
        )

    def url(self, port: str) -> str:
        """Return the address of the program that has this port in the examples."""
        return f"http://127.0.0.1:{self.ports[port]}/"


def copy_checkout(folder: Path, reserve_port: Callable[[], int]) -> Checkout:
    """Copy `examples/` with ports that are free, and make `out`."""
    ports = {port: str(reserve_port()) for port in PORTS}
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "examples").rglob("*.*"):
        if path.is_file():
            text = path.read_text("utf-8")
            path.write_text(re.sub(rf"\b(?:{'|'.join(PORTS)})\b", lambda port: ports[port[0]], text), "utf-8")
    (folder / "out").mkdir()
    return Checkout(folder, ports)


class Shell:
    """What a person types in one checkout, where these variables are set."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._folder = folder
        own = {name: value for name, value in os.environ.items() if not name.startswith(("IMGKEEP_", "AWS_"))}  # noqa: TID251
        path = f"{Path(sys.executable).parent}:{own['PATH']}:/usr/sbin"
        self._environment = {**own, "PATH": path, "PYTHONPATH": str(ROOT / "proxy"), "TMPDIR": str(folder)}
        self._environment |= variables

    async def _start(self, commands: str, log: Path) -> asyncio.subprocess.Process:
        with log.open("wb") as file:
            return await asyncio.create_subprocess_exec(
                *("sh", "-e", "-c", commands),
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    async def run(self, commands: str, name: str) -> str:
        """Run commands to their end; return what they print."""
        log = self._folder / f"{name}.log"
        process = await self._start(commands, log)
        async with asyncio.timeout(PATIENCE_S):
            status = await process.wait()
        assert status == 0, f"{name}: {log.read_text()}"
        return log.read_text()

    @asynccontextmanager
    async def serving(
        self, commands: str, url: str, name: str, *, end: signal.Signals = signal.SIGTERM
    ) -> AsyncGenerator[None]:
        """Run commands until the end of the block, which begins when `url` answers, and then end them by a signal."""
        log = self._folder / f"{name}.log"
        process = await self._start(commands, log)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await _answers(url):
                    assert process.returncode is None, f"{name}: {log.read_text()}"
                    await asyncio.sleep(0.05)
            yield
        finally:
            await _end(process, end)


async def _end(process: asyncio.subprocess.Process, first: signal.Signals) -> None:
    """End a shell and all that it started: after SIGTERM each has time to clean up, as after Ctrl-C."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, first)
        await process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while True:
                    os.killpg(process.pid, 0)
                    await asyncio.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _answers(url: str) -> bool:
    """Whether the pages are served and, through nginx, imgkeep too."""
    try:
        async with aiohttp.ClientSession() as session:
            for place in (url, f"{url.rstrip('/')}/img"):
                async with session.get(place) as response:
                    if response.status >= 500:
                        return False
    except aiohttp.ClientError:
        return False
    return True
