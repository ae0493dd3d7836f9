"""Requests that reach each worker of a program, and what a worker has open."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.program import Answer, Program
    from tests.support.proxies import Worker

ASKED: int = 30
"""Number of new connections that reaches each of three workers."""


async def ask_together(program: Program, url: str, number: int = ASKED) -> list[Answer]:
    """Request an image over many connections at once."""
    return await asyncio.gather(*(program.img(url) for _ in range(number)))


async def counted(program: Program, pattern: str) -> float:
    """Return the sum of the samples of `/metrics` that match a pattern."""
    page = (await program.get("/metrics")).body.decode()
    return sum(float(value) for value in re.findall(rf"^{pattern}[^ ]* (\S+)$", page, re.MULTILINE))


def drafts_of(worker: Worker) -> list[str]:
    """Return the drafts that a worker has open, also those that were moved or removed meanwhile."""
    found = []
    for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir():
        with suppress(OSError):
            path = descriptor.readlink()
            if path.parent.name == "partial" or path.parent.parent.name == "objects":
                found.append(path.name)
    return found


@asynccontextmanager
async def streaming(program: Program, url: str) -> AsyncIterator[list[aiohttp.ClientResponse]]:
    """Request an image so often that each worker has a request; yield the responses once all have begun."""
    target = f"http://{program.address}/img?src={quote(url, safe='')}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield await asyncio.gather(*(session.get(target) for _ in range(ASKED)))
