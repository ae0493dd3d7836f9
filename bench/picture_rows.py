"""Rows of derived pictures: what a warm one costs beside an original of the same size."""

from __future__ import annotations

import http.client
from functools import partial
from typing import TYPE_CHECKING, Final

from bench import seed, wrk
from bench.rows import Plan, Row, alternate, check, empty_folder
from bench.servers import imgkeep, nginx_origin

if TYPE_CHECKING:
    from collections.abc import Callable

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


def _fetch(server: Server, target: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", target)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 200:
        raise wrk.InvalidRun(f"{server.name} answers {response.status} for a picture")
    return body


ROWS: Final[dict[str, Callable[[Plan], Row]]] = {"hit-picture": hit_picture}
