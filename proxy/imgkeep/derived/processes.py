"""
The derive processes of a server: those that make pictures, and one that finds facts in idle time.

Rules:
- Nothing starts before the first job, and nothing is imported that only a derive process needs.
- A process cannot raise its priority again, so facts have a process of their own, for which serving and pictures come
  first. Pictures come after serving.
- `derive.processes` is the number of processes of all workers together.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from resource import getpagesize
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import ImgkeepError, NotSupported
from imgkeep.core.records import OWN
from imgkeep.derived.cores import count_cores
from imgkeep.derived.derive_process import COMMAND, Launch
from imgkeep.derived.messages import DeriveJob, FactsJob, NotSmaller, ProcessLimits, Refused
from imgkeep.derived.process_pool import ProcessPool, stopping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgkeep.config.schema import Derive
    from imgkeep.core.records import Client
    from imgkeep.derived.messages import Answer, Job, Ready
    from imgkeep.observability.derive_metrics import DeriveMetrics

REMEDY: Final = "pictures in other sizes and formats need the extra `derive`: pip install 'imgkeep[server,derive]'"

PICTURES_NICENESS: Final = 10
FACTS_NICENESS: Final = 19
FACTS_QUEUE_MAX: Final = 8
FACTS_PATIENCE: Final = 10
"""Factor of the timeout for facts: a process in idle time waits long for a core. Its processor time is limited too."""
THREADS: Final = 4
"""Maximum number of processes that start, or whose end is waited for, at a time."""


class DeriveProcesses:
    """
    The derive processes of one process that serves.

    Args:
        settings: Their settings.
        environment: The environment of this process.
        metrics: Counts jobs and processes.
        workers: Number of workers, which share the cores of the machine.
        command: The program of a derive process.
        verbose: Whether messages of its libraries reach the standard error of this process.
    """

    def __init__(  # noqa: PLR0913 - all but three by keyword
        self,
        settings: Derive,
        environment: Mapping[str, str],
        metrics: DeriveMetrics,
        *,
        workers: int = 1,
        command: Sequence[str] = COMMAND,
        verbose: bool = False,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._metrics = metrics
        self._workers = workers
        self._command = command
        self._verbose = verbose
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="derive")
        self._opening = asyncio.Lock()
        self._pictures: ProcessPool | None = None
        self._facts: ProcessPool | None = None
        self._memory_bytes = 0
        self._closed = False

    @property
    def ready(self) -> Ready | None:
        """The abilities of the processes; `None`: none was ready yet."""
        return next((pool.ready for pool in self._pools if pool.ready is not None), None)

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a process."""
        return sum(pool.waiting for pool in self._pools)

    @property
    def running(self) -> int:
        """Number of jobs that have a process."""
        return sum(pool.running for pool in self._pools)

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [pid for pool in self._pools for pid in pool.pids]

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the processes, as of the last sample."""
        return self._memory_bytes if self.pids else 0

    async def run(self, job: Job, source: int, output: int | None = None, client: Client = OWN) -> Answer:
        """
        Have a job done.

        Args:
            job: The job.
            source: The descriptor of the original. Like `output` it stays the caller's, and open until this returns.
            output: That of an empty file for the picture; `None`: the job makes none.
            client: The client that causes it.

        Raises:
            Busy: No process gets free in time, or none starts at the moment.
            NotSupported: The extra is not installed, or its library cannot be used.
            DeriveFailed: The picture crashed its process, or took too long.
        """
        began = asyncio.get_running_loop().time()
        outcome = "given_up"
        try:
            pictures, facts = await self._open_pools()
            pool = facts if isinstance(job, FactsJob) else pictures
            descriptors = [source] if output is None else [source, output]
            timeout_s = self._settings.timeout_s * (FACTS_PATIENCE if isinstance(job, FactsJob) else 1)
            answer = await pool.run(job, descriptors, client, timeout_s)
            outcome = _name_outcome(answer)
        except ImgkeepError as error:
            outcome = error.code
            raise
        else:
            return answer
        finally:
            seconds = asyncio.get_running_loop().time() - began
            self._metrics.answered(job.format.lower() if isinstance(job, DeriveJob) else "facts", outcome, seconds)

    async def require_usable(self) -> None:
        """
        Raise `NotSupported` where the extra is not installed. A missing library is found by the first job.

        Raises:
            NotSupported: See above.
        """
        await self._open_pools()

    def has_room(self, client: Client) -> bool:
        """Return whether a job for a picture would find a process, or a place in the queue."""
        return self._pictures is None or self._pictures.has_room(client)

    def require_room(self, client: Client) -> None:
        """
        Raise what a job for a picture would raise at once, before its caller prepares it.

        Raises:
            Busy: The queue has no place for a job of this client, or no process starts at the moment.
            NotSupported: The library of the extra cannot be used.
        """
        if self._pictures is not None:
            self._pictures.require_room(client)

    async def check(self) -> Ready:
        """
        Start a process where none is free, and return what it can do.

        Raises:
            Busy: It does not start.
            NotSupported: The extra is not installed, or its library cannot be used.
        """
        return await (await self._open_pools())[0].check()

    def sample_memory(self) -> None:
        """Take a sample of the memory of the processes. Blocks."""
        self._memory_bytes = sum(map(_read_memory, self.pids))

    async def aclose(self) -> None:
        """End all processes. Jobs that run or wait are `Busy`."""
        self._closed = True
        async with self._opening:
            await asyncio.gather(*[pool.aclose() for pool in self._pools])
        self._threads.shutdown(wait=False)

    @property
    def _pools(self) -> list[ProcessPool]:
        return [pool for pool in (self._pictures, self._facts) if pool is not None]

    async def _open_pools(self) -> tuple[ProcessPool, ProcessPool]:
        """Return the pools for pictures and for facts."""
        if self._pictures is None or self._facts is None:
            async with self._opening:
                if self._closed:
                    raise stopping()
                if self._pictures is None or self._facts is None:
                    return await self._make_pools()
        return self._pictures, self._facts

    async def _make_pools(self) -> tuple[ProcessPool, ProcessPool]:
        run = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        if self._command is COMMAND and await run(find_spec, "pyvips") is None:
            raise NotSupported(REMEDY)
        number = self._settings.processes or max(1, await run(count_cores) // self._workers)
        self._pictures = self._make_pool(number, self._settings.queue_max, PICTURES_NICENESS)
        self._facts = self._make_pool(1, FACTS_QUEUE_MAX, FACTS_NICENESS, idle=True)
        return self._pictures, self._facts

    def _make_pool(self, number: int, queue_max: int, niceness: int, *, idle: bool = False) -> ProcessPool:
        settings = self._settings
        limits = ProcessLimits(
            memory_bytes_max=settings.memory_bytes_max,
            cpu_s=math.ceil(settings.timeout_s) + 1,
            niceness=niceness,
            idle=idle,
        )
        return ProcessPool(
            Launch(limits, self._threads, self._environment, self._command, self._verbose),
            processes_max=number,
            queue_max=queue_max,
            refused=self._metrics.refused,
            ended=lambda ending: self._metrics.ended(ending.value),
        )


def _name_outcome(answer: Answer) -> str:
    if isinstance(answer, Refused):
        return answer.reason
    return "not_smaller" if isinstance(answer, NotSmaller) else "done"


def _read_memory(pid: int) -> int:
    """Return the resident memory of a process; 0: it has ended, or the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - a file of the kernel
            return int(file.read().split()[1]) * getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
