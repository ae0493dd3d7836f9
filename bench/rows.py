"""
The rows of the table: each measures imgkeep, nginx and in some rows thumbor in turn and says what came of it.

A run counts only if every answer was whole and right: before and after each round some images are fetched and compared
byte for byte, with every header that is promised. thumbor writes pictures anew and cannot be held to bytes: its answer
is right if it is an image that decodes to the same pixels (what it is given is noise in PNG, which loses none) and has
about as many bytes.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import statistics
import tempfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

from bench import crowds, seed, wrk
from bench.servers import CORES, dozing, imgkeep, nginx_cache, nginx_origin, thumbor

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from bench.servers import Server

TAIL: Final = 100_000
BYTES_OFF_MAX: Final = 0.02
"""By what part a picture that was written anew may be smaller or larger: a row counts what is sent."""
PROMISED: Final = (
    *("Content-Type", "Content-Length", "ETag", "Cache-Control", "Accept-Ranges", "Cache-Status", "Content-Location"),
    *("X-Content-Type-Options", "Content-Security-Policy", "Access-Control-Allow-Origin"),
    *("Cross-Origin-Resource-Policy", "Content-Disposition", "Date"),
)


@dataclass(frozen=True)
class Plan:
    """How long to measure, and where to work. `thumbor` is where that program is, if it is anywhere."""

    work: Path
    rounds: int
    seconds: float
    records: int
    thumbor: str | None = None


@dataclass
class Row:
    """
    What a row came to.

    Attributes:
        unit: Of the figures.
        ours: imgkeep's, one a round.
        theirs: nginx's, against which goals are set.
        thumbors: Those of thumbor, where there is one. No goal is set against it.
        at_least: What the ratio of medians, imgkeep's over nginx's, has to reach; `None`: there is no such goal.
        at_most: What imgkeep's median must not exceed.
        notes: What else was seen.
    """

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    thumbors: list[float] = field(default_factory=list)
    at_least: float | None = None
    aim: float | None = None
    at_most: float | None = None
    notes: list[str] = field(default_factory=list)
    invalid: str | None = None

    @property
    def ratio(self) -> float | None:
        if not self.ours or not self.theirs or not statistics.median(self.theirs):
            return None
        return statistics.median(self.ours) / statistics.median(self.theirs)

    @property
    def good(self) -> bool:
        """Whether the run counts and the goal is reached."""
        if self.invalid is not None or not self.ours:
            return False
        if self.at_least is not None and (self.ratio is None or self.ratio < self.at_least):
            return False
        return self.at_most is None or statistics.median(self.ours) <= self.at_most


def check(server: Server, target: str, body: bytes, *, status: str | None = None) -> int:
    """
    Insist that a server gives exactly `body` and, where `status` is its cache status, all headers that are promised;
    of a server that writes pictures anew, that it gives the same picture. Return how many bytes that was.

    Raises:
        wrk.InvalidRun: It does not.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", target)
    response = connection.getresponse()
    received = response.read()
    connection.close()
    if response.status != 200:
        raise wrk.InvalidRun(f"{server.name} answers {response.status}")
    if not server.exact:
        _see_alike(server, response.getheader("Content-Type", ""), received, body)
    elif hashlib.sha256(received).digest() != hashlib.sha256(body).digest():
        raise wrk.InvalidRun(f"{server.name} gives other bytes")
    if status is not None:
        missing = [name for name in PROMISED if response.getheader(name) is None]
        said = response.getheader("Cache-Status")
        if missing or said != f"imgkeep; {status}":
            raise wrk.InvalidRun(f"{server.name} says {said} and lacks {missing}")
    return len(received)


def _see_alike(server: Server, media_type: str, received: bytes, body: bytes) -> None:
    """Insist on the same picture in about as many bytes."""
    if not media_type.startswith("image/"):
        raise wrk.InvalidRun(f"{server.name} calls a picture {media_type or 'nothing'}")
    try:
        with Image.open(BytesIO(received)) as theirs, Image.open(BytesIO(body)) as original:
            same = theirs.size == original.size and theirs.convert("RGB").tobytes() == original.tobytes()
    except (OSError, SyntaxError) as error:  # what Pillow says of files that it cannot read
        raise wrk.InvalidRun(f"{server.name} gives what does not decode") from error
    if not same:
        raise wrk.InvalidRun(f"{server.name} gives another picture")
    if abs(len(received) - len(body)) > len(body) * BYTES_OFF_MAX:
        raise wrk.InvalidRun(f"{server.name} gives {len(received)} bytes for {len(body)}")


def alternate(
    plan: Plan,
    row: Row,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    thumbors: Callable[[], float] | None,
) -> Row:
    """
    Measure all in turn. Where thumbor errs, its figures are dropped and the row says why: what was found of imgkeep and
    nginx, and the goal, do not depend on it.
    """
    try:
        for _ in range(plan.rounds):
            row.ours.append(ours())
            row.theirs.append(theirs())
            if thumbors is not None:
                try:
                    row.thumbors.append(thumbors())
                except wrk.InvalidRun as reason:
                    row.thumbors.clear()
                    row.notes.append(f"thumbor does not count: {reason}")
                    thumbors = None
    except wrk.InvalidRun as reason:
        row.invalid = str(reason)
    return row


def _thumbor(plan: Plan, folder: Path) -> AbstractContextManager[Server | None]:
    """Start thumbor where there is one."""
    return nullcontext() if plan.thumbor is None else thumbor(plan.thumbor, folder)


def hit_small(plan: Plan) -> Row:
    def load(server: Server, path: str) -> float:
        return wrk.load(server, path, seconds=plan.seconds).requests_per_s

    return _one_url(plan, Row("hit-small", "requests/s", at_least=0.8, aim=1.0), seed.SMALL, load)


def hit_large(plan: Plan) -> Row:
    """With two clients: `crowds.drain` gives the figures, and what wrk sees of the two is noted beside them."""
    seen: dict[str, list[float]] = {}

    def load(server: Server, path: str) -> float:
        sent = wrk.load(server, path, seconds=plan.seconds).requests_per_s * seed.LARGE
        seen.setdefault(server.name, []).append(sent)
        return crowds.drain(server, path, plan.seconds)

    row = _one_url(plan, Row("hit-large", "bytes/s", at_least=1.5, aim=2.5), seed.LARGE, load)
    ours, theirs = (statistics.median(seen[name]) for name in ("imgkeep", "nginx"))
    row.notes.append(f"with wrk {ours / 1e9:.2f} and {theirs / 1e9:.2f} GB/s, {ours / theirs:.2f}")
    return row


def _one_url(plan: Plan, row: Row, size: int, load: Callable[[Server, str], float]) -> Row:
    files = plan.work / "one"
    files.mkdir(parents=True, exist_ok=True)
    body = seed.image(size, size)
    (files / f"{size}.png").write_bytes(body)
    picture = seed.noise(size, size)
    (files / f"noise-{size}.png").write_bytes(picture)
    places = [empty_folder(plan, name) for name in ("imgkeep", "nginx", "thumbor")]
    with (
        nginx_origin(files) as origin,
        imgkeep(places[0]) as ours,
        nginx_cache(places[1], origin) as theirs,
        _thumbor(plan, places[2]) as third,
    ):

        def measure(server: Server, path: str, body: bytes, status: str | None) -> float:
            for _ in range(3):  # the first is a miss, and the second response is cached
                check(server, path, body)
            check(server, path, body, status=status)
            done = load(server, path)
            check(server, path, body, status=status)
            return done

        target, remade = seed.target(origin.port, f"{size}.png"), seed.thumbor_target(origin.port, f"noise-{size}.png")
        return alternate(
            plan,
            row,
            partial(measure, ours, target, body, "hit"),
            partial(measure, theirs, f"/{size}.png", body, None),
            partial(measure, third, remade, picture, None) if third else None,
        )


def hit_tail(plan: Plan) -> Row:
    row = Row("hit-tail", "requests/s", at_least=0.4, aim=0.7)
    files = seed.files(plan.work / "files", TAIL)
    store = seed.store(plan.work / "tail", TAIL, origin_port=1, objects=TAIL)
    cache = plan.work / "tail-nginx"
    cache.mkdir(exist_ok=True)
    results = plan.work / "tail-thumbor"
    if plan.thumbor is not None:
        seed.results(results, seed.files(files / "noise", TAIL, seed.noise), TAIL)
    with (
        imgkeep(store) as ours,
        nginx_origin(files) as origin,
        nginx_cache(cache, origin) as theirs,
        _thumbor(plan, results) as third,
    ):
        before, after = seed.target(1, "@.png").split("%40")

        def measure(server: Server, before: str, after: str, status: str | None) -> float:
            script = wrk.UNIFORM % (0, TAIL, before, after)
            for n in (0, TAIL // 2, TAIL - 1):
                check(server, f"{before}{n}{after}", _original(server, n))
                check(server, f"{before}{n}{after}", _original(server, n), status=status)
            return wrk.load(server, "/", seconds=plan.seconds, script=script).requests_per_s

        for server, start, end in ((ours, before, after), (theirs, "/", ".png")):
            for _ in range(2):
                _ask_all(server, start, end)
        if third is not None:
            for path in results.glob("results/*/*/*/*"):  # it holds nothing in memory: the kernel's cache is all
                path.read_bytes()
        return alternate(
            plan,
            row,
            partial(measure, ours, before, after, "hit"),
            partial(measure, theirs, "/", ".png", None),
            partial(measure, third, seed.thumbor_target(1, ""), ".png", None) if third else None,
        )


def _original(server: Server, number: int) -> bytes:
    """Return what a server was given to keep."""
    return seed.image(number) if server.exact else seed.noise(number)


def _ask_all(server: Server, before: str, after: str) -> None:
    """Ask for each image once, so that both are warm."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for n in range(TAIL):
        connection.request("GET", f"{before}{n}{after}")
        response = connection.getresponse()
        if response.status != 200 or len(response.read()) != seed.SMALL:
            raise wrk.InvalidRun(f"{server.name} does not have image {n}")
    connection.close()


def miss(plan: Plan) -> Row:
    row = Row("miss", "requests/s", at_least=0.35, aim=0.7)
    files = seed.files(plan.work / "files", TAIL)
    places = [empty_folder(plan, name) for name in ("imgkeep", "nginx", "thumbor")]
    if plan.thumbor is not None:
        seed.files(files / "noise", TAIL, seed.noise)
    with (
        nginx_origin(files) as origin,
        imgkeep(places[0]) as ours,
        nginx_cache(places[1], origin) as theirs,
        _thumbor(plan, places[2]) as third,
    ):
        asked: Counter[str] = Counter()
        before, after = seed.target(origin.port, "@.png").split("%40")

        def measure(server: Server, before: str, after: str) -> float:
            first = asked[server.name]
            script = wrk.IN_ORDER % (first, before, after)
            done = wrk.load(server, "/", seconds=plan.seconds, script=script)
            asked[server.name] += done.requests + wrk.CONNECTIONS
            # The first one wrk takes for a trial, and what was under way when it stopped may be behind others.
            certain = done.requests - wrk.CONNECTIONS
            for n in range(first + 1, first + certain, max(1, certain // 20)):
                check(server, f"{before}{n}{after}", _original(server, n), status="hit" if server is ours else None)
            return done.requests_per_s

        alternate(
            plan,
            row,
            partial(measure, ours, before, after),
            partial(measure, theirs, "/", ".png"),
            partial(measure, third, seed.thumbor_target(origin.port, "noise/"), ".png") if third else None,
        )
    _see_kept(row, places[0], plan.rounds * wrk.CONNECTIONS)
    return row


def _see_kept(row: Row, store: Path, cut_max: int) -> None:
    """Read what was kept: every record has its object, and every object is what its name says."""
    records, objects = (list((store / "v1" / kind).rglob("*.*")) for kind in ("records", "objects"))
    row.notes.append(f"{len(records)} stored")
    damaged = [path for path in objects[::50] if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem]
    if damaged or abs(len(records) - len(objects)) > cut_max:
        row.invalid = f"{len(records)} records, {len(objects)} objects, {len(damaged)} damaged"


def miss_first_byte(plan: Plan) -> Row:
    row = Row("miss-first-byte", "ms added, p50", at_most=2.0)
    files = seed.files(plan.work / "files", TAIL)
    places = [empty_folder(plan, name) for name in ("imgkeep", "nginx")]
    number = 500
    with nginx_origin(files) as origin, imgkeep(places[0]) as ours, nginx_cache(places[1], origin) as theirs:
        for n in range(plan.rounds):
            names = [f"{n * number + each}.png" for each in range(number)]
            own = crowds.first_bytes(origin, [f"/{name}" for name in names])
            through = crowds.first_bytes(ours, [seed.target(origin.port, name) for name in names])
            beside = crowds.first_bytes(theirs, [f"/{name}" for name in names])
            row.ours.append((statistics.median(through) - statistics.median(own)) * 1000)
            row.theirs.append((statistics.median(beside) - statistics.median(own)) * 1000)
            row.notes.append(f"p99 {statistics.quantiles(through, n=100)[-1] * 1000:.1f} ms")
    row.notes = row.notes[-1:]
    return row


def crowd(plan: Plan) -> Row:
    row = Row("crowd", "MiB above idle", at_most=150)
    body = seed.image(5, 5 * 2**20)
    with crowds.paced_origin(body, 5_000_000) as origin, imgkeep(empty_folder(plan, "imgkeep")) as ours:
        alone = crowds.crowd(ours, seed.target(origin.port, "alone.png"), 1, body)
        idle = ours.rss()
        result = crowds.crowd(ours, seed.target(origin.port, "crowd.png"), 1000, body)
        row.ours.append((result.rss_max - idle) / 2**20)
        extra_ms = (statistics.median(result.first_s) - alone.first_s[0]) * 1000
        row.notes += [f"{origin.asked('/crowd.png')} origin fetch", f"first byte {extra_ms:.0f} ms later than for one"]
        if origin.asked("/crowd.png") != 1 or result.wrong:
            row.invalid = f"{origin.asked('/crowd.png')} fetches, {result.wrong} wrong bodies"
    return row


def slow_readers(plan: Plan) -> Row:
    row = Row("slow-readers", "MiB above idle", at_most=150)
    body = seed.image(5, 5 * 2**20)
    files = plan.work / "one"
    files.mkdir(parents=True, exist_ok=True)
    (files / "five.png").write_bytes(body)
    with nginx_origin(files) as origin, imgkeep(empty_folder(plan, "imgkeep")) as ours:
        target = seed.target(origin.port, "five.png")
        for _ in range(3):
            check(ours, target, body)
        idle = ours.rss()
        row.ours.append((crowds.slow_readers(ours, target, 2000, plan.seconds * 2) - idle) / 2**20)
        check(ours, target, body, status="hit")
    return row


def start(plan: Plan) -> Row:
    row = Row("start", "s to ready", at_most=1.0)
    rss = 0.0
    store = seed.store(plan.work / f"size-{plan.records}", plan.records, origin_port=1, objects=seed.OBJECTS_SHARED)
    for _ in range(plan.rounds):
        with imgkeep(store) as ours:
            row.ours.append(ours.started_s)
            rss = ours.rss() / 2**20
    row.notes += [f"{plan.records:,} records", f"{rss:.0f} MiB of memory after it"]
    return row


def size(plan: Plan) -> Row:
    row = Row("size", "requests/s")
    store = seed.store(plan.work / f"size-{plan.records}", plan.records, origin_port=1, objects=seed.OBJECTS_SHARED)
    before, after = seed.target(1, "@.png").split("%40")
    number = 1000
    while number <= plan.records:
        with imgkeep(store) as ours:
            check(ours, f"{before}0{after}", seed.image(0), status="hit")
            wrk.load(ours, "/", seconds=plan.seconds, script=wrk.UNIFORM % (0, number, before, after))
            done = wrk.load(ours, "/", seconds=plan.seconds, script=wrk.UNIFORM % (0, number, before, after))
            row.ours.append(done.requests_per_s)
            row.notes.append(
                f"{number:,}: {done.requests_per_s:,.0f}/s, p50 {done.p50_ms:.2f} ms, p99 {done.p99_ms:.2f} ms,"
                f" {ours.rss() / 2**20:.0f} MiB"
            )
        number *= 10
    return row


def workers(plan: Plan) -> Row:
    """
    What a second worker brings on hits, on a machine where the client takes the second core.

    So workers are let run a fifth of the time only: what two of them and the client need is there, and what they answer
    is theirs. Each has as many connections. How much processor time each hit takes, and what comes of it where all run
    as fast as they can, is told too.
    """
    row = Row("workers", "requests/s at a fifth", at_least=1.8, aim=2.0)
    files = plan.work / "one"
    files.mkdir(parents=True, exist_ok=True)
    (files / "w.png").write_bytes(seed.image(1))
    costs: dict[int, list[float]] = {1: [], 2: []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    with nginx_origin(files) as origin:
        target = seed.target(origin.port, "w.png")

        def measure(number: int) -> float:
            with imgkeep(empty_folder(plan, "imgkeep"), cores=CORES, server__workers=str(number)) as ours:
                for _ in range(20):  # wherever it comes in
                    check(ours, target, seed.image(1))
                load = partial(wrk.load, ours, target, connections=number * 2 * wrk.CONNECTIONS, cores=CORES)
                load(seconds=1)
                cpu_s = ours.cpu_s()
                done = load(seconds=plan.seconds)
                costs[number].append((ours.cpu_s() - cpu_s) / done.requests)
                rates[number].append(done.requests_per_s)
                with dozing(ours.pids[-number:], 0.2):
                    done = load(seconds=plan.seconds)
                check(ours, target, seed.image(1), status="hit")
                return done.requests_per_s

        alternate(plan, row, partial(measure, 2), partial(measure, 1), None)
    if row.invalid is None:
        one_us, two_us = (statistics.median(each) * 1e6 for each in costs.values())
        one, two = map(statistics.median, rates.values())
        row.notes += [
            "compared with one worker",
            f"a hit takes {two_us:.1f} µs of a core instead of {one_us:.1f}",
            f"at full speed, beside the client: {two:,.0f}/s instead of {one:,.0f}/s",
        ]
    return row


def empty_folder(plan: Plan, name: str) -> Path:
    plan.work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"run-{name}-", dir=plan.work))
    folder.chmod(0o777)
    return folder


def tidy_up(plan: Plan) -> None:
    """
    Remove what rows have written.

    Not before all is measured: ext4 without a journal passes over every inode that was freed in the last five minutes
    before it takes one for a new file, and then it is that which is measured.
    """
    for path in plan.work.glob("run-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


ROWS: Final[dict[str, Callable[[Plan], Row]]] = {
    "hit-small": hit_small,
    "hit-large": hit_large,
    "hit-tail": hit_tail,
    "miss": miss,
    "miss-first-byte": miss_first_byte,
    "crowd": crowd,
    "slow-readers": slow_readers,
    "start": start,
    "size": size,
    "workers": workers,
}
