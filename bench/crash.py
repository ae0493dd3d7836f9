"""
Kill imgkeep under load, start it again, and count what was acknowledged and is lost.

    python -m bench.crash --rounds 1000

Each round several clients fetch distinct images until a SIGKILL at a random moment; then the origin goes away and
imgkeep starts again on the same folder. Every response that came in whole has to be a hit with the same bytes, and no
partial file may be left. In the end `imgkeep verify` reads everything again. `tests/faults/test_crash.py` runs a few
rounds of the same.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import aiohttp

from tests.support.images import make_image
from tests.support.origins import FakeOrigin
from tests.support.program import Program, run, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLIENTS = 8
KILL_AFTER_MAX = 40
"""Whole responses at most before the kill."""
BYTES_MAX = 300_000
OLD_CHECKED = 50
"""So many images of earlier rounds are asked for again in every round."""


@dataclass
class Tally:
    """What the rounds came to; everything but the first three has to stay empty."""

    rounds: int = 0
    acknowledged: int = 0
    verified: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        damage = [self.verified.get(kind, 0) for kind in ("damaged", "missing", "unreadable")]
        return not self.lost and not self.partial and not any(damage)


def body_of(number: int) -> bytes:
    """Return a PNG that no other number has."""
    small = make_image(width=8, height=8)
    draw = random.Random(number)
    data = b"paDd" + draw.randbytes(draw.randrange(16, BYTES_MAX))
    return small[:-12] + (len(data) - 4).to_bytes(4, "big") + data + crc32(data).to_bytes(4, "big") + small[-12:]


async def crash(folder: Path, *, rounds: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Tally:
    """Run so many rounds on `folder`."""
    draw = random.Random(seed)
    tally = Tally()
    numbers = itertools.count()
    known: dict[str, str] = {}
    for _ in range(rounds):
        async with serving(folder) as program:
            await _check(program, folder, draw, known, tally)
            received = await _load(program, draw, numbers)
        known |= received
        tally.rounds += 1
        tally.acknowledged += len(received)
        say(f"round {tally.rounds}: {tally.acknowledged} acknowledged, {len(tally.lost)} lost")
    async with serving(folder) as program:
        await _check(program, folder, draw, known, tally, everything=True)
    _, out, _ = await run(folder, "verify", "--json")
    tally.verified = json.loads(out.splitlines()[-1])
    return tally


async def _check(  # noqa: PLR0913 - a step of `crash`, and all that it knows
    program: Program,
    folder: Path,
    draw: random.Random,
    known: dict[str, str],
    tally: Tally,
    *,
    everything: bool = False,
) -> None:
    tally.partial += [path.name for path in (folder / "partial").iterdir()]
    urls = list(known)
    newest = urls[-KILL_AFTER_MAX - CLIENTS :]
    older = urls[: -KILL_AFTER_MAX - CLIENTS]
    for url in urls if everything else newest + draw.sample(older, min(len(older), OLD_CHECKED)):
        answer = await program.img(url)
        hit = answer.status == 200 and answer.cache_status == "imgkeep; hit"
        if not hit or sha256(answer.body).hexdigest() != known[url]:
            tally.lost.append(f"{url}: {answer.status} {answer.cache_status}")


async def _load(program: Program, draw: random.Random, numbers: Iterator[int]) -> dict[str, str]:
    """Fetch until the kill; return what came in whole. The origin is gone afterwards."""
    origin = FakeOrigin()
    await origin.start()
    received: dict[str, str] = {}
    enough = asyncio.Event()
    kill_after = draw.randrange(1, KILL_AFTER_MAX)

    async def fetch() -> None:
        for number in numbers:
            body = body_of(number)
            url = origin.gives(f"/{number}.png", body)
            try:
                answer = await program.img(url)
            except (aiohttp.ClientError, ConnectionError):
                return  # killed
            assert (answer.status, answer.body) == (200, body), answer.status
            received[url] = sha256(body).hexdigest()
            if len(received) >= kill_after:
                enough.set()

    clients = [asyncio.create_task(fetch()) for _ in range(CLIENTS)]
    try:
        await enough.wait()
        await asyncio.sleep(draw.random() * 0.05)
        program.kill()
        await asyncio.gather(*clients)
    finally:
        for client in clients:
            client.cancel()
        await origin.stop()
    return received


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.crash", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)) / "data"
        tally = asyncio.run(crash(folder, rounds=arguments.rounds, seed=arguments.seed, say=print))
    print(tally)
    return 0 if tally.good else 1


if __name__ == "__main__":
    sys.exit(main())
