"""Links with invented signatures against several workers on one port, and against a program that is killed."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.support.program import serving
from tests.support.signed_links import (
    BRIEF,
    FOREVER,
    IMAGE,
    PAST,
    PLACEHOLDER,
    UNCERTAIN,
    SignedOrigin,
    good,
    invented,
)
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.program import Program

PROVIDERS = json.dumps([UNCERTAIN])
MANY = 24
"""New connections: enough that each of two workers has some."""
PROBED = 4
"""Number of requests of one link with its probe: the link, two altered ones, and the link again."""


async def ask_many(program: Program, url: str, number: int = MANY) -> list[tuple[bytes, str]]:
    answers = await asyncio.gather(*(program.img(url) for _ in range(number)))
    assert {answer.status for answer in answers} == {200}
    return [(answer.body, answer.headers["Cache-Control"]) for answer in answers]


async def becomes(program: Program, url: str, body: bytes, caching: str) -> None:
    """Wait until all workers show this: no event outside tells of the end of a probe."""
    shown: set[tuple[bytes, str]] = set()
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while shown != {(body, caching)}:
                shown = set(await ask_many(program, url))
                await asyncio.sleep(0.02)
    assert shown == {(body, caching)}


async def test_workers_try_link_once_and_share_result(tmp_path: Path, origin: FakeOrigin) -> None:
    signed = SignedOrigin(origin)
    async with serving(tmp_path / "data", server__workers="2", sources__providers=PROVIDERS) as program:
        await ask_many(program, signed.url(invented()))
        assert len(signed.asked) == 1
        shown = await ask_many(program, signed.url(good(0)))
        assert {body for body, _ in shown} == {IMAGE}
        await until(lambda: len(signed.asked) == 1 + PROBED)

        last = await confirm(program, signed)
        await becomes(program, signed.url(good(0)), IMAGE, FOREVER)
        asked = len(signed.asked)
        for query in (*(good(number) for number in range(last + 2)), invented(7), good(3, end=PAST)):
            assert set(await ask_many(program, signed.url(query))) == {(IMAGE, FOREVER)}
        assert {body for body, _ in await ask_many(program, signed.url(invented()))} == {PLACEHOLDER}
        assert len(signed.asked) == asked


async def confirm(program: Program, signed: SignedOrigin) -> int:
    """
    Bring one link after the other until one causes a probe, and return its number. The worker that has made the probe
    before still concludes it for a moment after its last request, and meanwhile there is no other for this key.
    """
    for number in range(1, 9):
        asked = len(signed.asked)
        await ask_many(program, signed.url(good(number)))
        with suppress(TimeoutError):
            await until(lambda: len(signed.asked) == asked + PROBED, within_s=3)  # noqa: B023 - is awaited here
            return number
        assert len(signed.asked) == asked + 1
    raise AssertionError("no link causes a probe")


async def test_kill_between_fill_and_probe_loses_nothing(tmp_path: Path, origin: FakeOrigin) -> None:
    signed = SignedOrigin(origin)
    folder = tmp_path / "data"
    async with serving(folder, sources__providers=PROVIDERS) as program:
        await program.img(signed.url(invented()))
        gate = asyncio.Event()
        answer = signed._answer
        spoiled: list[str] = []

        async def hold(exchange: object) -> None:
            query = exchange.target.partition("?")[2]  # type: ignore[attr-defined]
            if f"?{query}" != good():
                spoiled.append(query)
                await gate.wait()
            await answer(exchange)  # type: ignore[arg-type]

        origin.on(signed.path, hold)
        assert (await program.img(signed.url(good()))).body == IMAGE
        await until(lambda: bool(spoiled))
    origin.on(signed.path, answer)
    gate.set()
    async with serving(folder, sources__providers=PROVIDERS) as program:
        asked = len(signed.asked)
        assert (await program.img(signed.url(good()))).body == IMAGE
        assert (await program.img(signed.url(invented()))).body == PLACEHOLDER
        assert len(signed.asked) == asked, "each link shows its own image without a fetch"
        assert (await program.img(signed.url(good(1)))).body == IMAGE
        await becomes(program, signed.url(good(2, end=PAST)), IMAGE, BRIEF)
