"""`demo`: an imgkeep of its own, beside the origin and the page that `cli/demo.py` serves."""

from __future__ import annotations

import asyncio
import sys
import webbrowser
from contextlib import AsyncExitStack
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from aiohttp import web

from proxy import app
from proxy.cli import demo
from proxy.config import load
from proxy.works import REAL

if TYPE_CHECKING:
    from proxy.commands.call import Call


async def demonstrate(call: Call) -> int:
    """Serve the page of the demonstration, its origin and an imgkeep of its own until SIGTERM or Ctrl-C."""
    arguments = call.arguments
    origin = demo.Origin(round(arguments.life * 1000), lambda: round(REAL.clock().timestamp() * 1000))
    async with AsyncExitStack() as stack:
        folder = arguments.data or stack.enter_context(TemporaryDirectory(prefix="imgkeep-demo-"))
        page = web.AppRunner(origin.app(), access_log=None)
        port = await _listen(stack, page, arguments.port)
        seams = replace(REAL, open_socket=demo.only_to(port, REAL.open_socket))
        kept = app.make_runner(app.build(load(demo.settings(folder), {}), seams))
        origin.imgkeep = f"http://{demo.HOST}:{await _listen(stack, kept, 0)}"
        url = f"http://{demo.HOST}:{port}/"
        demo.tell(url, origin.imgkeep, arguments.life, out=sys.stdout, err=sys.stderr)
        if arguments.open:
            await asyncio.to_thread(webbrowser.open, url)
        await demo.until_signal()
    return 0


async def _listen(stack: AsyncExitStack, runner: web.AppRunner, port: int) -> int:
    """Have an application served on loopback, and return its port."""
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.TCPSite(runner, demo.HOST, port).start()
    return int(runner.addresses[0][1])
