"""Derive processes that misbehave: each harms one job, and nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from imgkeep.core.errors import Busy, DeriveFailed, NotSupported
from imgkeep.core.records import Client
from imgkeep.derived import process_pool
from imgkeep.derived.messages import Derived, DeriveJob, Facts
from tests.support.derive_pool import open_pool, open_real_pool
from tests.support.waiting import until

PICTURE = Derived(size=7, width=1, height=1)
CRASHES = ("exit3", "abort", "allocate", "garbage", "long", "greet", "verbose")


def job_of(stem: str) -> DeriveJob:
    return DeriveJob(stem=stem, format="WEBP", original_format="PNG", pixels_max=1, frames_max=1)


def client(number: int) -> Client:
    return Client((f"192.0.2.{number}",))


async def test_picture_is_written_into_given_file() -> None:
    async with open_pool() as pool:
        assert pool.processes.pids == []
        assert await pool.run("done") == PICTURE
        [pid] = pool.processes.pids
        assert await pool.run("split") == PICTURE
        assert pool.processes.pids == [pid]
        assert pool.outputs == [b"picture"] * 2
        assert pool.count("jobs", format="webp", outcome="done") == 2


async def test_facts_have_process_of_their_own() -> None:
    async with open_pool() as pool:
        assert isinstance(await pool.run("", picture=None), Facts)
        await pool.run("done")
        assert len(pool.processes.pids) == 2


async def test_crash_fails_one_job_and_is_not_tried_again() -> None:
    async with open_pool() as pool:
        for number, stem in enumerate(CRASHES, 1):
            with pytest.raises(DeriveFailed, match="may be damaged"):
                await pool.run(stem)
            assert await pool.run("done") == PICTURE
            assert pool.count("processes_ended", cause="crashed") == number


async def test_process_that_has_used_up_its_processor_time_has_taken_too_long() -> None:
    async with open_pool() as pool:
        with pytest.raises(DeriveFailed, match="processor time"):
            await pool.run("spent")
        assert pool.count("processes_ended", cause="timed_out") == 1


async def test_process_that_answers_twice_is_ended() -> None:
    async with open_pool() as pool:
        with suppress(DeriveFailed):  # if both answers come in one piece
            await pool.run("twice")
        await until(lambda: pool.count("processes_ended", cause="crashed") == 1)
        assert await pool.run("done") == PICTURE


async def test_process_over_its_time_is_killed_and_replaced() -> None:
    async with open_pool(timeout_s=0.2) as pool:
        await pool.run("done")
        [first] = pool.processes.pids
        with pytest.raises(DeriveFailed, match=r"longer than 0.2 seconds"):
            await pool.run("hang")
        assert not is_running(first)
        assert await pool.run("done") == PICTURE
        assert pool.count("processes_ended", cause="timed_out") == 1


async def test_job_of_killed_process_is_tried_once_more() -> None:
    async with open_pool() as pool:
        assert await pool.run("killed-once") == PICTURE
        assert pool.outputs == [b"picture"], "nothing of the first attempt"
        with pytest.raises(DeriveFailed):
            await pool.run("killed")
        assert pool.count("processes_ended", cause="killed") == 3


async def test_kill_of_process_without_job_harms_no_job() -> None:
    async with open_pool() as pool:
        await pool.run("done")
        os.kill(pool.processes.pids[0], signal.SIGKILL)
        assert await pool.run("done") == PICTURE  # whether its end was noticed before or not


async def test_job_for_which_process_only_ends_is_tried_twice() -> None:
    async with open_pool() as pool:
        with pytest.raises(DeriveFailed):
            await pool.run("exit0")
        assert pool.count("processes_ended", cause="recycled") == 2


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no file of this system can be sealed")
async def test_job_whose_process_seals_its_file_fails_and_is_not_tried_again() -> None:
    output = os.memfd_create("picture", os.MFD_ALLOW_SEALING)
    try:
        with TemporaryFile() as source:
            async with open_pool() as pool:
                with pytest.raises(DeriveFailed):
                    await pool.run_on(job_of("seal"), source.fileno(), output)
                assert pool.count("processes_ended", cause="recycled") == 1
                assert await pool.run("done") == PICTURE
    finally:
        os.close(output)


async def test_missing_extra_is_not_supported_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_real_pool() as pool:
        monkeypatch.setitem(sys.modules, "pyvips", None)  # as if it were not installed
        with pytest.raises(NotSupported, match=r"pip install 'imgkeep\[server,derive\]'"):
            await pool.run("done")
        with pytest.raises(NotSupported):
            await pool.processes.require_usable()
        assert pool.processes.pids == []


async def test_library_that_is_missing_is_not_supported() -> None:
    async with open_pool("unusable") as pool:
        for _ in range(2):
            with pytest.raises(NotSupported, match="libvips is missing: install it"):
                await pool.run("done")
        with pytest.raises(NotSupported):
            pool.processes.require_room(client(1))
        assert pool.count("jobs", format="webp", outcome="not_supported") == 2


@pytest.mark.parametrize("start", ["exit", "garbage"])
async def test_process_that_does_not_start_is_busy_and_not_started_for_each_job(start: str) -> None:
    async with open_pool(start) as pool:
        for _ in range(3):
            with pytest.raises(Busy, match="does not start") as caught:
                await pool.run("done")
            assert caught.value.retry_after_s == process_pool.START_RETRY_S
        assert sum(pool.count("processes_ended", cause=cause) for cause in ("crashed", "timed_out")) == 1


async def test_full_queue_is_busy_and_serves_clients_in_turn() -> None:
    async with open_pool(queue_max=4) as pool:
        with TemporaryFile() as original:
            order: list[str] = []

            async def ask(name: str, number: int, stem: str = "done") -> None:
                with TemporaryFile() as picture:
                    await pool.run_on(job_of(stem), original.fileno(), picture.fileno(), client(number))
                order.append(name)

            running = asyncio.create_task(ask("first", 1, "slow"))
            await until(lambda: pool.processes.running)
            many = [asyncio.create_task(ask(f"many{number}", 1)) for number in range(5)]
            await until(lambda: pool.processes.waiting == 4)
            with pytest.raises(Busy):
                pool.processes.require_room(client(1))
            pool.processes.require_room(client(2))
            one = asyncio.create_task(ask("one", 2))
            with pytest.raises(Busy) as refused:
                await many[4]
            with pytest.raises(Busy):
                await many[3]
            assert refused.value.retry_after_s >= 1
            original.write(b"go")
            original.flush()
            await asyncio.gather(running, one, *many[:3])
        assert order == ["first", "many0", "one", "many1", "many2"]
        assert pool.metrics.registry.get_sample_value("imgkeep_refused_total", {"limit": "derive_queue"}) == 3


async def test_job_that_waits_too_long_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "WAIT_S_MAX", 0.05)
    async with open_pool() as pool:
        with TemporaryFile() as original, TemporaryFile() as picture:
            running = asyncio.create_task(pool.run_on(job_of("slow"), original.fileno(), picture.fileno()))
            await until(lambda: pool.processes.running)
            with pytest.raises(Busy, match="take too long"):
                await pool.run("done")
            original.write(b"go")
            original.flush()
            await running


async def test_job_that_is_given_up_ends_its_process_and_frees_its_place() -> None:
    async with open_pool() as pool:
        task = asyncio.create_task(pool.run("hang"))
        await until(lambda: pool.processes.pids)
        waiting = asyncio.create_task(pool.run("done"))
        await until(lambda: pool.processes.waiting)
        waiting.cancel()
        task.cancel()
        await asyncio.wait([task, waiting])
        assert await pool.run("done") == PICTURE
        assert pool.processes.running == pool.processes.waiting == 0


async def test_end_kills_processes_and_refuses_jobs() -> None:
    async with open_pool() as pool:
        tasks = [asyncio.create_task(pool.run("hang")) for _ in range(2)]
        await until(lambda: pool.processes.waiting and pool.processes.pids)
        [pid] = pool.processes.pids
    for task in tasks:
        with pytest.raises(Busy, match="is stopping"):
            await task
    assert not is_running(pid)
    with pytest.raises(Busy, match="is stopping"):
        await pool.run("done")


async def test_end_before_the_first_job_starts_none() -> None:
    async with open_pool() as pool:
        pass
    with pytest.raises(Busy, match="is stopping"):
        await pool.run("done")


async def test_process_ends_after_its_share_of_jobs_and_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "JOBS_MAX", 2)
    monkeypatch.setattr(process_pool, "IDLE_S", 0.01)
    async with open_pool() as pool:
        await pool.run("done")
        await until(lambda: pool.count("processes_ended", cause="idle") == 1)
        monkeypatch.setattr(process_pool, "IDLE_S", 300)
        await pool.run("done")
        await pool.run("done")
        await until(lambda: pool.count("processes_ended", cause="recycled") == 1)
        assert pool.processes.pids == []


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
