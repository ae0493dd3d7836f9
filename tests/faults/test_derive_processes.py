"""A real server, whose derive processes are killed, crash, or lose their server in the middle of a job."""

from __future__ import annotations

import asyncio
import os
import signal
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from PIL import Image

from tests.support.hostile_images import laughs
from tests.support.image_files import saved
from tests.support.program import serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.program import Answer, Program

SLOW: Final = "w=900&format=avif"
"""Options of a picture of `NOISE` that takes half a second."""
QUICK: Final = "w=10&format=webp"


def noise() -> bytes:
    image = BytesIO()
    Image.effect_noise((900, 900), 90).save(image, "JPEG")
    return image.getvalue()


NOISE: Final = noise()


async def ask(program: Program, url: str, options: str) -> Answer:
    return await program.get(f"/img?src={quote(url, safe='')}&{options}")


def children(pid: int) -> list[int]:
    """Return the derive processes of a server that live."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(each) for each in (task / "children").read_text("ascii").split()]
    return [each for each in found if is_running(each)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def start_slow_job(program: Program, url: str) -> tuple[asyncio.Task[Answer], int]:
    """Ask for a picture that takes long, and return its request and its process, as soon as that works on it."""
    assert (await ask(program, url, QUICK)).status == 200
    [pid] = await asyncio.to_thread(children, program.process.pid)
    used = await asyncio.to_thread(processor_ticks, pid)
    request = asyncio.create_task(ask(program, url, SLOW))
    await until(lambda: processor_ticks(pid) > used + 5)
    return request, pid


def processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_killed_process_harms_no_request(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/noise.jpg", NOISE)
    async with serving(tmp_path / "data", derive__processes="1", derive__facts="false") as program:
        request, pid = await start_slow_job(program, url)
        os.kill(pid, signal.SIGKILL)
        answer = await request
        assert (answer.status, answer.headers["Content-Type"]) == (200, "image/avif")
        page = (await program.get("/metrics")).body
        assert b'imgkeep_derive_processes_ended_total{cause="killed"} 1.0' in page


async def test_image_that_no_process_survives_is_an_error_that_is_remembered(
    tmp_path: Path, origin: FakeOrigin
) -> None:
    bad, good = origin.gives("/bad.svg", laughs()), origin.gives("/good.png", saved("PNG"))
    async with serving(
        tmp_path / "data", derive__processes="1", derive__svg="true", derive__timeout_s="1", derive__facts="false"
    ) as program:
        for _ in range(3):
            answer = await ask(program, bad, QUICK)
            assert (answer.status, answer.json["code"]) == (422, "derive_failed"), answer.body
            assert answer.headers.get("Retry-After") is None
        assert (await ask(program, good, QUICK)).status == 200
        assert (await program.img(bad)).status == 200, "the original is served all the same"
        assert (await program.get("/readyz")).status == 200
        page = (await program.get("/metrics")).body
        jobs = [line for line in page.splitlines() if line.startswith(b"imgkeep_derive_jobs_total{")]
        assert sum(float(line.rpartition(b" ")[2]) for line in jobs) == 2


async def test_processes_end_with_a_server_that_is_killed(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/noise.jpg", NOISE)
    async with serving(tmp_path / "data", derive__processes="1", derive__facts="false") as program:
        request, pid = await start_slow_job(program, url)
        program.process.kill()
        await asyncio.wait([request])
        assert request.exception() is not None
        await until(lambda: not is_running(pid))


async def test_drain_finishes_pictures_and_leaves_no_process(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/noise.jpg", NOISE)
    async with serving(tmp_path / "data", derive__processes="1", derive__facts="false") as program:
        request, pid = await start_slow_job(program, url)
        program.process.terminate()
        assert (await request).status == 200
        program.process.terminate()  # ends the notice for load balancers
        assert await asyncio.wait_for(program.process.wait(), 20) == 0
        assert not await asyncio.to_thread(is_running, pid)
