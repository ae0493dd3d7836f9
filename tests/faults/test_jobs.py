"""Jobs of a process that is killed again and again (row C7 of the fault matrix)."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.support.images import make_image
from tests.support.program import serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.program import Program

LINKS = 80
HELD_BACK = 20
"""Number of links without an answer before the last kill: no kill comes too late, however quick the machine."""
KILLS = 5


async def ask(program: Program, method: str, path: str, **how: Any) -> dict[str, Any]:
    async with program.session.request(method, f"http://{program.address}{path}", **how) as response:
        facts: dict[str, Any] = await response.json()
        return facts


async def saved_links(program: Program, job: str, *, more_than: int) -> list[int]:
    """Return the links that are saved, once these are more."""
    async with asyncio.timeout(30):
        while True:
            results = (await ask(program, "GET", f"/api/jobs/{job}"))["results"]
            saved = [result["index"] for result in results if result["state"] == "saved"]
            if len(saved) > more_than:
                return saved
            await asyncio.sleep(0.02)


async def test_jobs_survive_repeated_kills(tmp_path: Path, origin: FakeOrigin) -> None:
    killed = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        number = int(exchange.target[1:-4])
        await asyncio.sleep(0.02)
        if number >= LINKS - HELD_BACK:
            await killed.wait()
        await exchange.answer(make_image(seed=number))

    draw = random.Random(7)
    folder = tmp_path / "data"
    urls = [origin.on(f"/{n}.png", answer) for n in range(LINKS)]
    job = ""
    counts: dict[int, int] = {}
    for _ in range(KILLS):
        async with serving(folder) as program:
            if not job:
                job = (await ask(program, "POST", "/api/save-images", json={"urls": urls}))["id"]
            await asyncio.sleep(draw.uniform(0.05, 0.3))  # the kill comes at a random moment
            for index in await saved_links(program, job, more_than=len(counts) - 1 if counts else 0):
                counts.setdefault(index, origin.asked(f"/{index}.png"))
            program.kill()
    killed.set()
    assert 0 < len(counts) < LINKS, "some were done before the last kill, and not all"
    async with serving(folder) as program:

        async def is_done() -> bool:
            return bool((await ask(program, "GET", f"/api/jobs/{job}"))["state"] == "done")

        await until(is_done)
        facts = await ask(program, "GET", f"/api/jobs/{job}")
        assert (facts["saved"], facts["failed"]) == (LINKS, 0)
        for n, url in enumerate(urls):
            assert (await program.img(url)).body == make_image(seed=n)
    assert {index: origin.asked(f"/{index}.png") for index in counts} == counts
    assert max(origin.asked(f"/{n}.png") for n in range(LINKS)) <= KILLS + 1
