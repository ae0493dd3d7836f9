"""
The rows of a store in a bucket: what a miss and a first hit cost in processor time, beside the same in a folder.

The bucket is a process of its own on the client's core, in memory, without latency; so the difference is what the
requests to a bucket cost imgkeep. Its figure of processor time is a note.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from bench import seed, wrk
from bench.rows import TAIL, Plan, Row, alternate, check, empty_folder
from bench.servers import CLIENT_CORE, Server, free_port, imgkeep, nginx_origin, wait_until_answering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

CONNECTIONS: Final = 16
MISS_MS_MAX: Final = 4.0
FILL_S: Final = 20
HIT_S: Final = 1
"""Seconds of first hits, of which there are as many as images: ten times as many a second as misses."""
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def bucket() -> Iterator[Server]:
    """Start an empty bucket."""
    port = free_port()
    process = subprocess.Popen(["taskset", "-c", str(CLIENT_CORE), sys.executable, "-m", "bench.s3_server", str(port)])
    try:
        wait_until_answering(port, b"/bench/none", process)
        yield Server("bucket", port, (process.pid,))
    finally:
        process.kill()
        process.wait()


def on_bucket(folder: Path, store: Server) -> AbstractContextManager[Server]:
    """Start imgkeep on a bucket."""
    url = f"s3://bench/pre?region=us-east-1&addressing=path&endpoint=http://127.0.0.1:{store.port}"
    return imgkeep(folder, variables=CREDENTIALS, store__url=url, store__fallback=f"file:{folder}")


def miss_s3(plan: Plan) -> Row:
    row = Row("miss-s3", "ms of processor", at_most=MISS_MS_MAX)
    files = seed.files(plan.work / "files", TAIL)
    with (
        nginx_origin(files) as origin,
        bucket() as store,
        on_bucket(empty_folder(plan, "imgkeep"), store) as ours,
        imgkeep(empty_folder(plan, "folder")) as theirs,
    ):
        measure = meter(plan, row, origin, store)
        alternate(plan, row, partial(measure, ours, "hit"), partial(measure, theirs, "hit"), None)
    return row


def hit_s3(plan: Plan) -> Row:
    """The first hit of each image on a node that does not know it, as after a lost database, or in a folder a start."""
    row = Row("hit-s3", "ms of processor")
    files = seed.files(plan.work / "files", TAIL)
    place = empty_folder(plan, "folder")
    with nginx_origin(files) as origin, bucket() as store:

        def fill(server: Server) -> int:
            script = wrk.IN_ORDER % (0, *seed.target(origin.port, "@.png").split("%40"))
            done = wrk.load(server, "/", seconds=FILL_S, script=script, connections=CONNECTIONS)
            return done.requests - CONNECTIONS

        with on_bucket(empty_folder(plan, "imgkeep"), store) as first, imgkeep(place) as second:
            number = min(fill(first), fill(second))

        def measure(start: Callable[[], AbstractContextManager[Server]]) -> float:
            with start() as server:
                # The first one wrk takes for a trial: so image 0 was never fetched, and image 1 is checked here.
                script = wrk.IN_ORDER % (1, *seed.target(origin.port, "@.png").split("%40"))
                check(server, seed.target(origin.port, "1.png"), seed.image(1), status="hit")
                cpu_s = server.cpu_s()
                seconds = HIT_S
                done = wrk.load(server, "/", seconds=seconds, script=script, connections=CONNECTIONS)
                spent_ms = (server.cpu_s() - cpu_s) / done.requests * 1000
                if done.requests + CONNECTIONS > number:
                    raise wrk.InvalidRun(f"{done.requests} hits of {number} images")
                return spent_ms

        alternate(
            plan,
            row,
            partial(measure, lambda: on_bucket(empty_folder(plan, "imgkeep"), store)),
            partial(measure, lambda: imgkeep(place)),
            None,
        )
    if row.invalid is None:
        row.notes.append(f"compared with a folder; {number:,} images")
    return row


def meter(plan: Plan, row: Row, origin: Server, store: Server) -> Callable[[Server, str], float]:
    """Return what measures the processor time of misses, each of another image."""
    asked: Counter[str] = Counter()
    before, after = seed.target(origin.port, "@.png").split("%40")
    row.notes.append("compared with a folder")

    def measure(server: Server, status: str) -> float:
        name = str(server.port)
        first = asked[name]
        script = wrk.IN_ORDER % (first, before, after)
        cpu_s, store_s = server.cpu_s(), store.cpu_s()
        done = wrk.load(server, "/", seconds=plan.seconds, script=script, connections=CONNECTIONS)
        spent_s, store_s = server.cpu_s() - cpu_s, store.cpu_s() - store_s
        asked[name] += done.requests + CONNECTIONS
        certain = done.requests - CONNECTIONS
        for n in range(first + 1, first + certain, max(1, certain // 20)):
            check(server, f"{before}{n}{after}", seed.image(n), status=status)
        if store_s > 0:
            row.notes[1:] = [f"the bucket itself {store_s / done.requests * 1000:.2f} ms"]
        return spent_s / done.requests * 1000

    return measure


ROWS: Final[dict[str, Callable[[Plan], Row]]] = {"miss-s3": miss_s3, "hit-s3": hit_s3}
