"""
The origin client by itself: `python -m bench origin-client`.

It compares the client as it is, with `origin/http1.py`, and the same client on aiohttp's session, and relates the
difference to the cost of a miss. Exit status 1: `http1.py` saves less than `SHARE_MIN` of a miss, so it should go; 2:
something is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import uvloop

from bench import seed, wrk
from bench.rows import Plan, empty_folder
from bench.servers import SERVER_CORE, find, imgkeep, nginx_origin
from imgkeep.clock import read_clock
from imgkeep.config import Config, Fetch
from imgkeep.core.source_url import read_source
from imgkeep.images.inspect import make_inspector
from imgkeep.origin import AddressGuard, OriginClient
from imgkeep.origin.session import make_url
from imgkeep.origin.ssrf_guard import open_socket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.servers import Server
    from imgkeep.core.records import Source

SHARE_MIN: Final = 0.05
"""Minimum share of a miss for which private names of aiohttp are worth their upkeep."""
CONCURRENT: Final = 16
"""Number of fetches at a time; the limit per host is higher."""
WARM_UP: Final = 200
FILES: Final = 100_000
MISSES_FROM: Final = 20_000
"""First file of the measured misses; those before warm the server up."""


class SessionHttp1:
    """Takes the place of an `Http1Client`: the same requests by aiohttp's session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(
        self, source: Source, conditions: Mapping[str, str], limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        return await self._session.get(make_url(source), headers=conditions, allow_redirects=False, timeout=limits)


def make_client(*, direct: bool) -> OriginClient:
    config = Config(fetch=Fetch(allow_networks=("127.0.0.0/8",), concurrent_max=64, per_host_max=64))
    policy = make_inspector(config, read_clock).policy
    client = OriginClient(
        settings=config.fetch,
        policy=policy,
        guard=AddressGuard(policy, aiohttp.ThreadedResolver(), open_socket),
        clock=read_clock,
        draw=random.random,
        ssl_context=None,
        user_agent="imgkeep",
        fetched=lambda _outcome, _seconds: None,
    )
    if not direct:
        session: Any = SessionHttp1(client._session)  # noqa: SLF001 - the client offers no choice
        client._http1 = session  # noqa: SLF001 - likewise
    return client


async def _fetch_all(client: OriginClient, sources: Sequence[Source]) -> float:
    """Fetch each source once; return the seconds of processor time for one."""
    left = iter(sources)

    async def work() -> None:
        for source in left:
            async with client.fetch(source) as response:
                async for _ in response.chunks():
                    pass

    started = time.process_time()
    await asyncio.gather(*(work() for _ in range(CONCURRENT)))
    return (time.process_time() - started) / len(sources)


async def _compare(port: int, rounds: int, fetches: int) -> tuple[float, float]:
    """Return the seconds of processor time for a fetch by the session, and as it is: medians over rounds in turn."""
    sources = [read_source(f"http://127.0.0.1:{port}/{n}.png") for n in range(fetches)]
    clients = [make_client(direct=False), make_client(direct=True)]
    figures: tuple[list[float], list[float]] = [], []
    try:
        for client in clients:
            await _fetch_all(client, sources[:WARM_UP])
        for _ in range(rounds):
            for client, seconds in zip(clients, figures, strict=True):
                seconds.append(await _fetch_all(client, sources))
    finally:
        for client in clients:
            await client.aclose()
    return statistics.median(figures[0]), statistics.median(figures[1])


def _measure_miss(folder: Path, origin: Server, seconds: float) -> float:
    """Return the seconds of processor time that imgkeep takes for one miss."""
    before, after = seed.target(origin.port, "@.png").split("%40")
    with imgkeep(folder) as server:
        wrk.load(server, "/", seconds=1, script=wrk.IN_ORDER % (0, before, after))
        started = server.cpu_s()
        done = wrk.load(server, "/", seconds=seconds, script=wrk.IN_ORDER % (MISSES_FROM, before, after))
        return (server.cpu_s() - started) / done.requests


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench origin-client", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fetches", type=int, default=3000, help="of each round")
    parser.add_argument("--seconds", type=float, default=5, help="of misses")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/imgkeep-bench").expanduser(), help="a folder")
    chosen = parser.parse_args(arguments)
    if missing := [program for program in ("nginx", "wrk", "taskset") if find(program) is None]:
        print(f"{' and '.join(missing)} not installed; Debian: apt-get install nginx-light wrk", file=sys.stderr)
        return 2
    files = seed.files(chosen.work / "files", FILES)
    os.sched_setaffinity(0, {SERVER_CORE})
    with nginx_origin(files) as origin:
        session, direct = uvloop.run(_compare(origin.port, chosen.rounds, chosen.fetches))
        folder = empty_folder(Plan(chosen.work, 1, chosen.seconds, 1), "imgkeep")
        miss = _measure_miss(folder, origin, chosen.seconds)
    share = (session - direct) / miss
    for name, seconds in (("session", session), ("direct", direct), ("miss", miss)):
        print(f"{name:8} {seconds * 1e6:6.0f} us of processor time")
    print(f"saving   {share:6.1%} of a miss (worth it from {SHARE_MIN:.0%} on)")
    return 0 if share >= SHARE_MIN else 1
