"""Several workers under test: clients that reach each of them, their sums and their drafts."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp

from tests.support.cluster import workers
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.cluster import Worker
    from tests.support.program import Answer, Program

ASKED: int = 30
"""Number of new connections that reach each of three workers."""


def count_messages(program: Program, message: str) -> int:
    return sum(json.loads(line)["message"] == message for line in list(program.log) if line.startswith("{"))


async def find_holder(program: Program) -> Worker:
    """Return the worker that holds the lease of the one image that is being fetched."""
    folder = next(iter(workers(program).values())).folder / "leases"
    await until(lambda: any(folder.iterdir()))
    return workers(program)[str(next(folder.iterdir()).readlink())]


async def ask_all(program: Program, url: str, number: int = ASKED) -> list[Answer]:
    return await asyncio.gather(*(program.img(url) for _ in range(number)))


async def metric_sum(program: Program, pattern: str) -> float:
    page = (await program.get("/metrics")).body.decode()
    return sum(float(value) for value in re.findall(rf"^{pattern}[^ ]* (\S+)$", page, re.MULTILINE))


def drafts_of(worker: Worker) -> list[str]:
    """Return the files that a worker has open and that are being written, or were moved or removed meanwhile."""
    found = []
    for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir():
        with suppress(OSError):
            place = descriptor.readlink()
            if place.parent.name == "partial" or (place.parent.parent.name == "objects"):
                found.append(place.name)
    return found


@asynccontextmanager
async def open_many(program: Program, url: str) -> AsyncIterator[list[aiohttp.ClientResponse]]:
    """Ask as browsers do, so often that each of two workers is asked; yield the answers as soon as all have begun."""
    target = f"http://{program.address}/img?src={quote(url, safe='')}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield await asyncio.gather(*(session.get(target) for _ in range(ASKED)))
