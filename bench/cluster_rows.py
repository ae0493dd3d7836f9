"""
The rows of a cluster: what a node of one costs beside a node with SQLite, and how fast three of them save links.

PostgreSQL and the bucket are on the client's core, like all that is not measured. Two idle nodes of the cluster run
beside the one that is measured: what they say to each other is in its figures.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from bench import seed, wrk
from bench.bucket_rows import CREDENTIALS, bucket, meter
from bench.rows import TAIL, Plan, Row, alternate, check, empty_folder
from bench.servers import CLIENT_CORE, CORES, SERVER_CORE, Server, free_port, imgkeep, nginx_origin
from tests.support.counted_origin import counted_origin
from tests.support.postgresql import PostgresqlServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

NODES: Final = 3
HIT_RATIO_MIN: Final = 0.97
MISS_RATIO_MAX: Final = 1.05
STATEMENTS_MORE_MAX: Final = 1
LINKS: Final = 10_000
"""Number of links of the job; the goal is that many a minute and node."""
LINK_BYTES: Final = 20_480
ORIGINS: Final = [f"127.0.0.{last}" for last in range(2, 34)]
"""Hosts of the links: the job runner fetches four at a time from one."""
TOKEN: Final = "token-of-the-benchmark-of-a-cluster"
JOB_TIMEOUT_S: Final = 600
_COUNTED: Final = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "top"}


@dataclass(frozen=True)
class Shared:
    """A database server that counts statements, and a bucket."""

    postgresql: PostgresqlServer
    store: Server

    def count_statements(self) -> int:
        (row,) = self.postgresql.execute("SELECT sum(calls)::bigint FROM pg_stat_statements")
        return int(str(row[0]))

    def list_statements(self) -> list[tuple[object, ...]]:
        return self.postgresql.execute("SELECT calls, query FROM pg_stat_statements ORDER BY calls DESC LIMIT 12")

    def forget_statements(self) -> None:
        self.postgresql.execute("SELECT pg_stat_statements_reset()")


@contextmanager
def shared(*, cores: Sequence[int] = (CLIENT_CORE,)) -> Iterator[Shared]:
    """Run what nodes share until the end of the block."""
    postgresql = PostgresqlServer(within=("taskset", "-c", ",".join(map(str, cores))), settings=_COUNTED)
    try:
        postgresql.start()
        postgresql.execute("CREATE EXTENSION pg_stat_statements")
        with bucket() as store:
            yield Shared(postgresql, store)
    finally:
        postgresql.remove()


def _on_bucket(
    folder: Path, store: Server, prefix: str, *, cores: Sequence[int] = (SERVER_CORE,), **settings: str
) -> AbstractContextManager[Server]:
    url = f"s3://bench/{prefix}?region=us-east-1&addressing=path&endpoint=http://127.0.0.1:{store.port}"
    own = {"store__url": url, "store__fallback": f"file:{folder}", "security__api_tokens": TOKEN, **settings}
    return imgkeep(folder, cores=cores, variables=CREDENTIALS, **own)


@contextmanager
def nodes(
    plan: Plan, common: Shared, prefix: str, *, number: int = NODES, cores: Sequence[int] = (SERVER_CORE,)
) -> Iterator[list[Server]]:
    """Run so many nodes of one cluster on an empty database until the end of the block."""
    database = common.postgresql.make_database()
    with ExitStack() as stack:
        stack.callback(common.postgresql.drop_database, database)
        running = []
        for index in range(number):
            settings = {
                "database__url": database,
                "cluster__name": f"node-{index}",
                "cluster__secret": "secret-of-the-benchmark-of-a-cluster-0123",
                "cluster__advertise_url": f"http://127.0.0.1:{free_port()}",
            }
            folder = empty_folder(plan, f"node-{index}")
            running.append(stack.enter_context(_on_bucket(folder, common.store, prefix, cores=cores, **settings)))
        yield running


def hit(plan: Plan) -> Row:
    """One URL, from the response cache, and others, from memory: a node of three beside a single one."""
    row = Row("cluster-hit", "requests/s", at_least=HIT_RATIO_MIN, aim=1.0)
    files = plan.work / "one"
    files.mkdir(parents=True, exist_ok=True)
    (files / "c.png").write_bytes(seed.image(1))
    with (
        nginx_origin(files) as origin,
        shared() as common,
        nodes(plan, common, "hit") as ours,
        _on_bucket(empty_folder(plan, "single"), common.store, "hit-single") as single,
    ):
        target = seed.target(origin.port, "c.png")

        def measure(server: Server) -> float:
            for _ in range(3):
                check(server, target, seed.image(1))
            check(server, target, seed.image(1), status="hit")
            done = wrk.load(server, target, seconds=plan.seconds)
            check(server, target, seed.image(1), status="hit")
            return done.requests_per_s

        alternate(plan, row, partial(measure, ours[0]), partial(measure, single), None)
    row.notes.append("compared with one node on SQLite")
    return row


def miss(plan: Plan) -> Row:
    """Processor time and statements of a miss into a bucket."""
    row = Row("cluster-miss", "ms of processor")
    files = seed.files(plan.work / "files", TAIL)
    statements: dict[str, list[float]] = {"node": [], "single": []}
    with (
        nginx_origin(files) as origin,
        shared() as common,
        nodes(plan, common, "miss") as ours,
        _on_bucket(empty_folder(plan, "single"), common.store, "miss-single") as single,
        _on_bucket(
            empty_folder(plan, "alone"),
            common.store,
            "miss-alone",
            database__url=common.postgresql.make_database(),
        ) as alone,
    ):
        spend = meter(plan, row, origin, common.store)

        def measure(name: str, server: Server) -> float:
            """Count the statements of each miss, without those of as long a time without load."""
            before = common.count_statements()
            time.sleep(plan.seconds)
            idle = common.count_statements() - before
            common.forget_statements()
            started = _fills(server)
            spent_ms = spend(server, "hit")
            statements[name].append((common.count_statements() - idle) / (_fills(server) - started))
            return spent_ms

        alternate(plan, row, partial(measure, "node", ours[0]), partial(measure, "single", alone), None)
        if row.invalid is None:
            on_sqlite_ms = median(spend(single, "hit") for _ in range(plan.rounds))
            row.notes.append(f"{on_sqlite_ms:.2f} ms on SQLite")
            _judge_miss(row, statements)
    return row


def _fills(server: Server) -> int:
    """Return how many images a node has stored."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    found = [line for line in lines if line.startswith("imgkeep_fills_total") and 'outcome="stored"' in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in found)


def _judge_miss(row: Row, statements: dict[str, list[float]]) -> None:
    node, single = min(statements["node"]), min(statements["single"])
    row.notes[0] = "compared with one node on PostgreSQL"
    row.notes.append(f"{node:.2f} statements a miss instead of {single:.2f}")
    if row.ratio is not None and row.ratio > MISS_RATIO_MAX:
        row.invalid = f"{row.ratio:.2f} times the processor time"
    if node - single > STATEMENTS_MORE_MAX:
        row.invalid = f"{node - single:.2f} statements more"


def jobs(plan: Plan) -> Row:
    """Links of one job a minute: three nodes beside one."""
    row = Row("cluster-jobs", "links/min and node")
    with shared(cores=CORES) as common:
        for number in (1, NODES):
            with nodes(plan, common, f"jobs-{number}", number=number, cores=CORES) as running:
                cpu_s = sum(node.cpu_s() for node in running)
                common.forget_statements()
                seconds, twice, shares = asyncio.run(_save(running))
                spent_ms = (sum(node.cpu_s() for node in running) - cpu_s) / LINKS * 1000
                statements = common.count_statements() / LINKS
            rate = LINKS / seconds * 60 / number
            (row.theirs if number == 1 else row.ours).append(rate)
            row.notes.append(
                f"{number} nodes: {seconds:.0f} s, {twice} fetched twice, links of each {shares}, {spent_ms:.1f} ms of "
                f"processor and {statements:.1f} statements a link, so {60_000 / spent_ms:,.0f} a minute and core"
            )
    row.notes.append("compared with a cluster of one node; nodes, PostgreSQL, bucket and origin share these cores")
    return row


async def _save(running: Sequence[Server]) -> tuple[float, int, list[int]]:
    """Save a job of links; return how long it took, how many were fetched twice, and how many each node fetched."""
    async with counted_origin(ORIGINS) as origin:
        urls = []
        for number in range(LINKS):
            path = f"/{number}.png"
            origin.bodies[path] = seed.image(number, LINK_BYTES)
            urls.append(origin.url(path, number % len(ORIGINS)))
        start = time.monotonic()
        body = json.dumps({"urls": urls}).encode()
        job = (await asyncio.to_thread(_call, running[0], "/api/save-images", body))["id"]
        async with asyncio.timeout(JOB_TIMEOUT_S):
            while (await asyncio.to_thread(_call, running[-1], f"/api/jobs/{job}?limit=1"))["state"] != "done":  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(0.1)
        seconds = time.monotonic() - start
        shares = [await asyncio.to_thread(_fills, server) for server in running]
        return seconds, origin.fetched_twice(), shares


def _call(server: Server, path: str, body: bytes | None = None) -> dict[str, object]:
    fields = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", body, fields)
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, object] = json.load(response)
        return found


ROWS: Final[dict[str, Callable[[Plan], Row]]] = {"cluster-hit": hit, "cluster-miss": miss, "cluster-jobs": jobs}
