"""imgkeep on a bucket in processes of its own: configured by the AWS variables alone, killed and wiped."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.support.cluster import workers
from tests.support.images import make_image, png_of
from tests.support.origins import gated_body
from tests.support.program import run_here, serving
from tests.support.s3.remote import only_aws
from tests.support.waiting import until
from tests.support.workers import ask_all, drafts_of, metric_sum, open_many

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.cluster import Worker
    from tests.support.origins import FakeOrigin
    from tests.support.program import Program
    from tests.support.s3.gate import Gate
    from tests.support.s3.servers import S3Server


async def waiting(program: Program) -> object:
    fallback = (await program.ready())["fallback"]
    assert isinstance(fallback, dict)
    return fallback["waiting"]


async def waits(program: Program, images: int) -> None:
    """Wait until so many images wait for the bucket: the worker counts them every second, or every five."""

    async def are_waiting() -> bool:
        return await waiting(program) == images

    await until(are_waiting)


async def test_kills_and_outages_lose_no_image(
    bucket: Callable[[str], S3Server],
    gate_to: Callable[[S3Server], Awaitable[Gate]],
    origin: FakeOrigin,
    tmp_path: Path,
) -> None:
    server = bucket("rclone")
    gate = await gate_to(server)
    folder = tmp_path / "data"  # `file:data` in the process's working directory
    settings = only_aws(server, gate.endpoint)
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(8)]
    async with serving(folder, **settings) as program:
        for n in range(4):
            assert (await program.img(urls[n])).body == make_image(seed=n)
        assert len(await server.objects("v1/objects/")) == 4
        await gate.refuse()
        for n in range(8):
            assert (await program.img(urls[n])).body == make_image(seed=n)
        program.kill()
    async with serving(folder, **settings) as program:
        assert [(await program.img(url)).body for url in urls] == [make_image(seed=n) for n in range(8)]
        assert (await program.becomes("degraded"))["status"] == "degraded"
        status, out, _ = await run_here(folder, "stats", **settings)
        assert (status, re.search(r"^waiting +4$", out, re.MULTILINE) is not None) == (0, True), out
        await gate.open()
        await gate.until_seen("PUT", "/v1/records/", times=5)  # one of the four in the outbox
        program.kill()
    async with serving(folder, **settings) as program:
        await program.becomes("ready", within_s=30)
        await waits(program, 0)
        assert len(await server.objects("v1/objects/")) == len(await server.objects("v1/records/")) == 8
        assert not list((folder / "v1").rglob("*.png"))
        program.kill()
    shutil.rmtree(folder)
    await origin.stop()
    async with serving(folder, **settings) as program:
        assert [(await program.img(url)).body for url in urls] == [make_image(seed=n) for n in range(8)]
    status, out, _ = await run_here(folder, "reindex", **settings)
    assert (status, out) == (0, "8 images\n")
    status, out, _ = await run_here(folder, "verify", **settings)
    assert (status, out) == (
        0,
        "16 good, 0 damaged, 0 missing, 0 unreadable, 0 orphan, 0 incomplete, 0 foreign, 0 removed\n",
    )
    status, out, _ = await run_here(folder, "list", **settings)
    assert (status, out.count("\n")) == (0, 8)
    assert {origin.asked(f"/{n}.png") for n in range(8)} == {1}


async def test_workers_share_the_bucket_outbox_and_removals(
    bucket: Callable[[str], S3Server],
    gate_to: Callable[[S3Server], Awaitable[Gate]],
    origin: FakeOrigin,
    tmp_path: Path,
) -> None:
    server = bucket("rclone")
    gate = await gate_to(server)
    body = png_of(2_000_000)
    go_on = asyncio.Event()
    large = origin.on("/large.png", gated_body(body, go_on, ahead=200_000))
    fresh = {origin.gives(f"/{n}.png", make_image(seed=n)): make_image(seed=n) for n in range(6)}
    async with serving(tmp_path / "data", server__workers="2", **only_aws(server, gate.endpoint)) as program:
        async with open_many(program, large) as answers:
            drafts = {draft for worker in workers(program).values() for draft in drafts_of(worker)}
            assert len(drafts) == 1, "workers follow a fill on its way to a bucket, too"
            go_on.set()
            assert {await answer.read() == body for answer in answers} == {True}
        assert origin.asked("/large.png") == 1
        assert list((await server.objects("v1/objects/")).values()) == [body]

        await gate.refuse()
        for url, small in fresh.items():
            assert {answer.body == small for answer in await ask_all(program, url)} == {True}
        await waits(program, len(fresh))
        # Another worker takes the lead and continues the uploads.
        os.kill((await leader_of(program)).pid, signal.SIGKILL)
        await gate.open()
        await until(lambda: len(workers(program)) == 2)
        await waits(program, 0)
        stored = await server.objects("v1/objects/")
        assert sorted(stored.values()) == sorted([body, *fresh.values()])
        assert await metric_sum(program, "imgkeep_outbox_images") == 0
        for url, small in fresh.items():
            assert {answer.body == small for answer in await ask_all(program, url)} == {True}
        assert {origin.asked(f"/{n}.png") for n in range(6)} == {1}

        target = f"http://{program.address}/api/images?src={quote(large, safe='')}"
        async with program.session.delete(target) as removal:
            assert removal.status == 200
        assert {answer.status for answer in await ask_all(program, large)} == {410}
        assert len(await server.objects("v1/objects/")) == len(fresh)


async def leader_of(program: Program) -> Worker:
    """Return the worker that leads."""
    folder = next(iter(workers(program).values())).folder
    return workers(program)[str((folder / "leader").readlink())]
