"""Jobs of a process that is killed again and again (row C7 of the fault matrix)."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.support.pictures import picture
from tests.support.program import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.program import Program

LINKS = 80
HELD_BACK = 20
"""So many links have no answer before the last kill: none of the kills comes too late, however quick the machine."""
KILLS = 5


async def ask(program: Program, method: str, path: str, **how: Any) -> dict[str, Any]:
    async with program.session.request(method, f"http://{program.address}{path}", **how) as response:
        told: dict[str, Any] = await response.json()
        return told


async def test_jobs_go_on_after_kills_and_nothing_that_was_done_is_done_again(
    tmp_path: Path, origin: FakeOrigin
) -> None:
    killed = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        number = int(exchange.target[1:-4])
        await asyncio.sleep(0.02)
        if number >= LINKS - HELD_BACK:
            await killed.wait()
        await exchange.answer(picture(seed=number))

    draw = random.Random(7)
    folder = tmp_path / "data"
    urls = [origin.on(f"/{n}.png", answer) for n in range(LINKS)]
    job = ""
    counts: dict[int, int] = {}
    for _ in range(KILLS):
        async with serving(folder) as program:
            if not job:
                job = (await ask(program, "POST", "/api/save-images", json={"urls": urls}))["id"]
            await asyncio.sleep(draw.uniform(0.05, 0.3))
            results = (await ask(program, "GET", f"/api/jobs/{job}"))["results"]
            for index in [result["index"] for result in results if result["state"] == "saved"]:
                counts.setdefault(index, origin.asked(f"/{index}.png"))
            program.kill()
    killed.set()
    assert 0 < len(counts) < LINKS, "some were done before the last kill, and not all"
    async with serving(folder) as program, asyncio.timeout(30):
        while (told := await ask(program, "GET", f"/api/jobs/{job}"))["state"] != "done":  # noqa: ASYNC110 - as any client
            await asyncio.sleep(0.05)
        assert (told["saved"], told["failed"]) == (LINKS, 0)
        for n, url in enumerate(urls):
            assert (await program.img(url)).body == picture(seed=n)
    assert {index: origin.asked(f"/{index}.png") for index in counts} == counts
    assert max(origin.asked(f"/{n}.png") for n in range(LINKS)) <= KILLS + 1
