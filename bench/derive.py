"""
Measure derived pictures: `python -m bench derive [ROW...]`.

Each row makes one picture of each of many stored originals, which no program has made before, on all cores: imgkeep,
thumbor with one process a core, and `vipsthumbnail`, which `xargs` runs with one process a core and some files each.
vipsthumbnail has no client, no cache and no limits: what it does is all that the machine can.

Rules:
- Every program has the same encoder settings where it has them: quality, and libvips's effort. Each picture is checked:
  its format and its sides.
- An original is the same photograph as the others with another comment, so that its bytes are its own.
- Processor time of a picture is told beside the rate, because other work on the machine changes it less.
- Memory is what the processes have in proportion (PSS), at its most during the round.

Needs pyvips (imgkeep[derive]), nginx and vipsthumbnail (Debian: `apt-get install libvips-tools`). thumbor (PyPI)
may live in an environment of its own. Exit status as `python -m bench`.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from zlib import crc32

from PIL import Image

from bench import seed, wrk
from bench.rows import Plan, empty_folder, tidy_up
from bench.servers import CORES, dump, find, imgkeep, nginx_origin, thumbor, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.servers import Server

CLIENTS: Final = 2 * len(CORES)
"""Concurrent requests: each core has one more picture than it works on."""
FILES_EACH: Final = 8
"""Files of one vipsthumbnail: its start, 30 ms, is divided among so many."""
QUALITY: Final = {"webp": 78, "avif": 55}
EFFORT: Final = {"webp": 4, "avif": 2}
"""As in `imgkeep.derived.process.encoders`."""
PILLOW_FORMATS: Final = {"webp": "WEBP", "avif": "AVIF"}
SAMPLE_INTERVAL_S: Final = 0.05
AT_LEAST: Final = {"vipsthumbnail": 0.8, "thumbor": 3.0}


@dataclass(frozen=True)
class Work:
    """One kind of picture: `number` originals, each made `width` pixels wide."""

    original: str
    width: int
    format: str
    number: int


WORKS: Final = {
    "png-webp": Work("photo.png", 400, "webp", 64),
    "jpeg-webp": Work("photo.jpg", 800, "webp", 32),
    "jpeg-avif": Work("photo.jpg", 800, "avif", 32),
}


@dataclass
class Figures:
    """What came of a row: pictures a second, seconds of a core for each, bytes of memory; by program, one a round."""

    name: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, program: str, rate: float, cpu_s: float, memory: float) -> None:
        self.rates.setdefault(program, []).append(rate)
        self.cpu_s.setdefault(program, []).append(cpu_s)
        self.memory.setdefault(program, []).append(memory)

    def ratio(self, program: str) -> float | None:
        if program not in self.rates or "imgkeep" not in self.rates:
            return None
        return statistics.median(self.rates["imgkeep"]) / statistics.median(self.rates[program])

    @property
    def good(self) -> bool:
        ratios = {program: self.ratio(program) for program in AT_LEAST}
        return "imgkeep" in self.rates and all(
            ratio is None or ratio >= AT_LEAST[program] for program, ratio in ratios.items()
        )


def make_originals(folder: Path, work: Work, first: int) -> list[Path]:
    """Return files of a kind of work, made if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, _, ending = work.original.partition(".")
    paths = [folder / f"{stem}-{n}.{ending}" for n in range(first, first + work.number)]
    base = folder / work.original
    if not base.exists():
        base.write_bytes(_photograph(ending))
    data = base.read_bytes()
    for path in paths:
        if not path.exists():
            path.write_bytes(_with_comment(data, path.stem.encode()))
    return paths


def _photograph(ending: str) -> bytes:
    """Return soft shapes with a little grain: about 1.5 MB as PNG of 1024 x 1024, and 12 megapixels as JPEG."""
    random_, side = random.Random(1), 1024
    small = Image.frombytes("RGB", (24, 24), random_.randbytes(24 * 24 * 3))
    if ending == "png":
        soft = small.resize((side, side), Image.Resampling.BICUBIC)
        grain = Image.frombytes("RGB", (side, side), bytes(byte % 14 for byte in random_.randbytes(side * side * 3)))
        picture, options = Image.blend(soft, grain, 0.5), {"format": "PNG"}
    else:
        soft = small.resize((4000, 3000), Image.Resampling.BICUBIC)
        grain = Image.frombytes("RGB", (1000, 750), random_.randbytes(1000 * 750 * 3)).resize((4000, 3000))
        picture, options = Image.blend(soft, grain, 0.1), {"format": "JPEG"}
    file = BytesIO()
    picture.save(file, options["format"], **({"quality": 90} if ending == "jpg" else {}))
    return file.getvalue()


def _with_comment(data: bytes, comment: bytes) -> bytes:
    """Return an image with a comment: other bytes, the same picture."""
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
    chunk = b"tEXtComment\0" + comment
    return data[:33] + (len(chunk) - 4).to_bytes(4, "big") + chunk + crc32(chunk).to_bytes(4, "big") + data[33:]


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():  # any of them may have started a process
            for child in (thread / "children").read_text().split():
                found += tree(int(child))
    return found


def cpu_of(pid: int) -> float:
    """Return the seconds of processor time of a process and all below it, those included that have ended."""
    total = 0
    for each in tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def watching_memory(pid: int, most: list[float]) -> Iterator[None]:
    """Append the most memory that a process and those below it have during the block."""
    over, seen = threading.Event(), [0.0]

    def watch() -> None:
        while not over.wait(SAMPLE_INTERVAL_S):
            total = 0
            for each in tree(pid):
                with suppress(OSError, IndexError):
                    total += int(Path(f"/proc/{each}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0])
            seen.append(total * 1024.0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        most.append(max(seen))


def ask_all(server: Server, targets: Sequence[str], check: Callable[[bytes], None] | None) -> float:
    """Ask for all targets with some connections; return the seconds. Raises: wrk.InvalidRun: An answer is not right."""

    def work(mine: Sequence[str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for target in mine:
            connection.request("GET", target)
            response = connection.getresponse()
            body = response.read()
            if response.status != http.client.OK:
                raise wrk.InvalidRun(f"{server.name} answers {response.status}: {body[:200]!r}")
            if check is not None:
                check(body)
        connection.close()

    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work, targets[n::CLIENTS]) for n in range(CLIENTS)]:
            done.result()
    return time.monotonic() - began


def check_picture(work: Work, body: bytes) -> None:
    with Image.open(BytesIO(body)) as picture:
        if picture.format != PILLOW_FORMATS[work.format] or picture.width != work.width:
            raise wrk.InvalidRun(f"a picture is {picture.format} {picture.size}")


def measure(plan: Plan, name: str, work: Work) -> Figures:
    """Measure one kind of picture in rounds, each with originals of its own."""
    figures, folder = Figures(name), plan.work / "derive"
    places = [empty_folder(plan, each) for each in ("imgkeep", "thumbor")]
    with ExitStack() as stack:
        origin = stack.enter_context(nginx_origin(folder))
        ours = stack.enter_context(imgkeep(places[0], cores=CORES, derive__queue_max="1000"))
        theirs = None if plan.thumbor is None else stack.enter_context(thumbor(plan.thumbor, places[1], cores=CORES))
        for number in range(plan.rounds):
            paths = make_originals(folder, work, number * work.number)
            names = [path.name for path in paths]
            check = _checker(work)
            targets = [seed.target(origin.port, each) for each in names]
            ask_all(ours, targets, None)  # they are stored now
            if number == 0:  # the processes run before the first round
                warm = [f"{target}&w={work.width + 1 + n}&format={work.format}" for n, target in enumerate(targets[:4])]
                ask_all(ours, warm, None)
            _measure_server(figures, ours, [f"{each}&w={work.width}&format={work.format}" for each in targets], check)
            if theirs is not None:
                sources = [f"http://127.0.0.1:{origin.port}/{each}" for each in names]
                ask_all(theirs, [f"/unsafe/8x0/{quote(each, safe='')}" for each in sources], None)
                filters = f"filters:format({work.format}):quality({QUALITY[work.format]})"
                made = [f"/unsafe/{work.width}x0/{filters}/{quote(each, safe='')}" for each in sources]
                try:
                    _measure_server(figures, theirs, made, check)
                except wrk.InvalidRun as reason:
                    figures.notes.append(f"thumbor does not count: {reason}")
                    figures.rates.pop("thumbor", None)
                    theirs = None
            if find("vipsthumbnail") is not None:
                _measure_vips(figures, work, paths, empty_folder(plan, f"vips-{number}"), check)
    return figures


def _checker(work: Work) -> Callable[[bytes], None]:
    """Return a check that looks at one picture of eight: to decode costs the time of a core."""
    count = 0

    def check(body: bytes) -> None:
        nonlocal count
        count += 1
        if count % 8 == 1:
            check_picture(work, body)

    return check


def _measure_server(figures: Figures, server: Server, targets: Sequence[str], check: Callable[[bytes], None]) -> None:
    memory: list[float] = []
    before = cpu_of(server.pids[0])
    with watching_memory(server.pids[0], memory):
        seconds = ask_all(server, targets, check)
    used_s = cpu_of(server.pids[0]) - before
    figures.note(server.name, len(targets) / seconds, used_s / len(targets), memory[0])


def _measure_vips(
    figures: Figures, work: Work, paths: Sequence[Path], output: Path, check: Callable[[bytes], None]
) -> None:
    settings = f"Q={QUALITY[work.format]},effort={EFFORT[work.format]},strip"
    if work.format == "avif":
        settings += ",compression=av1"
    output.mkdir(exist_ok=True)
    command = [
        *("xargs", "-P", str(len(CORES)), "-n", str(FILES_EACH), "vipsthumbnail", "--vips-concurrency=1"),
        *("-s", f"{work.width}x", "-o", f"{output.absolute()}/%s.{work.format}[{settings}]"),
    ]
    memory: list[float] = []
    began, before = time.monotonic(), _children_cpu_s()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    with watching_memory(process.pid, memory):
        process.communicate("\n".join(str(path.absolute()) for path in paths))
    seconds = time.monotonic() - began
    made = sorted(output.glob(f"*.{work.format}"))
    if process.returncode != 0 or len(made) != len(paths):
        raise wrk.InvalidRun(f"vipsthumbnail made {len(made)} of {len(paths)} pictures")
    for path in made:
        check(path.read_bytes())
    figures.note("vipsthumbnail", len(paths) / seconds, (_children_cpu_s() - before) / len(paths), memory[0])


def describe(figures: Figures) -> str:
    parts = [figures.name]
    for program, rates in figures.rates.items():
        memory = statistics.median(figures.memory[program]) / 2**20
        spread = f"{min(rates):,.1f} to {max(rates):,.1f}"
        cpu_ms = 1000 * statistics.median(figures.cpu_s[program])
        figure = f"{statistics.median(rates):>10,.1f}/s ({spread})"
        parts.append(f"  {program:16} {figure}, {cpu_ms:.1f} ms of a core each, {memory:,.0f} MiB")
    others = [program for program in figures.rates if program != "imgkeep"]
    parts += [
        f"  imgkeep / {program}: {figures.ratio(program):.2f}{_describe_cpu(figures, program)}" for program in others
    ]
    return "\n".join([*parts, *(f"  {note}" for note in figures.notes)])


def _describe_cpu(figures: Figures, program: str) -> str:
    ours, theirs = (statistics.median(figures.cpu_s[each]) for each in ("imgkeep", program))
    return f"; pictures for a second of a core: {theirs / ours:.2f}" if ours and theirs else ""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench derive", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(WORKS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--thumbor", metavar="PATH", help="that program; default: the one on PATH, or none")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/imgkeep-bench").expanduser(), help="a folder")
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.rows if name not in WORKS]
    missing = [program for program in ("nginx", "taskset") if find(program) is None]
    if unknown or missing:
        print(
            f"no row is called {unknown[0]}" if unknown else f"{' and '.join(missing)} not installed", file=sys.stderr
        )
        return 2
    thumbor_program = find(arguments.thumbor or "thumbor")
    plan = Plan(arguments.work, arguments.rounds, seconds=0, records=0, thumbor=thumbor_program)
    results = []
    for name in arguments.rows or WORKS:
        print(f"{name} ...", file=sys.stderr)
        results.append(measure(plan, name, WORKS[name]))
        print(describe(results[-1]))
    tidy_up(plan)
    told = {**versions(thumbor_program), "vips": _told("vips", "--version"), "pyvips": _pyvips_version()}
    print(", ".join(f"{name} {version}" for name, version in told.items()))
    if arguments.json:
        dump({"versions": told, "rows": [asdict(row) for row in results]}, arguments.json)
    return 0 if all(row.good for row in results) else 1


def _told(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "not installed"


def _pyvips_version() -> str:
    with suppress(ImportError, OSError):
        import pyvips  # noqa: PLC0415 - an extra

        return ".".join(str(pyvips.version(n)) for n in range(3))
    return "not installed"
