"""
Rows of derived pictures: what a warm one costs beside an original of the same size, and what a flood of sizes costs the
clients of other originals.
"""

from __future__ import annotations

import http.client
import multiprocessing
import statistics
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from bench import seed, wrk
from bench.rows import Plan, Row, alternate, check, empty_folder
from bench.servers import CORES, imgkeep, nginx_origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.servers import Server

OPTIONS: Final = "&w=64&format=auto"
"""With a negotiated format, which is the dearer case: its response depends on `Accept`."""


def hit_picture(plan: Plan) -> Row:
    """
    Ask one imgkeep for a picture, and for an original that has exactly as many bytes.

    By processor time, so that other programs on the machine change little: both are answers of one process.
    """
    row = Row("hit-picture", "requests per second of a core", at_least=0.9, aim=1.0)
    files = plan.work / "pictures"
    files.mkdir(parents=True, exist_ok=True)
    (files / "original.png").write_bytes(seed.noise(1, 60_000))
    with nginx_origin(files) as origin, imgkeep(empty_folder(plan, "imgkeep")) as ours:
        target = seed.target(origin.port, "original.png") + OPTIONS
        picture = _fetch(ours, target)
        body = seed.image(1, len(picture))
        (files / f"{len(picture)}.png").write_bytes(body)
        plain = seed.target(origin.port, f"{len(picture)}.png")

        def measure(path: str, expected: bytes) -> float:
            for _ in range(3):  # the first may be a miss, and the second response is cached
                check(ours, path, expected)
            check(ours, path, expected, status="hit")
            before_s = ours.cpu_s()
            done = wrk.load(ours, path, seconds=plan.seconds)
            spent_s = ours.cpu_s() - before_s
            check(ours, path, expected, status="hit")
            return done.requests / spent_s

        alternate(plan, row, partial(measure, target, picture), partial(measure, plain, body), None)
    row.notes.append(f"compared with an original of as many bytes, {len(picture):,}")
    return row


SIZES: Final = 10_000
FLOODING: Final = 32
"""Connections of the client that floods."""
REFUSED_PAUSE_S: Final = 0.05
"""How long such a connection waits after a refusal; without it the row would measure refusals."""
PACE_S: Final = 0.005
"""Interval of the hits whose time counts: a server under full load would tell of its queue."""


def flood(plan: Plan) -> Row:
    """
    Ask for hits of an original at a pace, while a client asks for 10,000 sizes of another one: of the same server, and
    of a second one beside it. The client and the derive processes take the cores in both cases, so the difference is
    what the flood costs the server's other clients.
    """
    row = Row("flood", "99th percentile of hits, times that beside the same flood", at_most=2)
    files = plan.work / "pictures"
    files.mkdir(parents=True, exist_ok=True)
    (files / "original.png").write_bytes(seed.noise(1, 1_500_000))
    (files / "other.png").write_bytes(seed.image(2))
    with (
        nginx_origin(files) as origin,
        imgkeep(empty_folder(plan, "imgkeep"), cores=CORES) as ours,
        imgkeep(empty_folder(plan, "beside"), cores=CORES) as beside,
    ):
        flooded, hit = (seed.target(origin.port, f"{name}.png") for name in ("original", "other"))
        for server in (ours, beside):
            _fetch(server, flooded)
            _fetch(server, hit)
        try:
            for number in range(plan.rounds):
                first = number * SIZES // plan.rounds
                calm = _pace(ours, hit, plan.seconds)
                with _flooding(beside, flooded, first):
                    control = _pace(ours, hit, plan.seconds)
                with _flooding(ours, flooded, first):
                    stormy = _pace(ours, hit, plan.seconds)
                row.ours.append(stormy / control)
                row.notes.append(f"{calm:.1f} ms, {control:.1f} beside the flood, {stormy:.1f} in it")
        except wrk.InvalidRun as reason:
            row.invalid = str(reason)
    return row


def _pace(server: Server, target: str, seconds: float) -> float:
    """
    Return the 99th percentile of the times of hits, in milliseconds.

    Raises:
        InvalidRun: An answer was not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        connection.request("GET", target)
        if (response := connection.getresponse()).status != 200:
            raise wrk.InvalidRun(f"{server.name} answers {response.status} for a hit")
        response.read()
        times.append(time.perf_counter() - start)
        time.sleep(PACE_S)
    connection.close()
    return statistics.quantiles(times, n=100)[-1] * 1000


@contextmanager
def _flooding(server: Server, target: str, first: int) -> Iterator[None]:
    """Ask for one size after the other on many connections until the end of the block, in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=_ask_for_sizes, args=(server, target, first))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _ask_for_sizes(server: Server, target: str, first: int) -> None:
    sizes = count(first)

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for size in sizes:
            width, height = size % 100 + 1, size // 100 % 100 + 1
            connection.request("GET", f"{target}&w={width}&h={height}&fit=cover&format=webp")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                time.sleep(REFUSED_PAUSE_S)

    threads = [threading.Thread(target=ask) for _ in range(FLOODING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _fetch(server: Server, target: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", target)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 200:
        raise wrk.InvalidRun(f"{server.name} answers {response.status} for a picture")
    return body


ROWS: Final[dict[str, Callable[[Plan], Row]]] = {"hit-picture": hit_picture, "flood": flood}
