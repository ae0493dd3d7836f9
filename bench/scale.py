"""
Measure the database with many rows: `python -m bench.scale [--rows 10000000] [--url postgresql://...]`.

Fills the tables by COPY, then measures the size of each table and index, the rate of inserts by the program's own path,
and its reads: a lookup by key, pages at both ends with and without filters, the keys of a digest, the counts, and the
reservations of jobs and the outbox. Prints Markdown. The server explains each read as well: one that looks at every row
of a table makes the exit status 1, unless it has to. Of fewer than two million rows it is often the quickest way.

Without `--url` it starts a server of its own in a temporary folder (`TMPDIR`), which needs some 2 GB for each million
rows, and removes it in the end. The commits of that server are durable, as those of a server in operation are.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import psycopg
import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Digest, Format, Key, PixelSize, Provenance, Record, Validator, Wanted
from imgkeep.database import Database
from imgkeep.database.image_index import BATCH
from imgkeep.database.job_reservations import JobReservations
from tests.support.postgresql import PostgresqlServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

NOW: Final = datetime(2026, 11, 30, tzinfo=UTC)
PERIOD_S: Final = 730 * 86_400
"""Time in which the images came in."""
BEGAN: Final = int(NOW.timestamp()) - PERIOD_S
HOUR: Final = timedelta(hours=1)
NULL: Final = r"\N"
"""SQL's NULL, for COPY."""
HOSTS: Final = 5_000
"""Number of hosts; a few of them have most of the images."""
PROVIDERS: Final = ("OpenAI", "Midjourney", "Stability AI", "Replicate", "fal.ai", "Black Forest Labs", "Ideogram")
RARE_PROVIDER: Final = "Leonardo.Ai"
"""The provider of one image in 100,000, all of them old."""
RARE_HOST: Final = "rare.example"
"""The host of those images."""
REMOVED: Final = 100_000
"""Number of blocked digests."""
JOBS_OF: Final = 1_000
"""Number of links of a job."""
COLUMNS: Final = (
    *("key", "identity", "host", "digest", "extension", "size", "width", "height", "etag", "stored_at", "provider"),
    *("temporary", "expires_at", "indexed_at", "origin_etag", "origin_modified", "doubts", "brought_by"),
)
SCANS_ALLOWED: Final = frozenset({"backlog"})
"""Reads that have to look at every row."""
SMALL: Final = frozenset({"refused", "jobs", "cluster_members"})
"""Tables that are small beside the others: to read all of one takes milliseconds."""


DURABLE: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "jit": "off",
}
"""Settings of the server, in the place of those of a server that is thrown away."""


# --- rows


def make_record(number: int, rows: int) -> Record:
    """Return the record of a number, of realistic width. Later numbers are newer; one in twenty shares its bytes."""
    token = sha256(b"%d" % number).hexdigest()
    place = int(token[:8], 16) / 2**32
    rare = number % 100_000 == 7 and number < rows // 2
    which = int(HOSTS * place**4)
    host = RARE_HOST if rare else f"images-{which}.cdn.provider.example"
    provider = RARE_PROVIDER if rare else PROVIDERS[which % len(PROVIDERS)] if which % 5 else None
    identity = f"https://{host}/private/org-{token[:24]}/user-{token[24:48]}/img-{token[40:]}.png"
    stored_at = datetime.fromtimestamp(int(BEGAN + PERIOD_S * number / rows), UTC)
    return Record(
        key=Key(sha256(identity.encode()).hexdigest()),
        identity=identity,
        digest=Digest(sha256(b"body %d" % (number if number % 20 else number // 200)).hexdigest()),
        format=Format.PNG,
        size=50_000 + int(token[8:13], 16) * 2,
        pixel_size=PixelSize(1024, 1024),
        etag=f'"{token[:32]}"',
        stored_at=stored_at,
        provenance=Provenance(host, provider, provider is not None, stored_at + HOUR if provider else None),
        validator=Validator(f'"0x8DD{token[:11].upper()}"', "Mon, 30 Nov 2026 12:00:00 GMT"),
    )


def line_of(record: Record) -> str:
    """Return a record as a line of COPY."""
    stored_at, given, seen = int(record.stored_at.timestamp()), record.provenance, record.validator
    assert seen is not None
    return (
        f"{record.key}\t{record.identity}\t{given.host}\t{record.digest}\tpng\t{record.size}\t1024\t1024\t{record.etag}\t"
        f"{stored_at}\t{given.provider or NULL}\t{'t' if given.temporary else 'f'}\t"
        f"{stored_at + 3600 if given.provider else NULL}\t{stored_at}\t{seen.etag}\t{seen.modified}\t{NULL}\t{NULL}\n"
    )


def fill(url: str, rows: int) -> dict[str, float]:
    """Fill the tables; return by the name of a table how long it took."""
    took: dict[str, float] = {}

    def copy(connection: psycopg.Connection, statement: str, lines: Iterator[str], number: int) -> None:
        began = time.monotonic()
        with connection.cursor().copy(f"COPY {statement} FROM STDIN") as target:
            block: list[str] = []
            for line in lines:
                block.append(line)
                if len(block) == 1000:
                    target.write("".join(block))
                    block.clear()
            target.write("".join(block))
        connection.commit()
        table = statement.partition(" ")[0]
        took[table] = time.monotonic() - began
        print(f"{table}: {number:,} rows in {took[table]:.0f} s", file=sys.stderr, flush=True)

    with psycopg.connect(url) as connection:
        connection.execute("SET synchronous_commit = off")
        copy(connection, f"images ({', '.join(COLUMNS)})", (line_of(make_record(n, rows)) for n in range(rows)), rows)
        blocked = (f"{sha256(b'removed %d' % n).hexdigest()}\n" for n in range(REMOVED))
        copy(connection, "refused (digest)", blocked, REMOVED)
        columns = "id, created_at, finished_at, total, saved, failed, webhook_attempts, webhook_due_at"
        copy(connection, f"jobs ({columns})", map(job_line, range(rows // JOBS_OF)), rows // JOBS_OF)
        columns = "job, number, link, host, expires_at, state, attempts, due_at, key, created"
        copy(connection, f"items ({columns})", (item_line(n, rows) for n in range(rows)), rows)
        columns = "node, key, since, attempts, due_at, error, digest"
        copy(connection, f"outbox ({columns})", map(outbox_line, range(rows // 10)), rows // 10)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
    return took


def job_id(number: int) -> str:
    return sha256(b"job %d" % number).hexdigest()[:32]


def job_line(number: int) -> str:
    at = int(NOW.timestamp()) - 86_400 + number
    return f"{job_id(number)}\t{at}\t{at + 60 if number % 2 else NULL}\t{JOBS_OF}\t{JOBS_OF}\t0\t0\t{at}\n"


def item_line(number: int, rows: int) -> str:
    """Return a link of a job: of every second job they are saved, of the others they wait."""
    job, at = number // JOBS_OF, int(NOW.timestamp()) + number % 7200
    record = make_record(number, rows)
    if job % 2:
        return f"{job_id(job)}\t{number % JOBS_OF}\t{NULL}\t{record.host}\t{at}\tsaved\t1\t0\t{record.key}\tt\n"
    link = f"{record.identity}?se=2026-11-30T13%3A00%3A00Z&sig={record.digest[:44]}&sp=r&sv=2025-01-05&sr=b"
    return f"{job_id(job)}\t{number % JOBS_OF}\t{link}\t{record.host}\t{at}\twaiting\t0\t0\t{record.key}\t{NULL}\n"


def outbox_line(number: int) -> str:
    """Return an image that waits in the fallback of one of three nodes."""
    key, digest = (sha256(b"outbox %s %d" % (what, number)).hexdigest() for what in (b"key", b"digest"))
    since = int(NOW.timestamp()) - number
    return f"node-{number % 3}\t{key}\t{since}\t{number % 3}\t0\tConnectionRefusedError\t{digest}\n"


# --- measurements


@dataclass
class Read:
    """
    A read of the program, as measured.

    Attributes:
        milliseconds: The median and the longest of several calls, as the caller waits for them.
        plan: The nodes of the server's plan that read a table, of every statement.
        scanned: The tables of which it read every row.
    """

    name: str
    milliseconds: tuple[float, float]
    rows: int
    plan: list[str] = field(default_factory=list)
    scanned: set[str] = field(default_factory=set)


class Measurement:
    """Calls of the program's own repositories, and the plans of their statements."""

    def __init__(self, database: Database, url: str, rows: int) -> None:
        self._database = database
        self._url = url
        self._statements: list[tuple[str, Any]] = []
        self.rows = rows
        self.reads: list[Read] = []

    async def open(self) -> None:
        await self._database.open()
        engine = self._database.engine._engine  # noqa: SLF001 - its statements are what this explains
        assert engine is not None

        def note(_c: object, _cursor: object, statement: str, parameters: Any, _x: object, _many: object) -> None:
            if statement.startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
                self._statements.append((statement, parameters))

        sa.event.listen(engine, "before_cursor_execute", note)

    async def read(self, name: str, call: Callable[[], Awaitable[Any]], *, times: int = 20) -> None:
        """Call several times, and explain the statements of the first call."""
        self._statements.clear()
        lasted: list[float] = []
        result: Any = None
        explained: list[tuple[str, Any]] = []
        for _ in range(times):
            began = time.perf_counter()
            try:
                result = await call()
            except StorageError as error:
                result = str(error)
            lasted.append((time.perf_counter() - began) * 1000)
            explained = explained or list(self._statements)
            if lasted[-1] > 5000:
                break
        number = len(result) if isinstance(result, list | dict) else 0 if result is None else 1
        read = Read(name, (statistics.median(lasted), max(lasted)), number)
        await asyncio.to_thread(self._explain, read, explained)
        self.reads.append(read)
        failed = f" FAILED: {result}" if isinstance(result, str) else ""
        print(f"{name}: {read.milliseconds[0]:.2f} ms; {'; '.join(read.plan)}{failed}", file=sys.stderr, flush=True)

    def _explain(self, read: Read, statements: Sequence[tuple[str, Any]]) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            for statement, parameters in statements:
                plan = [row[0] for row in connection.execute("EXPLAIN " + statement, parameters)]
                for line in plan:
                    if found := re.search(
                        r"(Parallel )?((Seq|Index Only|Index|Bitmap Index|Bitmap Heap) Scan.*?)  ", line
                    ):
                        read.plan.append(found[2])
                        if found[2].startswith("Seq"):
                            read.scanned.add(found[2].split()[3])


async def measure_index(measurement: Measurement, database: Database) -> None:
    """Measure the reads of the image index."""
    index, rows = database.image_index, measurement.rows
    numbers = random.Random(1)
    records = [make_record(numbers.randrange(rows), rows) for _ in range(400)]
    turn = iter(records * 100)
    oldest, newest, middle = (make_record(number, rows) for number in (110, rows - 1, rows // 2))

    def after(record: Record) -> tuple[int, str]:
        return int(record.stored_at.timestamp()), record.key

    frequent = make_record(next(n for n in range(rows) if make_record(n, rows).host.startswith("images-0.")), rows)
    await measurement.read("lookup by key", lambda: index.find(next(turn).key), times=200)
    await measurement.read("lookup of a key that is not there", lambda: index.find(Key("0" * 64)), times=200)
    await measurement.read("lookup of 500 keys", lambda: index.find_all([next(turn).key for _ in range(500)]), times=5)
    await measurement.read("page at the start", lambda: index.page(limit=100))
    await measurement.read("page in the middle", lambda: index.page(limit=100, after=after(middle)))
    await measurement.read("page at the end", lambda: index.page(limit=100, after=after(oldest)))
    for name, wanted in (
        ("of a frequent host", Wanted(host=frequent.host)),
        ("of a rare host", Wanted(host=RARE_HOST)),
        ("of an unknown host", Wanted(host="unknown.example")),
        ("of a frequent provider", Wanted(provider=PROVIDERS[0])),
        ("of a rare provider", Wanted(provider=RARE_PROVIDER)),
        ("of an unknown provider", Wanted(provider="Unknown")),
        ("of a month long ago", Wanted(since=oldest.stored_at, until=oldest.stored_at + timedelta(days=30))),
        ("of a host in a month long ago", Wanted(host=frequent.host, until=oldest.stored_at + timedelta(days=30))),
        ("of a rare host, lately", Wanted(host=RARE_HOST, since=newest.stored_at - timedelta(days=300))),
        ("of a digest", Wanted(digest=middle.digest)),
    ):
        await measurement.read(f"page at the start {name}", partial(index.page, limit=100, wanted=wanted), times=5)
    for name, wanted in (
        ("frequent host", Wanted(host=frequent.host)),
        ("frequent provider", Wanted(provider=PROVIDERS[0])),
    ):
        call = partial(index.page, limit=100, after=after(oldest), wanted=wanted)
        await measurement.read(f"page at the end of a {name}", call, times=5)
    await measurement.read("keys of a digest", lambda: index.keys_of(next(turn).digest), times=200)
    since = newest.stored_at - timedelta(days=1)
    await measurement.read("suspects of a day", lambda: index.suspects(since=since, identities_min=5), times=3)
    await measurement.read("count of all images", index.count_images, times=3)
    await measurement.read("counts of `imgkeep stats`", index.count, times=1)


async def measure_queues(measurement: Measurement, database: Database) -> None:
    """Measure the reads of the jobs and of the outbox."""
    jobs, outbox = database.jobs, database.outbox
    reservations = JobReservations(database.engine, "node-1/bench", dead_after_s=15)
    await measurement.read("reservation of 16 links", lambda: reservations.reserve(16, per_host_max=16))
    await measurement.read("check of the reservations", lambda: reservations.check([]), times=5)
    await measurement.read("release of the reservations", reservations.release, times=1)
    await measurement.read("waiting links", reservations.count_waiting)
    await measurement.read("results of a job", lambda: jobs.results(job_id(1), after=0, limit=100))
    last = int(NOW.timestamp()) - 86_400 + 10
    await measurement.read("jobs, first page", lambda: jobs.page(limit=50))
    await measurement.read("jobs, last page", lambda: jobs.page(limit=50, after=(last, job_id(10))))
    await measurement.read(
        "queued jobs, last page", lambda: jobs.page(limit=50, after=(last, job_id(10)), state="queued")
    )
    await measurement.read("webhooks", lambda: jobs.webhooks(16))
    await measurement.read("uploads that are due", lambda: outbox.due(64))
    await measurement.read("backlog", outbox.backlog, times=3)
    waiting = Digest(sha256(b"outbox digest 1").hexdigest())
    await measurement.read("nodes that have an object", lambda: outbox.holders(waiting))


async def measure_writes(database: Database, rows: int, number: int) -> dict[str, float]:
    """Insert, replace and remove rows by the program's own path; return rows a second."""
    index = database.image_index
    new = [make_record(rows + place, rows) for place in range(number)]
    rates: dict[str, float] = {}
    for name, records in (("insert", new), ("replace", new[::-1])):
        began = time.perf_counter()
        for start in range(0, number, BATCH):
            for record in records[start : start + BATCH]:
                await index.put(record)
            await index.flush()
        rates[f"{name}, batches of {BATCH:,}"] = number / (time.perf_counter() - began)
    began = time.perf_counter()
    for record in new[:200]:
        await index.put(record)
        await index.flush()
    rates["replace, one by one"] = 200 / (time.perf_counter() - began)
    began = time.perf_counter()
    for record in new[:200]:
        keys = await index.keys_of(record.digest)
        await index.drop(keys)
    rates["removal by digest"] = 200 / (time.perf_counter() - began)
    for start in range(0, number, BATCH):
        await index.drop([record.key for record in new[start : start + BATCH]])
    return rates


def measure_sizes(url: str) -> list[tuple[str, int, int]]:
    """Return name, bytes and rows of each table (heap and TOAST) and index."""
    query = """
        SELECT relname, CASE relkind WHEN 'r' THEN pg_table_size(oid) ELSE pg_relation_size(oid) END, reltuples::bigint
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i') ORDER BY relname
    """
    with psycopg.connect(url) as connection:
        return [(name, size, number) for name, size, number in connection.execute(query) if size > 1_000_000]


# --- the report


def report(measurement: Measurement, sizes: list[tuple[str, int, int]], rates: dict[str, float]) -> str:
    """Return the figures as Markdown."""
    lines = ["| table or index | MiB | bytes a row |", "|---|--:|--:|"]
    lines += [
        f"| `{name}` | {size / 2**20:,.0f} | {size / number:,.0f} |" for name, size, number in sizes if number > 0
    ]
    lines += ["", "| write | rows a second |", "|---|--:|"]
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in rates.items()]
    lines += ["", "| read | median, ms | longest, ms | rows | plan |", "|---|--:|--:|--:|---|"]
    lines += [
        f"| {read.name} | {read.milliseconds[0]:,.2f} | {read.milliseconds[1]:,.2f} | {read.rows} | "
        f"{'; '.join(dict.fromkeys(read.plan))} |"
        for read in measurement.reads
    ]
    return "\n".join(lines)


async def run(url: str, rows: int, *, filled: bool) -> int:
    """Fill the tables unless they are, measure, and print the report."""
    database = Database(url.replace("postgresql:", "postgresql+psycopg:"), lambda: NOW, node="node-1")
    try:
        measurement = Measurement(database, url, rows)
        await measurement.open()
        if not filled:
            await asyncio.to_thread(fill, url, rows)
        sizes = await asyncio.to_thread(measure_sizes, url)
        rates = await measure_writes(database, rows, min(100_000, rows))
        await measure_index(measurement, database)
        await measure_queues(measurement, database)
    finally:
        await database.aclose()
    print(report(measurement, sizes, rates))
    scans = [read.name for read in measurement.reads if read.scanned - SMALL and read.name not in SCANS_ALLOWED]
    for name in scans:
        print(f"reads every row: {name}", file=sys.stderr)
    return 1 if scans else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--url", help="an empty database; default: a server of its own")
    parser.add_argument("--filled", action="store_true", help="the database of --url was filled by an earlier run")
    arguments = parser.parse_args()
    if arguments.url:
        return asyncio.run(run(arguments.url, arguments.rows, filled=arguments.filled))
    server = PostgresqlServer(settings=DURABLE)
    try:
        server.start()
        return asyncio.run(run(server.make_database(), arguments.rows, filled=False))
    finally:
        server.remove()


if __name__ == "__main__":
    sys.exit(main())
