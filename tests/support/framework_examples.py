"""The examples as people run them, and a browser that looks at their pages."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.loopback import port_of, reserve
from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from playwright.async_api import Browser, ConsoleMessage, Page, Request, Response

    from tests.support.program import Program

START_TIMEOUT_S = 30

COMMANDS = {
    "flask": ("-m", "flask", "--app", "examples/flask/app.py", "run", "--port"),
    "django": ("examples/django/app.py", "runserver", "--noreload"),
    "fastapi": ("-m", "uvicorn", "--app-dir", "examples/fastapi", "app:app", "--port"),
}
"""Each takes a port behind it."""


@asynccontextmanager
async def running(name: str, page: Path, imgkeep: Program) -> AsyncGenerator[str]:
    """Run an example until the end of the block; yield its URL once its page is rewritten."""
    told = {"PAGE": page.as_uri(), "IMGKEEP_URL": f"http://{imgkeep.address}"}
    holder = reserve()
    port = port_of(holder)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *COMMANDS[name],
        str(port),
        cwd=ROOT,
        env={**os.environ, **told},  # noqa: TID251 - what a shell would hand on
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await _listens(port):
                assert process.returncode is None, f"the example for {name} does not run"
                await asyncio.sleep(0.02)
        url = f"http://127.0.0.1:{port}/"
        async with asyncio.timeout(START_TIMEOUT_S):
            while "/img?src=" not in await _show(imgkeep, url):  # noqa: ASYNC110 - another process asks
                await asyncio.sleep(0.02)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        holder.close()


async def _show(imgkeep: Program, url: str) -> str:
    async with imgkeep.session.get(url, headers={"Authorization": ""}) as response:
        return await response.text()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@dataclass
class Visit:
    """
    A browser that has seen nothing before, and the page that is open in it.

    Attributes:
        statuses: Of each URL that the page asked for.
        complaints: What the console and the network tell of errors.
    """

    page: Page
    statuses: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    async def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded, images and all."""
        self.statuses.clear()
        self.complaints.clear()
        await self.page.goto(url, wait_until="load")

    def watch(self) -> None:
        self.page.on("response", self._note_response)
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", self._note_failure)

    def _note_response(self, response: Response) -> None:
        self.statuses[response.url] = response.status

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _note_failure(self, request: Request) -> None:
        self.complaints.append(f"{request.failure}: {request.url}")

    async def ask(self, script: str) -> Any:
        """Return what a function of JavaScript tells in the page."""
        return await self.page.evaluate(script)


@asynccontextmanager
async def visiting(browser: Browser, **how: Any) -> AsyncGenerator[Visit]:
    """Have a browser without history, cache and cookies until the end of the block."""
    context = await browser.new_context(**how)
    visit = Visit(await context.new_page())
    visit.watch()
    yield visit
    await context.close()
