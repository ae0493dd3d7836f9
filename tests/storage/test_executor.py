"""Short work for one disk: done together, and nobody waits for somebody else's that hangs."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from imgkeep.core.errors import StorageError
from imgkeep.storage.local.executor import DiskExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def held(number: int = 8, timeout_s: float = 30) -> AsyncIterator[tuple[DiskExecutor, threading.Event]]:
    """Give threads, and what lets work go on that waits for it."""
    threads, go = DiskExecutor(number, timeout_s=timeout_s), threading.Event()
    try:
        yield threads, go
    finally:
        go.set()
        threads.close()


async def test_what_is_asked_for_in_one_turn_is_done_by_one_thread() -> None:
    async with held() as (threads, _):
        names = await asyncio.gather(*[threads.run_batched(threading.get_ident) for _ in range(20)])
    assert len(set(names)) == 1


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_whatever_hangs_holds_up_neither_those_before_nor_those_behind(place: int) -> None:
    async with held() as (threads, go), asyncio.timeout(20):
        works = [go.wait if n == place else threading.get_ident for n in range(3)]
        tasks = [asyncio.create_task(threads.run_batched(work)) for work in works]
        hanging = tasks.pop(place)
        await asyncio.gather(*tasks)
        assert not hanging.done()
        go.set()
        assert await hanging is True


async def test_a_disk_that_hangs_is_not_asked_by_more_and_more_threads() -> None:
    async with held(2) as (threads, go), asyncio.timeout(20):
        tasks = [asyncio.create_task(threads.run_batched(go.wait)) for _ in range(6)]
        await asyncio.sleep(0.1)
        assert threads._batches == 2
        assert threads._pool._work_queue.qsize() == 0
        go.set()
        assert await asyncio.gather(*tasks) == [True] * 6
        await asyncio.sleep(0.05)
        assert (threads._batches, threads._check_scheduled) == (0, False)


async def test_who_waits_for_too_long_is_told_so() -> None:
    async with held(timeout_s=0.05) as (threads, go):
        with pytest.raises(StorageError, match="does not answer"):
            await threads.run_batched(go.wait)


async def test_an_error_is_told_to_whom_it_concerns() -> None:
    def fail() -> None:
        raise PermissionError(13, "")

    async with held() as (threads, _):
        failed, fine = await asyncio.gather(
            threads.run_batched(fail), threads.run_batched(threading.get_ident), return_exceptions=True
        )
    assert isinstance(failed, StorageError)
    assert isinstance(fine, int)


async def test_who_leaves_takes_nobody_along() -> None:
    async with held() as (threads, go), asyncio.timeout(20):
        leaving = asyncio.create_task(threads.run_batched(go.wait))
        staying = asyncio.create_task(threads.run_batched(threading.get_ident))
        await asyncio.sleep(0.01)
        leaving.cancel()
        assert await staying


async def test_nobody_waits_once_they_are_closed() -> None:
    threads = DiskExecutor()
    threads.close()
    with pytest.raises(asyncio.CancelledError):
        await threads.run_batched(threading.get_ident)
