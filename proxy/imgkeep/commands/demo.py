"""`demo`: an imgkeep of its own, beside the origin and the page that `cli/demo.py` serves."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import webbrowser
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from aiohttp import web

from imgkeep.bootstrap import server as app
from imgkeep.bootstrap.preflight import require_folder_owner
from imgkeep.bootstrap.services import SYSTEM
from imgkeep.cli import demo
from imgkeep.config import load

if TYPE_CHECKING:
    from imgkeep.commands.invocation import Invocation


async def run_demo(call: Invocation) -> int:
    """Serve the page of the demonstration, its origin and an imgkeep of its own until SIGTERM or Ctrl-C."""
    arguments = call.arguments
    origin = demo.Origin(round(arguments.life * 1000), lambda: round(SYSTEM.clock().timestamp() * 1000))
    stop = demo.watch_signals()  # before the address is told: what reads it may end us at once
    async with AsyncExitStack() as stack:
        if arguments.data:
            await asyncio.to_thread(require_folder_owner, Path(arguments.data))
        folder = arguments.data or stack.enter_context(TemporaryDirectory(prefix="imgkeep-demo-"))
        page = web.AppRunner(origin.app(), access_log=None)
        port = await _listen(stack, page, arguments.port)
        platform = replace(SYSTEM, open_socket=demo.connect_only_to(port, SYSTEM.open_socket))
        kept = app.make_runner(app.build(load(demo.settings(folder), {}), platform))
        origin.imgkeep = f"http://{demo.HOST}:{await _listen(stack, kept, 0)}"
        url = f"http://{demo.HOST}:{port}/"
        demo.tell(url, origin.imgkeep, arguments.life, out=sys.stdout, err=sys.stderr)
        if arguments.open:
            await asyncio.to_thread(webbrowser.open, url)
        await stop.wait()
    return 0


async def _listen(stack: AsyncExitStack, runner: web.AppRunner, port: int) -> int:
    """Have an application served on loopback, and return its port."""
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    try:
        await web.TCPSite(runner, demo.HOST, port).start()
    except OSError as error:
        cause = os.strerror(error.errno or errno.EIO)
        raise OSError(
            error.errno,
            f"--port: cannot listen at {demo.HOST}:{port}: {cause}; choose another port, or 0 for any free one",
        ) from None
    return int(runner.addresses[0][1])
