"""Short work for one disk: done together, and hung work delays no other."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.storage.local.executor import DiskExecutor
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Hang:
    """Work that hangs until `end`, and counts the threads in it."""

    def __init__(self) -> None:
        self.threads = 0
        self._end = threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> bool:
        with self._lock:
            self.threads += 1
        return self._end.wait()

    def end(self) -> None:
        self._end.set()


@asynccontextmanager
async def hanging(number: int = 8, timeout_s: float = 30) -> AsyncIterator[tuple[DiskExecutor, Hang]]:
    """Give an executor, and work that hangs in it until the end of the block."""
    executor, hang = DiskExecutor(number, timeout_s=timeout_s), Hang()
    try:
        yield executor, hang
    finally:
        hang.end()
        executor.close()


async def test_work_of_one_iteration_runs_in_one_thread() -> None:
    async with hanging() as (executor, _):
        names = await asyncio.gather(*[executor.run_batched(threading.get_ident) for _ in range(20)])
    assert len(set(names)) == 1


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_hung_work_delays_no_other_work(position: int) -> None:
    async with hanging() as (executor, hang), asyncio.timeout(20):
        works = [hang if n == position else threading.get_ident for n in range(3)]
        tasks = [asyncio.create_task(executor.run_batched(work)) for work in works]
        hung = tasks.pop(position)
        await asyncio.gather(*tasks)
        assert not hung.done()
        hang.end()
        assert await hung is True


async def test_hung_disk_takes_no_more_threads_than_its_limit() -> None:
    async with hanging(2) as (executor, hang), asyncio.timeout(20):
        tasks = [asyncio.create_task(executor.run_batched(hang)) for _ in range(6)]
        await until(lambda: hang.threads == 2)
        executor._check_late(asyncio.get_running_loop())  # which gives waiting work to a free thread, if there is one
        assert executor._batches == 2
        assert executor._pool._work_queue.qsize() == 0
        hang.end()
        assert await asyncio.gather(*tasks) == [True] * 6
        await until(lambda: (executor._batches, executor._check_scheduled) == (0, False))


async def test_work_has_a_timeout() -> None:
    async with hanging(timeout_s=0.05) as (executor, hang):
        with pytest.raises(StorageError, match="does not answer"):
            await executor.run_batched(hang)


async def test_error_reaches_its_caller_only() -> None:
    def fail() -> None:
        raise PermissionError(13, "")

    async with hanging() as (executor, _):
        failed, fine = await asyncio.gather(
            executor.run_batched(fail), executor.run_batched(threading.get_ident), return_exceptions=True
        )
    assert isinstance(failed, StorageError)
    assert isinstance(fine, int)


async def test_cancelled_caller_leaves_others_alone() -> None:
    async with hanging() as (executor, hang), asyncio.timeout(20):
        cancelled = asyncio.create_task(executor.run_batched(hang))
        other = asyncio.create_task(executor.run_batched(threading.get_ident))
        await until(lambda: hang.threads == 1)
        cancelled.cancel()
        assert await other


async def test_closed_executor_cancels_new_work() -> None:
    executor = DiskExecutor()
    executor.close()
    with pytest.raises(asyncio.CancelledError):
        await executor.run_batched(threading.get_ident)
