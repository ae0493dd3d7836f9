"""
Ask Chromium and imgkeep for every image below some folders, whole and cut, and compare what they say.

    python -m bench sweep FOLDER... [--no-program] [--no-cuts] [--json FILE]

A good folder holds the test files of Pillow, bmpsuite, wuffs, image-rs, sharp, libvips, libheif, libavif, resvg, each
in a folder of its own. Files are told apart by their bytes. Needs Chromium and installs nothing. Exit status 1: what
Chromium shows whole is refused or altered, or what is cut is taken for whole.

- *Whole* is what Chromium's decoders say (`bench/chromium.py`), and what `is_whole` says.
- *Incomplete* images are served, but provisionally; *refused* ones are no image to imgkeep.
- Every file is asked for through the program as well: what it answers and what it stores are the origin's bytes.
- Each whole file is cut at `CUTS`; where `is_whole` takes the rest for whole, Chromium has to as well.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

from bench.chromium import PAGE, Shown, type_of, viewing
from bench.corpus import imgkeep
from imgkeep.core.formats import HEAD_BYTES_MAX, UNDECIDED, is_whole, measure, sniff
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

    from bench.chromium import Viewer

BYTES_MAX: Final = 50 * 1024 * 1024  # as imgkeep's default
PIXELS_MAX: Final = 250_000_000
THEIRS: Final = ("whole", "in part", "not shown")
OURS: Final = ("whole", "incomplete", "refused")
FORMATS: Final = tuple(format_.name for format_ in Format)
CUT_VERDICTS: Final = ("incomplete", "whole", "nothing-missing", "never-shown")
CUTS: Final[dict[str, Callable[[int], int]]] = {
    "10 %": lambda size: size // 10,
    "50 %": lambda size: size // 2,
    "90 %": lambda size: size * 9 // 10,
    "99 %": lambda size: size * 99 // 100,
    "12 bytes less": lambda size: size - 12,
    "2 bytes less": lambda size: size - 2,
    "a byte less": lambda size: size - 1,
}
ASKED_AT_ONCE: Final = 8


@dataclass
class File:
    """A file, and what was said of it."""

    corpus: str
    path: Path
    type: str
    size: int
    shown: Shown | None = None
    format: str = ""
    whole: bool = False
    pixel_size: tuple[int, int] | None = None
    program: str = ""
    cuts: list[str] = field(default_factory=list)
    """Those that imgkeep takes for whole though Chromium does not."""

    @property
    def ours(self) -> str:
        return "refused" if not self.format else "whole" if self.whole else "incomplete"

    @property
    def is_large(self) -> bool:
        return self.pixel_size is not None and self.pixel_size[0] * self.pixel_size[1] > PIXELS_MAX

    @property
    def theirs(self) -> str:
        assert self.shown is not None
        return "not shown" if not self.shown.shown else "whole" if self.shown.whole else "in part"


def collect(folders: Iterable[Path]) -> list[File]:
    """Return every file that may be an image, each once. A corpus is a folder in one of `folders`."""
    files: dict[bytes, File] = {}
    for root in folders:
        for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
            body = path.read_bytes()
            type_ = type_of(body)
            if type_ is None or len(body) > BYTES_MAX:
                continue
            parts = path.relative_to(root).parts
            corpus = parts[0] if len(parts) > 1 else root.name
            files.setdefault(hashlib.sha256(body).digest(), File(corpus, path, type_, len(body)))
    return list(files.values())


def look(body: bytes) -> tuple[Format, bool] | None:
    """Return the format and whether all is there, as the service judges it; None: it is refused."""
    head = body[:HEAD_BYTES_MAX]
    fmt = sniff(head, ended=len(head) == len(body))
    if fmt is None or fmt is UNDECIDED:
        return None
    return fmt, is_whole(fmt, body)


def judge(file: File) -> None:
    """Ask imgkeep's own judgement."""
    body = file.path.read_bytes()
    if seen := look(body):
        file.format, file.whole = seen[0].name, seen[1]
        size = measure(seen[0], body)
        file.pixel_size = (size.width, size.height) if size else None


@asynccontextmanager
async def serving(files: Sequence[File]) -> AsyncGenerator[str]:
    """Serve `/<number>` as that file and `/<number>?<size>` as its first bytes; yield the origin."""

    async def answer(request: web.BaseRequest) -> web.Response:
        if not request.path[1:].isdigit():
            return web.Response(text=PAGE, content_type="text/html")
        file = files[int(request.path[1:])]
        body = await asyncio.to_thread(file.path.read_bytes)
        cut = int(request.query_string or len(body))
        is_svg = file.type == "image/svg+xml"
        return web.Response(body=body[:cut], content_type=file.type if is_svg else "application/octet-stream")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def show(files: Sequence[File], viewer: Viewer) -> None:
    """Ask Chromium about each file."""
    asked = [(f"/{number}", file.type, not file.whole) for number, file in enumerate(files)]
    for file, shown in zip(files, await viewer.judge_each(asked), strict=True):
        file.shown = shown


async def cut(files: Sequence[File], viewer: Viewer) -> Counter[str]:
    """Cut what both take for whole; count what imgkeep says of the rest, by format."""
    said: Counter[str] = Counter()
    doubtful: list[tuple[File, str, str]] = []
    for number, file in enumerate(files):
        if file.theirs == "in part" or not file.whole:
            continue
        body = file.path.read_bytes()
        for name, at in CUTS.items():
            size = at(len(body))
            seen = look(body[:size]) if 0 < size < len(body) else None
            said[f"{file.format} {'whole' if seen and seen[1] else 'incomplete'}"] += 1
            if seen and seen[1]:
                doubtful.append((file, name, f"/{number}?{size}"))
    shown = await viewer.judge_each([(path, file.type, False) for file, _, path in doubtful])
    for (file, name, _), judged in zip(doubtful, shown, strict=True):
        if judged.whole or not judged.shown:
            said[f"{file.format} {'nothing-missing' if judged.whole else 'never-shown'}"] += 1
        else:
            file.cuts.append(name)
    return said


async def ask(files: Sequence[File], origin: str) -> None:
    """Ask for each file through the program; compare what it answers and stores with the file."""
    turns = asyncio.Semaphore(ASKED_AT_ONCE)

    async def one(number: int, file: File) -> None:
        source = quote(f"{origin}/{number}", safe="")
        async with turns, session.get(URL(f"{base}/img?src={source}", encoded=True)) as response:
            answer = await response.read()
        body = await asyncio.to_thread(file.path.read_bytes)
        digest = hashlib.sha256(body).hexdigest()
        stored = [*(Path(folder) / "data" / "v1" / "objects" / digest[:2]).glob(f"{digest}.*")]
        if response.status != 200:
            file.program = str(response.status)
        elif answer != body:
            file.program = "altered"
        else:
            same = [path for path in stored if path.read_bytes() == body]
            file.program = "stored" if same and len(same) == len(stored) else "served"

    with tempfile.TemporaryDirectory() as folder:
        timeout = aiohttp.ClientTimeout(total=60)
        async with imgkeep(folder) as (base, _), aiohttp.ClientSession(timeout=timeout) as session:
            await asyncio.gather(*(one(number, file) for number, file in enumerate(files)))


def table(rows: dict[str, Counter[str]], columns: Sequence[str], title: str) -> str:
    """Return a table in Markdown, without columns that are empty."""
    used = [column for column in columns if any(row[column] for row in rows.values())]
    lines = [f"| {title} | {' | '.join(used)} |", "|---|" + "---:|" * len(used)]
    lines += [f"| {name} | {' | '.join(str(row[column]) for column in used)} |" for name, row in rows.items()]
    return "\n".join(lines)


def tell(files: Sequence[File], said: Counter[str]) -> bool:
    """Print the tables and what is wrong; return whether nothing is."""
    verdicts = [f"{theirs}, {ours}" for theirs in THEIRS for ours in OURS]
    for name in ("corpus", "type"):
        counted = count((getattr(file, name), f"{file.theirs}, {file.ours}") for file in files)
        print(table(counted, verdicts, f"{name} (Chromium, imgkeep)"), end="\n\n")
    marks = [file for file in files if file.shown and file.shown.ended and file.ours == "incomplete"]
    print(table(count((file.corpus, file.format) for file in marks), FORMATS, "only the end mark is missing"))
    cuts = count((fmt, verdict) for fmt, verdict in map(str.split, said.elements()))
    print(f"\n{table(cuts, CUT_VERDICTS, 'cut copies')}\n")
    asked = [(f"{file.theirs}, {file.ours}", file.program) for file in files if file.program]
    print(table(count(asked), sorted({answer for _, answer in asked}), "answers of the program"))
    wrong = [(reason, file) for file in files for reason in faults(file)]
    noted = [(reason, file) for file in files for reason in notes(file)]
    for title, found in (("noted", noted), ("wrong", wrong)):
        for reason, file in found:
            print(f"{title}: {reason}: {file.corpus}: {file.path} ({file.type}, {file.size} bytes)")
    return not wrong


def count(pairs: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Count rows and columns of a table, with a sum of all rows at its end."""
    rows: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for row, column in pairs:
        rows.setdefault(row, Counter())[column] += 1
        total[column] += 1
    return {**rows, "all": total}


def faults(file: File) -> list[str]:
    """Return what must not be."""
    found = [f"cut to {cut} and taken for whole" for cut in file.cuts]
    if file.theirs == "whole" and not file.format:
        found.append("shown whole and refused")
    if file.theirs == "in part" and file.whole and file.shown and file.shown.open:
        found.append("cut and taken for whole")
    if file.theirs == "whole" and file.format and file.program not in {"", "stored"} and not file.is_large:
        found.append(f"shown whole and answered with {file.program}")
    return found


def notes(file: File) -> list[str]:
    """Return what is worth a look."""
    found = []
    if file.theirs == "in part" and file.whole and file.shown and not file.shown.open:
        found.append("not cut, but its decoder ends early")
    if file.theirs == "whole" and file.ours == "incomplete":
        found.append("shown whole and held incomplete")
    if file.is_large:
        found.append("more pixels than fetch.pixels_max")
    return found


async def run(arguments: argparse.Namespace) -> int:
    """Sweep; return the exit status."""
    files = await asyncio.to_thread(collect, arguments.folders)
    print(f"{len(files)} files", file=sys.stderr)
    for file in files:
        judge(file)
    said: Counter[str] = Counter()
    async with serving(files) as origin:
        async with viewing(origin) as viewer:
            await show(files, viewer)
            print("all were shown", file=sys.stderr)
            if arguments.cuts:
                said = await cut(files, viewer)
        if arguments.program:
            print("asking the program", file=sys.stderr)
            await ask(files, origin)
    good = tell(files, said)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(file) for file in files], indent=1, default=str) + "\n")
    return 0 if good else 1


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench sweep", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--no-program", dest="program", action="store_false", help="judge only, start no server")
    parser.add_argument("--no-cuts", dest="cuts", action="store_false", help="do not cut")
    parser.add_argument("--json", type=Path, help="write what was said of every file there")
    return asyncio.run(run(parser.parse_args(argv)))
