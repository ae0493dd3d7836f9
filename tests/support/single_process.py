"""imgkeep as one process with shipped defaults, and its memory seen from outside."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Running:
    process: asyncio.subprocess.Process
    port: int
    folder: Path
    log: list[dict[str, object]]

    def rss(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def ended(self, *, within_s: float) -> int:
        async with asyncio.timeout(within_s):
            return await self.process.wait()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Running]:
    """Run `python -m imgkeep serve` with `folder` as its data, and kill it at the end."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    given = os.environ  # noqa: TID251 - to be handed on without what would configure us
    environment = {name: value for name, value in given.items() if not name.startswith(("IMGKEEP_", "AWS_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "imgkeep",
        "serve",
        cwd=folder,
        stderr=asyncio.subprocess.PIPE,
        env=environment
        | {
            "PYTHONPATH": str(ROOT / "proxy"),
            "IMGKEEP_SERVER__PORT": "0",
            "IMGKEEP_STORE__FREE_BYTES_MIN": "0",
            "IMGKEEP_FETCH__ALLOW_NETWORKS": "127.0.0.0/8",
            "IMGKEEP_DERIVE__FACTS": "false",
            "IMGKEEP_LOG__FORMAT": "json",
        },
    )
    log: list[dict[str, object]] = []
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def read_log() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            log.append(json.loads(line))
            if log[-1]["message"] == "listening":
                listening.set_result(int(str(log[-1]["address"]).rpartition(":")[2]))

    reading = asyncio.create_task(read_log())
    try:
        async with asyncio.timeout(20):
            port = await listening
        yield Running(process, port, folder / "data", log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading
