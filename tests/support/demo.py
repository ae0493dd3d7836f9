"""`imgkeep demo` as people run it."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.program import environment

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """A running demonstration: where its page is, and what it has said of itself."""

    process: asyncio.subprocess.Process
    url: str
    words: str

    @property
    def imgkeep(self) -> str:
        """Where its imgkeep is."""
        return self.words.rsplit(" ", 1)[-1]


@asynccontextmanager
async def demonstrating(folder: Path, *arguments: str) -> AsyncGenerator[Demo]:
    """Run `imgkeep demo` until the end of the block; its folder for temporary files is `folder`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imgkeep", "demo", *arguments),
        cwd=folder,
        env={**environment(folder / "unused"), "TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        assert url, (await process.stderr.read()).decode()
        yield Demo(process, url, (await process.stderr.readline()).decode().strip())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
