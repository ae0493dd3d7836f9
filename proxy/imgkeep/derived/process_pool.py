"""
A pool of derive processes of one priority, and the jobs that wait for them.

Rules:
- A process starts when a job needs it, and ends when it had none for `IDLE_S`, so a server that derives nothing pays
  nothing.
- A job whose picture crashes its process, or takes too long, fails. It is not tried again: the next process would end
  the same way. One whose process was killed by another program, or has ended without a crash, is tried once more.
- A process that does not start fails the jobs that need it at once for `START_RETRY_S`, so that a flood of them starts
  no flood of processes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy, DeriveFailed, NotSupported
from imgkeep.core.records import OWN
from imgkeep.derived.derive_process import Ending, ProcessEnded, StartFailed, spawn
from imgkeep.derived.job_queue import JobQueue, WaitingJob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgkeep.core.records import Client
    from imgkeep.derived.derive_process import DeriveProcess, Launch
    from imgkeep.derived.messages import Answer, Job, Ready

IDLE_S: Final = 300
"""Time after which a process without a job ends, and gives its memory back."""
JOBS_MAX: Final = 500
"""Maximum number of jobs of one process: memory that libraries do not return ends with it."""
ATTEMPTS_MAX: Final = 2
START_RETRY_S: Final = 10
"""Time for which a failed start is remembered."""
WAIT_S_MAX: Final = 30
"""Timeout for a job in the queue: with `derive.timeout_s` it is below the minute after which proxies give up."""
RETRY_AFTER_S_MAX: Final = 30

log = logging.getLogger(__name__)


class ProcessPool:
    """
    A pool of derive processes.

    Attributes:
        ready: The abilities of the processes; `None`: none was ready yet.

    Args:
        launch: How they are started.
        processes_max: Maximum number of them.
        queue_max: Maximum number of jobs that wait.
        refused: Called for each job that finds no place.
        ended: Called with the ending of each process.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        processes_max: int,
        queue_max: int,
        refused: Callable[[], None],
        ended: Callable[[Ending], None],
    ) -> None:
        self.ready: Ready | None = None
        self._launch = launch
        self._processes_max = processes_max
        self._refused = refused
        self._ended = ended
        self._queue = JobQueue(queue_max)
        self._running = 0
        """Number of jobs that have a process, or start one."""
        self._idle: list[DeriveProcess] = []
        """Processes without a job; the last one has worked last."""
        self._processes: set[DeriveProcess] = set()
        """All that have not gone yet."""
        self._starting: set[asyncio.Task[DeriveProcess]] = set()
        self._start_fault: tuple[StartFailed, float] | None = None
        """The last start that failed, and until when it is remembered."""
        self._mean_s = 1.0
        """Mean time of a job, in which a newer one counts more."""
        self._closing = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return self._running

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in list(self._processes)]  # a thread asks, too

    async def run(self, job: Job, descriptors: Sequence[int], client: Client, timeout_s: float) -> Answer:
        """
        Wait for a process, and have a job done.

        Raises:
            Busy: No process gets free in time, or none starts at the moment.
            NotSupported: No process can ever start.
            DeriveFailed: The job crashed its process, or took too long.
        """
        await self._enter(client)
        try:
            return await self._attempt(job, descriptors, timeout_s)
        finally:
            self._leave()

    async def check(self) -> Ready:
        """
        Start a process where none is free, and return what it can do.

        Raises:
            Busy, NotSupported: As `run`.
        """
        await self._enter(OWN)
        try:
            process = await self._take()
            self._keep(process)
            return process.ready
        finally:
            self._leave()

    def has_room(self, client: Client) -> bool:
        """Return whether a job of this client would find a process, or a place in the queue."""
        return self._running < self._processes_max or self._queue.has_room(client)

    def require_room(self, client: Client) -> None:
        """
        Raise what `run` would raise at once for a job of this client.

        Raises:
            Busy: The queue has no place for it, or no process starts at the moment.
            NotSupported: No process can ever start.
        """
        self._require_start()
        if not self.has_room(client):
            self._refused()
            raise self._make_busy()

    async def aclose(self) -> None:
        """End all processes; jobs that run or wait are `Busy`."""
        self._closing = True
        while (waiting := self._queue.pop()) is not None:
            _refuse(waiting, stopping())
        for process in list(self._processes):
            process.end(Ending.CLOSED)
        if self._starting:
            await asyncio.wait(self._starting)
        await asyncio.gather(*[process.wait() for process in self._processes])

    async def _enter(self, client: Client) -> None:
        if self._closing:
            raise stopping()
        if self._running < self._processes_max:
            self._running += 1
            return
        waiting = WaitingJob(client, asyncio.get_running_loop().create_future())
        displaced = self._queue.add(waiting)
        if displaced is not None:
            self._refused()
            _refuse(displaced, self._make_busy())
        try:
            await asyncio.wait_for(waiting.granted, WAIT_S_MAX)
        except TimeoutError:
            if not waiting.is_granted:  # both may happen in one iteration of the event loop
                self._refused()
                raise Busy(
                    "the pictures before this one take too long: retry later", retry_after_s=self._retry_after_s()
                ) from None
        except asyncio.CancelledError:
            if waiting.is_granted:
                self._leave()
            raise
        finally:
            self._queue.discard(waiting)

    def _leave(self) -> None:
        """Give the place of a job to the next one."""
        while (waiting := self._queue.pop()) is not None:
            if not waiting.granted.done():
                waiting.granted.set_result(None)
                return
        self._running -= 1

    def _make_busy(self) -> Busy:
        return Busy("too many pictures wait to be made: retry later", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> int:
        seconds = (len(self._queue) + 1) * self._mean_s / self._processes_max
        return max(1, min(RETRY_AFTER_S_MAX, math.ceil(seconds)))

    async def _attempt(self, job: Job, descriptors: Sequence[int], timeout_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        for attempt in range(1, ATTEMPTS_MAX + 1):
            process = await self._take()
            began = loop.time()
            try:
                answer = await process.run(job, descriptors, timeout_s)
            except ProcessEnded as end:
                if end.ending is Ending.CLOSED:
                    raise stopping() from None
                self._mean_s += (loop.time() - began - self._mean_s) / 8
                log.warning("derive process ended", extra={"reason": end.ending.value, "status": end.status})
                blameless = not end.began or end.ending in {Ending.KILLED, Ending.RECYCLED}
                if not blameless or attempt == ATTEMPTS_MAX:
                    raise _fail(end, timeout_s) from None
                try:
                    await loop.run_in_executor(self._launch.threads, _empty, descriptors[1:])
                except OSError:  # the process has sealed it
                    raise _fail(end, timeout_s) from None
                continue
            self._mean_s += (loop.time() - began - self._mean_s) / 8
            self._keep(process)
            return answer
        raise AssertionError

    async def _take(self) -> DeriveProcess:
        """Return a process without a job: an idle one, or a new one."""
        if self._closing:
            raise stopping()
        if self._idle:
            process = self._idle.pop()
            if process.idle_timer is not None:
                process.idle_timer.cancel()
            return process
        self._require_start()
        task = asyncio.create_task(self._start())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(task)
        except StartFailed as fault:
            raise self._explain(fault) from None
        except asyncio.CancelledError:
            task.add_done_callback(_abandon)
            raise

    async def _start(self) -> DeriveProcess:
        try:
            process = await spawn(self._launch, self._note_closed, self._note_gone)
            self._processes.add(process)
            if self._closing:
                process.end(Ending.CLOSED)
            await process.greet()
        except StartFailed as fault:
            self._note_fault(fault)
            raise
        self.ready = process.ready
        return process

    def _require_start(self) -> None:
        """Raise the last failure of a start, as long as it is remembered."""
        if self._start_fault is not None and asyncio.get_running_loop().time() < self._start_fault[1]:
            raise self._explain(self._start_fault[0])

    def _note_fault(self, fault: StartFailed) -> None:
        if not self._closing:
            retry_s = math.inf if fault.lasting else START_RETRY_S
            self._start_fault = fault, asyncio.get_running_loop().time() + retry_s
            log.error("derive process not started", extra={"reason": str(fault)})

    def _explain(self, fault: StartFailed) -> Busy | NotSupported:
        if self._closing:
            return stopping()
        if fault.lasting:
            return NotSupported(str(fault))
        return Busy("the process that makes pictures does not start: see the log", retry_after_s=START_RETRY_S)

    def _keep(self, process: DeriveProcess) -> None:
        """Keep a process for the next job, unless it has done its share or has ended."""
        if process.ending is not None:
            return
        if process.jobs >= JOBS_MAX:
            process.end(Ending.RECYCLED)
            return
        self._idle.append(process)
        loop = asyncio.get_running_loop()
        process.idle_timer = loop.call_later(IDLE_S, process.end, Ending.IDLE)

    def _note_closed(self, process: DeriveProcess) -> None:
        if process in self._idle:
            self._idle.remove(process)

    def _note_gone(self, process: DeriveProcess) -> None:
        self._processes.discard(process)
        assert process.ending is not None
        self._ended(process.ending)


def _refuse(waiting: WaitingJob, error: Busy) -> None:
    if not waiting.granted.done():
        waiting.granted.set_exception(error)


def _empty(outputs: Sequence[int]) -> None:
    """Remove what a process has written before its end. Blocks."""
    for descriptor in outputs:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)


def stopping() -> Busy:
    """Return the refusal of a job at the end of the server."""
    return Busy("imgkeep is stopping: retry at once, another process may serve already")


def _abandon(started: asyncio.Task[DeriveProcess]) -> None:
    """End a process that started for a job that was given up."""
    if not started.cancelled() and started.exception() is None:
        started.result().end(Ending.ABANDONED)


def _fail(end: ProcessEnded, timeout_s: float) -> DeriveFailed:
    if end.status == -signal.SIGXCPU:
        return DeriveFailed(
            "the picture takes more processor time than derive.timeout_s allows, of which an SVG may take a quarter"
        )
    if end.ending is Ending.TIMED_OUT:
        return DeriveFailed(
            f"the picture takes longer than {timeout_s:g} seconds: ask for a smaller one, or raise derive.timeout_s"
        )
    return DeriveFailed(
        "the process that made the picture ended: the image may be damaged, or need more memory than "
        "derive.memory_bytes_max"
    )
