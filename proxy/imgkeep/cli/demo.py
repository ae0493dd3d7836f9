"""`demo`: serves an imgkeep of its own beside the origin and the page of `demo_origin.py`."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import webbrowser
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from aiohttp import web

from imgkeep.bootstrap import server
from imgkeep.bootstrap.platform import SYSTEM
from imgkeep.bootstrap.preflight import require_folder_owner
from imgkeep.cli import demo_origin
from imgkeep.config import load

if TYPE_CHECKING:
    from typing import TextIO

    from imgkeep.cli.invocation import Invocation


async def run(invocation: Invocation) -> int:
    """Serve the page of the demonstration, its origin and an imgkeep of its own until SIGTERM or Ctrl-C."""
    arguments = invocation.arguments
    origin = demo_origin.DemoOrigin(round(arguments.life * 1000), lambda: round(SYSTEM.clock().timestamp() * 1000))
    stop = _watch_signals()  # first: the reader of the address may send a signal at once
    async with AsyncExitStack() as stack:
        if arguments.data:
            await asyncio.to_thread(require_folder_owner, Path(arguments.data))
        folder = arguments.data or stack.enter_context(TemporaryDirectory(prefix="imgkeep-demo-"))
        page = web.AppRunner(origin.app(), access_log=None)
        port = await _listen(stack, page, arguments.port)
        platform = replace(SYSTEM, open_socket=demo_origin.connect_only_to(port, SYSTEM.open_socket))
        runner = server.make_runner(server.build(load(demo_origin.settings(folder), {}), platform))
        origin.imgkeep = f"http://{demo_origin.HOST}:{await _listen(stack, runner, 0)}"
        url = f"http://{demo_origin.HOST}:{port}/"
        _print_addresses(url, origin.imgkeep, arguments.life, out=sys.stdout, err=sys.stderr)
        if arguments.open:
            await asyncio.to_thread(webbrowser.open, url)
        await stop.wait()
    return 0


async def _listen(stack: AsyncExitStack, runner: web.AppRunner, port: int) -> int:
    """Serve an application on loopback, and return its port."""
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    try:
        await web.TCPSite(runner, demo_origin.HOST, port).start()
    except OSError as error:
        cause = os.strerror(error.errno or errno.EIO)
        raise OSError(
            error.errno,
            f"--port: cannot listen at {demo_origin.HOST}:{port}: {cause}; choose another port, or 0 for any free one",
        ) from None
    return int(runner.addresses[0][1])


def _watch_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _print_addresses(url: str, imgkeep: str, life_s: float, *, out: TextIO, err: TextIO) -> None:
    """Print the address of the page on `out`, for programs, and an explanation on `err`, for people."""
    err.write(f"The page is below; its links die {life_s:.0f} seconds after it is opened. imgkeep is {imgkeep}\n")
    err.write("Ctrl-C ends both.\n")
    err.flush()
    out.write(f"{url}\n")
    out.flush()
