"""What a real derive process is given: low priority, limits, and no secret."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from imgkeep.core.records import Format
from imgkeep.derived.messages import PICTURE_BYTES_MAX
from tests.support import image_files as images
from tests.support.derive_pool import MIBIBYTES, open_real_pool

if TYPE_CHECKING:
    import pytest

PICTURE = images.saved("PNG")


async def test_processes_give_way_to_serving_and_have_limits_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGKEEP_SECURITY__SIGNING_KEYS", "hunter2-hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    own = os.nice(0)
    async with open_real_pool() as pool:
        await pool.run("w10", source=PICTURE)
        [pictures] = pool.processes.pids
        await pool.run("", source=PICTURE, original=Format.PNG, picture=None)
        [facts] = set(pool.processes.pids) - {pictures}
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in (pictures, facts)] == [min(own + 10, 19), 19]
        assert [os.sched_getscheduler(pid) for pid in (pictures, facts)] == [os.SCHED_OTHER, os.SCHED_IDLE]
        for pid in (pictures, facts):
            limits = await read(pid, "limits")
            assert f"Max address space         {512 * MIBIBYTES}" in limits
            assert "Max core file size        0" in limits
            assert f"Max file size             {PICTURE_BYTES_MAX}" in limits
            assert "hunter2" not in await read(pid, "environ") + await read(pid, "cmdline")
            assert await read(pid, "oom_score_adj") == "1000\n"
            assert os.getpgid(pid) == pid, "Ctrl-C in a terminal ends the server alone"
            assert not [name for name in await open_files(pid) if name.startswith(("/root", "/home", "/tmp"))]


async def read(pid: int, name: str) -> str:
    return await asyncio.to_thread(Path(f"/proc/{pid}/{name}").read_text, "utf-8")


async def open_files(pid: int) -> list[str]:
    """Return the files, sockets and pipes that a process has open between two jobs."""
    return await asyncio.to_thread(lambda: [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()])
