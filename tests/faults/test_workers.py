"""Several workers on one port: real processes, whose deaths, reloads and ends no client may notice."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.support.cluster import connections_of, workers
from tests.support.images import make_image, png_of
from tests.support.origins import gated_body
from tests.support.program import ROOT, injecting, need_strace, run, serving
from tests.support.raw_http import request, split, talk, target_of
from tests.support.waiting import until
from tests.support.workers import ASKED, ask_all, count_messages, drafts_of, find_holder, metric_sum, open_many

if TYPE_CHECKING:
    from tests.support.origins import Exchange, FakeOrigin, Script
    from tests.support.program import Program

REAL_INTERPRETER = Path(sys.executable).resolve()
OLD: int = 6
"""Number of requests by HTTP/1.0."""


def lives(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    return False


async def test_several_workers_are_one_server(tmp_path: Path, origin: FakeOrigin) -> None:
    body = png_of(1_000_000)
    gate = asyncio.Event()
    cold = origin.on("/cold.png", gated_body(body, gate, ahead=300_000))
    async with serving(tmp_path / "data", server__workers="3", TMPDIR=str(tmp_path)) as program:
        # One fill, many readers, wherever they come in.
        asking = asyncio.create_task(ask_all(program, cold))
        await until(lambda: origin.asked("/cold.png") > 0)
        old_request = request(target_of(cold), version="1.0")
        port = int(program.address.rpartition(":")[2])
        old = [asyncio.create_task(talk(port, old_request)) for _ in range(OLD)]
        await until(lambda: all(connections_of(worker, port) for worker in workers(program).values()))
        gate.set()
        answers = await asking
        assert {split(data).body == body for data in await asyncio.gather(*old)} == {True}
        assert {(answer.status, answer.body == body) for answer in answers} == {(200, True)}
        assert origin.asked("/cold.png") == 1
        assert sum("; stored" in answer.cache_status for answer in answers) == 1
        assert {answer.headers["ETag"] for answer in answers} == {answers[0].headers["ETag"]}

        # One page of counters: each request once, wherever it was answered in the end.
        assert await metric_sum(program, r'imgkeep_requests_total\{.*route="/img"') == ASKED + OLD
        assert await metric_sum(program, r'imgkeep_fills_total\{outcome="stored"') == 1
        assert await metric_sum(program, "imgkeep_workers_counted") == 3

        # One worker does all jobs, whichever takes them.
        links = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(20)]
        for part in (links[:10], links[10:]):
            async with program.session.post(
                f"http://{program.address}/api/save-images", json={"urls": part, "wait": True}
            ) as done:
                assert (await done.json())["saved"] == 10
        assert [origin.asked(f"/{n}.png") for n in range(20)] == [1] * 20
        assert await metric_sum(program, r'imgkeep_job_links_total\{outcome="saved"') == 20

        # One derivation of a picture, whichever worker is asked for it.
        picture = f"{target_of(links[0])}&w=32&format=webp"
        pictures = await asyncio.gather(*(program.get(picture) for _ in range(ASKED)))
        assert {(answer.status, answer.headers["Content-Type"]) for answer in pictures} == {(200, "image/webp")}
        assert len({answer.headers["ETag"] for answer in pictures}) == 1
        assert await metric_sum(program, r'imgkeep_derive_jobs_total\{.*outcome="done"') == 1

        # No worker shows a removed image from then on.
        assert {answer.cache_status for answer in await ask_all(program, links[0])} == {"imgkeep; hit"}
        name = (await program.img(links[0])).headers["Content-Location"]
        async with program.session.delete(
            f"http://{program.address}/api/images?src={quote(links[0], safe='')}"
        ) as removal:
            assert removal.status == 200
        assert {answer.status for answer in await ask_all(program, links[0])} == {410}
        assert {(await program.get(picture)).status for _ in range(10)} == {410}
        assert not list((tmp_path / "data" / "derived").rglob("*.webp"))
        assert {(await program.get(name)).status for _ in range(10)} == {410}
        assert [line for line in program.log if json.loads(line)["level"] not in {"info", "debug"}] == []


async def call(program: Program, path: str, **body: str) -> tuple[int, dict[str, Any]]:
    async with program.session.post(f"http://{program.address}{path}", json=body) as answer:
        return answer.status, await answer.json()


async def test_restore_and_refetch_reach_every_worker(tmp_path: Path, origin: FakeOrigin) -> None:
    old, new = make_image(seed=1), make_image(seed=2)
    url = origin.gives("/a.png", old)
    async with serving(tmp_path / "data", server__workers="3", TMPDIR=str(tmp_path)) as program:
        assert {answer.body for answer in await ask_all(program, url)} == {old}
        async with program.session.delete(f"http://{program.address}/api/images?src={quote(url, safe='')}") as removal:
            key = (await removal.json())["key"]
        assert {answer.status for answer in await ask_all(program, url)} == {410}
        assert (await call(program, "/api/restore", url=url))[0] == 200
        assert {(answer.status, answer.body) for answer in await ask_all(program, url)} == {(200, old)}
        assert origin.asked("/a.png") == 2

        go = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await go.wait()
            await exchange.answer(new)

        origin.on("/a.png", slow)
        asking = [asyncio.create_task(call(program, f"/api/images/{key}/refetch", url=url)) for _ in range(ASKED)]
        await until(lambda: origin.asked("/a.png") == 3)
        assert {answer.body for answer in await ask_all(program, url)} == {old}, "no client waits, and none sees a part"
        go.set()
        reply = [await each for each in asking]
        assert {(status, facts["replaced"]) for status, facts in reply} == {(200, True)}
        answers = await ask_all(program, url)
        assert {(answer.body, answer.cache_status) for answer in answers} == {(new, "imgkeep; hit")}
        assert origin.asked("/a.png") == 3
        assert [line for line in program.log if json.loads(line)["level"] not in {"info", "debug"}] == []


async def test_workers_refetch_an_incomplete_image_once(tmp_path: Path, origin: FakeOrigin) -> None:
    whole = make_image(seed=1)
    half = whole[: len(whole) // 2]
    url = origin.gives("/a.png", half)
    folder = tmp_path / "data"
    async with serving(folder, server__workers="2", TMPDIR=str(tmp_path)) as program:
        assert {answer.body for answer in await ask_all(program, url)} == {half}
        assert origin.asked("/a.png") == 1
    (path,) = (folder / "v1" / "records").rglob("*.json")
    record = json.loads(path.read_bytes())
    assert "incomplete" in record["doubts"]
    path.write_text(json.dumps(record | {"stored_at": "2026-01-01T00:00:00Z"}))
    origin.gives("/a.png", whole)
    async with serving(folder, server__workers="2", TMPDIR=str(tmp_path)) as program:
        assert {answer.body for answer in await ask_all(program, url)} <= {half, whole}, "no client waits"
        await until(lambda: json.loads(path.read_bytes())["digest"] != record["digest"])

        async def all_workers_answer_it() -> bool:
            return {answer.body for answer in await ask_all(program, url)} == {whole}

        await until(all_workers_answer_it)
        assert origin.asked("/a.png") == 2
        assert await metric_sum(program, r'imgkeep_incomplete_refetches_total\{outcome="whole"\}') == 1


@pytest.mark.parametrize("declared", [True, False], ids=["size known", "size unknown"])
async def test_follower_in_a_peer_reads_the_growing_file(tmp_path: Path, origin: FakeOrigin, *, declared: bool) -> None:
    body = png_of(8_000_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=40_000, declared=declared))
    folder = tmp_path / "größe %41"
    async with serving(folder, server__workers="2") as program, open_many(program, url) as answers:
        drafts = [draft for worker in workers(program).values() for draft in drafts_of(worker)]
        assert len(drafts) == 2, "each worker has a file open, once for all who ask there"
        assert len(set(drafts)) == 1
        gate.set()
        sizes = {answer.headers.get("Content-Length") for answer in answers}
        assert sizes == {str(len(body)) if declared else None}
        # No client's kernel takes all of it at once. So the image is where it belongs before most of them have it.
        assert await answers[0].read() == body
        assert len([*folder.glob("v1/objects/*/*.png")]) == 1
        assert not list((folder / "partial").iterdir())
        assert {await answer.read() == body for answer in answers} == {True}
        await until(lambda: not any(map(drafts_of, workers(program).values())))
        assert (await program.img(url)).cache_status == "imgkeep; hit"
        assert origin.asked("/a.png") == 1


async def test_follower_in_a_peer_survives_a_failing_disk(tmp_path: Path, origin: FakeOrigin) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    body = png_of(900_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=200_000))
    async with (
        serving(tmp_path / "data", prepare=limit, server__workers="2") as program,
        open_many(program, url) as answers,
    ):
        assert all(map(drafts_of, workers(program).values()))
        gate.set()
        assert {await answer.read() == body for answer in answers} == {True}
        assert origin.asked("/a.png") == 1
        await until(lambda: not any(map(drafts_of, workers(program).values())))


@pytest.mark.parametrize("end", ["the origin", "the worker"])
async def test_broken_fill_is_whole_for_no_follower(tmp_path: Path, origin: FakeOrigin, end: str) -> None:
    gate = asyncio.Event()

    async def broken(exchange: Exchange) -> None:
        await exchange.send_head("Transfer-Encoding: chunked")
        await exchange.send(b"%x\r\n%b" % (900_000, png_of(900_000)[:200_000]))
        await gate.wait()
        exchange.finish()

    url = origin.on("/a.png", broken)
    async with serving(tmp_path / "data", server__workers="2") as program, open_many(program, url) as answers:
        assert all(map(drafts_of, workers(program).values()))
        if end == "the worker":
            os.kill((await find_holder(program)).pid, signal.SIGKILL)
        else:
            gate.set()
        ends = await asyncio.gather(*(answer.read() for answer in answers), return_exceptions=True)
        assert {isinstance(found, aiohttp.ClientError) for found in ends} == {True}
        await until(lambda: not any(map(drafts_of, workers(program).values())))
        assert origin.asked("/a.png") == 1


async def test_dead_worker_loses_no_image(tmp_path: Path, origin: FakeOrigin) -> None:
    body = png_of(500_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=100_000))
    async with serving(tmp_path / "data", server__workers="2") as program:
        before = workers(program)
        first = asyncio.create_task(program.img(url))
        victim = await find_holder(program)
        await until(lambda: origin.asked("/a.png") == 1)  # a lease comes before the request
        os.kill(victim.pid, signal.SIGKILL)
        first.cancel()
        gate.set()
        # Waiting clients get it from the other worker, or from the one that replaces the dead.
        answers = await ask_all(program, url, 10)
        assert {(answer.status, answer.body == body) for answer in answers} == {(200, True)}
        assert origin.asked("/a.png") == 2
        await until(lambda: len(workers(program)) == 2 and victim.name not in workers(program))
        assert len(workers(program).keys() & before.keys()) == 1
        await until(lambda: count_messages(program, "worker ready") == 3)
        assert (await program.img(url)).cache_status == "imgkeep; hit"
        async with program.session.get(f"http://{program.address}/api/images") as listed:
            assert len((await listed.json())["images"]) == 1

        # When the supervisor dies, its workers end.
        pids = [worker.pid for worker in workers(program).values()]
        program.process.kill()
        await until(lambda: not any(map(lives, pids)), within_s=60)
        assert not victim.folder.exists()


async def test_reload_loses_no_request(tmp_path: Path, origin: FakeOrigin) -> None:
    body = png_of(400_000)
    gate = asyncio.Event()
    slow = origin.on("/slow.png", gated_body(body, gate, ahead=100_000))
    small = origin.gives("/small.png", make_image())
    (tmp_path / "config.toml").write_text("[log]\naccess = false\n")
    async with serving(tmp_path / "data", server__workers="2") as program:
        before = set(workers(program))
        running = [asyncio.create_task(program.img(slow)) for _ in range(6)]
        await until(lambda: origin.asked("/slow.png") == 1)
        over = asyncio.Event()
        answered: list[int] = []

        async def ask(*, anew: bool) -> None:
            connector = aiohttp.TCPConnector(force_close=anew)
            async with aiohttp.ClientSession(connector=connector) as session:
                # aiohttp asks again by itself where a connection was closed; that would hide what is looked for.
                session._retry_connection = False
                while not over.is_set():
                    async with session.get(f"http://{program.address}/img?src={quote(small, safe='')}") as answer:
                        answered.append(answer.status if await answer.read() == make_image() else 0)
                    await asyncio.sleep(0.01)  # a hundred requests a second leave processor time for the reload

        asking = [asyncio.create_task(ask(anew=anew)) for anew in (True, True, False, False)]
        (tmp_path / "config.toml").write_text("[log]\nlevel = 'loud'\n")
        program.process.send_signal(signal.SIGHUP)
        await until(lambda: count_messages(program, "reload failed: the configuration is not valid") == 1)
        assert set(workers(program)) == before
        (tmp_path / "config.toml").write_text("[log]\naccess = true\n")
        program.process.send_signal(signal.SIGHUP)
        await until(lambda: count_messages(program, "reloaded") == 1, within_s=60)
        gate.set()
        answers = await asyncio.gather(*running)
        assert {(answer.status, answer.body == body) for answer in answers} == {(200, True)}
        await until(lambda: not set(workers(program)) & before)
        over.set()
        await asyncio.gather(*asking)
        assert set(answered) == {200}
        assert len(workers(program)) == 2
        assert count_messages(program, "request") > 0
        assert origin.asked("/slow.png") == 1
        assert await metric_sum(program, r'imgkeep_requests_total\{.*route="/img"') == len(answered) + len(running)

        # And SIGTERM ends as one process does.
        last = origin.on("/last.png", _slowly(body))
        running = [asyncio.create_task(program.img(last)) for _ in range(6)]
        await until(lambda: origin.asked("/last.png") == 1)
        program.process.send_signal(signal.SIGTERM)
        program.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*running)
        assert {(answer.status, answer.body == body) for answer in answers} == {(200, True)}
        assert await program.process.wait() == 0
    assert json.loads(program.log[-1])["message"] == "stopped"


async def test_busy_holder_is_not_taken_for_dead(tmp_path: Path, origin: FakeOrigin) -> None:
    body = png_of(100_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=50_000))
    async with serving(tmp_path / "data", server__workers="2") as program:
        first = asyncio.create_task(program.img(url))
        pid = (await find_holder(program)).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            asking = asyncio.create_task(ask_all(program, url, 500))  # more than wait at a socket, unless it is told so
            await asyncio.sleep(0.8)  # the pause, which is shorter than the patience of a peer
        finally:
            os.kill(pid, signal.SIGCONT)
        gate.set()
        assert {(answer.status, answer.body == body) for answer in [await first, *await asking]} == {(200, True)}
        assert origin.asked("/a.png") == 1


async def test_request_during_the_rename_gets_the_image(tmp_path: Path, origin: FakeOrigin) -> None:
    need_strace()
    body = png_of(150_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=100_000))
    async with serving(tmp_path / "data", server__workers="2") as program:
        first = asyncio.create_task(program.img(url))
        pid = (await find_holder(program)).pid
        async with injecting(program, "fsync", delay_us=300_000, pid=pid):
            gate.set()
            asking = []
            while not first.done():
                asking.append(asyncio.create_task(program.img(url)))
                await asyncio.sleep(0.02)  # requests arrive all along the slow fsync
            answers = await asyncio.gather(*asking)
        assert len(answers) > 5
        assert {(answer.status, answer.body == body) for answer in answers} == {(200, True)}
        assert origin.asked("/a.png") == 1


async def test_reload_during_a_reload_reaches_every_worker(tmp_path: Path, origin: FakeOrigin) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text("[log]\naccess = false\n")
    async with serving(tmp_path / "data", server__workers="2") as program:
        before = workers(program).keys()
        program.process.send_signal(signal.SIGHUP)
        await until(lambda: len(workers(program)) == 3)
        (new,) = workers(program).keys() - before
        settings.write_text("[log]\naccess = true\n")
        program.process.send_signal(signal.SIGHUP)
        await until(lambda: count_messages(program, "reloading") == 2)
        # What the first one has started is not what the second one wants, whether it lives or dies.
        os.kill(workers(program)[new].pid, signal.SIGKILL)
        await until(lambda: count_messages(program, "reloaded") == 1, within_s=60)
        assert count_messages(program, "reload failed: a new worker does not start") == 0
        await until(lambda: not workers(program).keys() & (before | {new}))
        url = origin.gives("/a.png", make_image())
        await ask_all(program, url)
        await until(lambda: count_messages(program, "request") == ASKED)


async def test_failed_start_ends_the_reload_alone(tmp_path: Path, origin: FakeOrigin) -> None:
    interpreter = tmp_path / "python"
    interpreter.symlink_to(REAL_INTERPRETER)
    url = origin.gives("/a.png", make_image())
    # An interpreter elsewhere finds no environment around it.
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    folder = tmp_path / "data"
    async with serving(folder, interpreter=str(interpreter), PYTHONPATH=paths, server__workers="2") as program:
        before = workers(program).keys()
        interpreter.unlink()
        program.process.send_signal(signal.SIGHUP)
        await until(lambda: count_messages(program, "reload failed: a new worker does not start") == 1)
        assert workers(program).keys() == before
        os.kill(next(iter(workers(program).values())).pid, signal.SIGKILL)
        await until(lambda: count_messages(program, "worker start failed; retrying") > 1)
        interpreter.symlink_to(REAL_INTERPRETER)
        await until(lambda: len(workers(program)) == 2)
        assert {answer.status for answer in await ask_all(program, url)} == {200}


async def test_sigterm_while_a_worker_restarts_exits_zero(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", server__workers="2") as program:
        victim = workers(program).popitem()[1]
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: count_messages(program, "worker died; restarting") == 1)
        await until(lambda: len(workers(program)) == 2)
        program.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(program.process.wait(), 20) == 0


async def test_too_long_temporary_folder_is_reported_at_start(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    status, _, err = await run(tmp_path / "data", "serve", server__workers="2", TMPDIR=str(deep))
    assert status == 2
    assert "TMPDIR" in err


def _slowly(body: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        for start in range(0, len(body), 50_000):
            await exchange.send(body[start : start + 50_000])
            await asyncio.sleep(0.1)

    return script
