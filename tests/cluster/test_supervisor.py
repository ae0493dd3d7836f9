"""The supervisor and workers that hang: real processes, which serve nothing, with a heartbeat timeout of a moment."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.program import ROOT
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HEARTBEAT_TIMEOUT_S = 3.0
"""Thirty heartbeats: a machine that is busy with other tests delays some."""

SUPERVISOR = """
import logging, os, sys
from contextlib import ExitStack
from imgkeep.cluster.workers import supervisor, worker_process
from imgkeep.config import Config, Server
from imgkeep.listening import listen_for_workers

supervisor.CHECK_INTERVAL_S = 0.1
supervisor.PAUSE_S = 0.5
worker_process.TIMEOUTS_S = {
    **worker_process.TIMEOUTS_S,
    worker_process.WorkerState.UNRESPONSIVE: float(sys.argv[3]),
    worker_process.WorkerState.DRAINING: float(sys.argv[3]),
}
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
config = Config(server=Server(port=0, workers=2))
with ExitStack() as stack:
    sys.exit(
        supervisor.Supervisor(
            config,
            sockets=listen_for_workers(config, stack),
            command=(sys.executable, "-c", sys.argv[1]),
            environment=dict(os.environ),
            reload=lambda: config,
            opened=lambda _addresses: os.write(1, b"opened\\n"),
            heartbeat_timeout_s=float(sys.argv[2]),
        ).run()
    )
"""
WORKER = """
import asyncio, os, signal, socket, sys
from imgkeep.cluster.workers.control import SupervisorLink

async def work():
    control = socket.socket(fileno=int(sys.argv[sys.argv.index("--control") + 1]))
    link = SupervisorLink(control, heartbeat_interval_s=0.1)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, link.stop.set)
    link.open()
    link.announce_ready()
    os.write(1, f"ready {os.getpid()}\\n".encode())  # whole lines: several processes share the pipe
    await link.stop.wait()
    os.write(1, f"stopped {os.getpid()}\\n".encode())

asyncio.run(work())
"""


@dataclass
class Supervised:
    """A supervisor of two workers, and what all three have printed."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    def pids(self, what: str) -> list[int]:
        return [int(found[1]) for line in self.lines if (found := re.fullmatch(rf"{what} (\d+)", line))]

    def count(self, message: str) -> int:
        return self.lines.count(message)


STUBBORN = WORKER.replace("link.stop.set)", "lambda: None)")
"""A worker that SIGTERM does not end."""


@asynccontextmanager
async def supervised(*, worker: str = WORKER, terminate_timeout_s: float = 0.5) -> AsyncIterator[Supervised]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "proxy")}  # noqa: TID251 - to be handed on
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SUPERVISOR, worker, str(HEARTBEAT_TIMEOUT_S), str(terminate_timeout_s)),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    running = Supervised(process)

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            running.lines.append(line.decode().strip())

    reading = asyncio.create_task(read())
    try:
        await until(lambda: running.count("opened") == 1 and len(running.pids("ready")) == 2)
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await reading


def exists(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_ready_worker_that_dies_while_another_one_starts_is_replaced(tmp_path: Path) -> None:
    mark = tmp_path / "died"
    first_dies = f"""
    if '"slot":0' in "".join(sys.argv) and not os.path.exists({str(mark)!r}):
        link.announce_ready()
        open({str(mark)!r}, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists({str(mark)!r}):
        await asyncio.sleep(0.01)
    link.announce_ready()
"""
    async with supervised(
        worker=WORKER.replace("    link.announce_ready()\n", first_dies.removeprefix("\n"))
    ) as running:
        assert mark.exists()
        assert len(set(running.pids("ready"))) == 2


async def test_stopped_worker_is_replaced_and_killed() -> None:
    async with supervised(terminate_timeout_s=2) as running:
        stopped, _ = running.pids("ready")
        os.kill(stopped, signal.SIGSTOP)
        await until(lambda: len(running.pids("ready")) > 2)
        assert running.count("worker unresponsive; replacing") > 0
        await until(lambda: not exists(stopped))
        assert stopped not in running.pids("stopped"), "it never ran again"
        running.process.terminate()
        assert await running.process.wait() == 0


async def test_worker_that_runs_again_drains() -> None:
    async with supervised(terminate_timeout_s=30) as running:
        stopped, _ = running.pids("ready")
        os.kill(stopped, signal.SIGSTOP)
        await until(lambda: running.count("worker unresponsive; replacing") > 0)
        os.kill(stopped, signal.SIGCONT)
        await until(lambda: stopped in running.pids("stopped"))
        await until(lambda: not exists(stopped) and len(running.pids("ready")) > 2)
        running.process.terminate()
        assert await running.process.wait() == 0


async def test_pause_of_all_processes_costs_no_worker() -> None:
    async with supervised(terminate_timeout_s=30) as running:
        workers = running.pids("ready")
        for pid in (*workers, running.process.pid):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.2 * HEARTBEAT_TIMEOUT_S)  # the pause, as of a container
        os.kill(running.process.pid, signal.SIGCONT)
        await asyncio.sleep(0.3)  # the supervisor looks at its clock several times, and must replace no worker
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        running.process.terminate()
        assert await running.process.wait() == 0
        await until(lambda: sorted(running.pids("stopped")) == sorted(workers))
        assert running.count("worker unresponsive; replacing") == 0


async def test_worker_that_does_not_end_is_killed() -> None:
    async with supervised(worker=STUBBORN) as running:
        workers = running.pids("ready")
        running.process.terminate()
        assert await running.process.wait() == 1, "a killed worker is a failure"
        assert not any(map(exists, workers))
