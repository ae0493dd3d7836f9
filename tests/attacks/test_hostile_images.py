"""
The worst image for each parser: what it costs is counted in steps, and bounded by its bytes and by a named budget.

Where a step is counted by the parsers themselves, the interpreter counts with them: a parser that works without
spending is found by the lines that it runs.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from aiohttp import FormData

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.errors import Busy, NotAnImage
from imgkeep.core.formats import (
    _KINDS,
    HEAD_BYTES_MAX,
    LOOP_STEPS_MAX,
    UNDECIDED,
    Budget,
    HeadReader,
    Spent,
    is_whole,
    measure,
    sniff,
    steps_max,
    svg,
)
from imgkeep.core.formats import (
    binary_reader as fields,
)
from imgkeep.core.records import Client, Format
from imgkeep.images import format_checker as checks
from imgkeep.images.format_checker import FormatChecker
from imgkeep.storage.memory import MemorySpool
from tests.support.hostile_images import WORST, png_chunks, tiff_children
from tests.support.hostile_transfers import read, unframed
from tests.support.image_requests import services_of
from tests.support.images import make_image
from tests.support.tables import table
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import FrameType

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Check = Callable[[Format, bytes, Budget], object]
    Start = Callable[..., Awaitable[Imgkeep]]

SMALL, LARGE = 65_536, 262_144
LINES_PER_STEP_MAX = 30
"""Of Python, in `imgkeep.core.formats`; a directory of a TIFF takes most."""
PARSERS = str(Path(svg.__file__ or "").parent)
STORED = make_image()

every_worst = table("case", WORST, ids=lambda case: f"{case[0].name}: {case[1]}")


def steps_of(check: Check, fmt: Format, body: bytes) -> int:
    """Return the number of steps that a check took, or all that it had."""
    budget = Budget(steps_max(len(body)))
    try:
        check(fmt, body, budget)
    except Spent:
        return budget.steps_max
    return budget.taken


def look(_: Format, body: bytes, budget: Budget) -> object:
    return sniff(body, ended=True, budget=budget)


CHECKS: Final[dict[str, Check]] = {"recognise": look, "measure": measure, "is_whole": is_whole}


# Steps


def test_every_format_has_a_worst_image() -> None:
    assert {fmt for fmt, _ in WORST} == set(_KINDS) == set(Format)


@every_worst
def test_worst_image_is_recognised(case: tuple[Format, str]) -> None:
    """Else it would test no parser."""
    found = sniff(WORST[case](SMALL), ended=True)
    assert found is case[0] or (found is None and case[0] is Format.SVG)  # one that does not come to its root


@every_worst
@table("check", CHECKS)
def test_steps_are_linear_in_bytes(case: tuple[Format, str], check: str) -> None:
    """Without a budget, which would end them."""
    taken = []
    for size in (16_384, 32_768, 65_536):
        budget = Budget(10**9)
        CHECKS[check](case[0], WORST[case](size), budget)
        taken.append(budget.taken)
    few, more, most = taken
    # A quadratic parser takes four times as much for the second half. Where a limit ends one sooner, it takes less.
    # A parser reads a tag without an end again and again up to a limit, which is next to nothing for each byte.
    assert most - more <= 2.5 * max(more - few, 1_024) or most < 65_536 // 8


@every_worst
@table("check", CHECKS)
def test_steps_do_not_exceed_bytes(case: tuple[Format, str], check: str) -> None:
    body = WORST[case](SMALL)
    assert steps_of(CHECKS[check], case[0], body) <= fields.STEPS_MIN + len(body)


@contextmanager
def lines_counted() -> Iterator[list[int]]:
    """Count the lines of Python that the parsers run."""
    lines = [0]

    def trace(frame: FrameType, event: str, _: object) -> object:
        if not frame.f_code.co_filename.startswith(PARSERS):
            return None
        lines[0] += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]  # typeshed wants what a trace returns to be a trace
    try:
        yield lines
    finally:
        sys.settrace(before)


@every_worst
@table("check", CHECKS)
def test_parsers_count_all_their_work(case: tuple[Format, str], check: str) -> None:
    body = WORST[case](8_192)
    budget = Budget(4_096)
    with suppress(Spent), lines_counted() as lines:
        CHECKS[check](case[0], body, budget)
    assert lines[0] <= LINES_PER_STEP_MAX * (budget.taken + 20)


@every_worst
@table("step", [1, 1_448, 65_536])
def test_slow_head_stays_within_its_budget(case: tuple[Format, str], step: int) -> None:
    """However a hostile origin cuts it: all passes on the event loop together."""
    body = WORST[case](LARGE)[:HEAD_BYTES_MAX]
    budget = Budget(LOOP_STEPS_MAX)
    reader = HeadReader(budget)
    looks = 0
    with suppress(Spent), lines_counted() as lines:
        for size in chain(range(step, len(body), step), (len(body),)):
            if size >= reader.look_at or size == len(body):
                looks += 1
                if reader.look(body[:size], ended=size == len(body)) is not UNDECIDED:
                    break
    assert looks <= 60  # a head that grows by a quarter each time
    assert budget.taken <= LOOP_STEPS_MAX
    assert lines[0] <= LINES_PER_STEP_MAX * LOOP_STEPS_MAX


@every_worst
def test_pauses_are_frequent_enough(case: tuple[Format, str]) -> None:
    """At most one call into C exceeds the steps between two pauses."""
    body = WORST[case](LARGE)
    longest = last = 0

    def pause() -> None:
        nonlocal longest, last
        longest, last = max(longest, budget.taken - last), budget.taken

    budget = Budget(steps_max(len(body)), pause)
    with suppress(Spent):
        is_whole(case[0], body, budget)
    call_steps = (svg.TOKEN_BYTES_MAX + svg.EXPANSION_BYTES_MAX) // fields.BYTES_SCANNED_PER_STEP
    assert longest <= fields.STEPS_BETWEEN_PAUSES + (call_steps if case[0] is Format.SVG else 65_536)


# Memory


def test_svg_memory_is_freed_without_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        before = Counter(type(thing) for thing in gc.get_objects())
        for (fmt, _), make in WORST.items():
            if fmt is Format.SVG:
                steps_of(measure, fmt, make(SMALL))
                steps_of(is_whole, fmt, make(SMALL))
        left = Counter(type(thing) for thing in gc.get_objects()) - before
    finally:
        gc.enable()
    assert not {kind for kind in left if kind.__module__ in {"pyexpat", svg.__name__}}


def test_svg_memory_is_bounded() -> None:
    """Three megabytes of open elements took 134 MB once."""
    for name in ("open elements", "named elements", "open namespaces", "attributes of a tag"):
        body = WORST[Format.SVG, name](3_000_000)
        assert steps_of(is_whole, Format.SVG, body) <= 16 * svg.OPEN_MAX


# The server


class Gate:
    """Holds checking threads at their first pause: those whose name begins with `queue`."""

    def __init__(self, queue: str = "format-check") -> None:
        self.held = 0
        self._queue = queue
        self._open = threading.Event()

    def pause(self) -> None:
        if threading.current_thread().name.startswith(self._queue) and not self._open.is_set():
            self.held += 1
            self._open.wait()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that opens at the end, because the process waits for its threads."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def slow_gate() -> Iterator[Gate]:
    gate = Gate("format-check-slow")
    yield gate
    gate.open()


async def code_of(imgkeep: Imgkeep, url: str) -> tuple[int, str]:
    response = await imgkeep.img(url)
    assert response.content_type == "application/problem+json"
    return response.status, (await response.json())["code"]


@pytest.fixture
async def busy(start: Start, gate: Gate) -> tuple[Imgkeep, FormatChecker]:
    """An imgkeep whose checking threads are held as soon as they have work, and its format checker."""
    format_checker = FormatChecker(pause=gate.pause)
    return await start(platform=Platform(make_format_checker=lambda: format_checker)), format_checker


async def test_held_image_checks_delay_no_other_request(
    busy: tuple[Imgkeep, FormatChecker], origin: FakeOrigin, gate: Gate
) -> None:
    imgkeep, format_checker = busy
    stored = origin.gives("/stored.png", STORED)
    assert await (await imgkeep.img(stored)).read() == STORED
    hostile = [origin.on(f"/{n}.tiff", unframed(tiff_children(1_000_000))) for n in range(16)]
    readers = [asyncio.create_task(read(imgkeep, url)) for url in hostile]
    await until(lambda: format_checker.under_way == len(hostile))

    hit = await imgkeep.img(stored)
    assert (await hit.read(), hit.headers["Cache-Status"]) == (STORED, "imgkeep; hit")
    for form in ("PNG", "JPEG", "GIF", "WEBP"):
        fresh = await imgkeep.img(origin.gives(f"/fresh.{form}", make_image(form, seed=1)))
        assert (fresh.status, await fresh.read()) == (200, make_image(form, seed=1))
    await services_of(imgkeep).health.check()
    assert (await imgkeep.client.get("/healthz")).status == 200
    ready = await imgkeep.client.get("/readyz")
    assert (ready.status, (await ready.json())["status"]) == (200, "ready")
    assert gate.held == checks.QUICK_THREADS
    assert not any(reader.done() for reader in readers)

    gate.open()
    await asyncio.gather(*readers)
    assert format_checker.under_way == 0
    assert len(imgkeep.files("objects")) == 5


async def test_slow_check_delays_only_slow_checks(start: Start, origin: FakeOrigin, slow_gate: Gate) -> None:
    format_checker = FormatChecker(pause=slow_gate.pause)
    imgkeep = await start(platform=Platform(make_format_checker=lambda: format_checker))
    bomb = WORST[Format.SVG, "markup in an entity"](100_000)
    hostile = [origin.on(f"/{n}.svg", unframed(bomb)) for n in range(6)]
    readers = [asyncio.create_task(read(imgkeep, url)) for url in hostile]
    await until(lambda: slow_gate.held == 1 and format_checker.under_way == len(hostile))
    for form in ("PNG", "JPEG", "GIF", "WEBP"):
        honest = await imgkeep.img(origin.on(f"/honest.{form}", unframed(make_image(form))))
        assert await honest.read() == make_image(form)
    slow_gate.open()
    await asyncio.gather(*readers)


async def test_full_check_queue_is_busy_and_not_remembered(start: Start, origin: FakeOrigin, gate: Gate) -> None:
    format_checker = FormatChecker(queued_max=1, pause=gate.pause)
    imgkeep = await start(platform=Platform(make_format_checker=lambda: format_checker))
    urls = [origin.gives(f"/{n}.png", png_chunks(LARGE)) for n in range(checks.QUICK_THREADS + 2)]
    readers = [asyncio.create_task(read(imgkeep, url)) for url in urls[:-1]]
    await until(lambda: format_checker.under_way == len(readers))
    assert await code_of(imgkeep, urls[-1]) == (503, "busy")
    gate.open()
    assert await asyncio.gather(*readers) == [len(png_chunks(LARGE))] * len(readers)
    assert await read(imgkeep, urls[-1]) == len(png_chunks(LARGE))


async def test_check_timeout_is_failure_of_image_and_remembered(start: Start, origin: FakeOrigin, gate: Gate) -> None:
    format_checker = FormatChecker(timeout_s=1, pause=gate.pause)
    imgkeep = await start(platform=Platform(make_format_checker=lambda: format_checker))
    urls = [origin.gives(f"/{n}.png", png_chunks(LARGE)) for n in range(checks.QUICK_THREADS + 1)]
    begun = [asyncio.create_task(code_of(imgkeep, url)) for url in urls[:-1]]
    await until(lambda: gate.held == checks.QUICK_THREADS)
    codes = [await code_of(imgkeep, urls[-1]), *await asyncio.gather(*begun)]
    # One check had not begun: that says nothing about its image.
    assert Counter(codes) == {(422, "not_an_image"): checks.QUICK_THREADS, (503, "busy"): 1}
    assert codes[0] == (503, "busy")
    assert await code_of(imgkeep, urls[0]) == (422, "not_an_image")
    assert origin.asked("/0.png") == 1
    await services_of(imgkeep).health.check()
    assert (await (await imgkeep.client.get("/readyz")).json())["status"] == "ready"
    # A thread cannot be killed, but an abandoned check ends at its next pause.
    assert format_checker.under_way == checks.QUICK_THREADS
    gate.open()
    await until(lambda: format_checker.under_way == 0)


async def test_cancelled_check_ends_at_next_pause(gate: Gate) -> None:
    format_checker = FormatChecker(pause=gate.pause)
    draft = await MemorySpool(10**8).begin(None)
    await draft.write(WORST[Format.GIF, "blocks"](3_000_000))
    task = asyncio.create_task(format_checker.is_whole(draft, Format.GIF))
    await until(lambda: gate.held == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    await until(lambda: format_checker.under_way == 0)
    assert gate.held == 1


async def test_check_queue_is_fair_to_clients(slow_gate: Gate) -> None:
    """One client made the large images of all others wait until their timeout, once."""
    format_checker = FormatChecker(pause=slow_gate.pause)
    draft = await MemorySpool(10**8).begin(None)
    await draft.write(WORST[Format.GIF, "blocks"](150_000))
    ended: list[str] = []

    async def check(name: str) -> None:
        try:
            await format_checker.is_whole(draft, Format.GIF, Client((f"{name}/32",)))
        except Busy:
            ended.append(f"{name} busy")
        else:
            ended.append(name)

    flood = [asyncio.create_task(check("flood")) for _ in range(40)]
    await until(
        lambda: slow_gate.held == 1 and format_checker.under_way == 1 + checks.QUEUED_MAX // checks.CLIENT_SHARE
    )
    await until(lambda: Counter(ended) == {"flood busy": 40 - 1 - checks.QUEUED_MAX // checks.CLIENT_SHARE})
    others = [asyncio.create_task(check(name)) for name in ("a", "b")]
    await until(lambda: format_checker._slow.under_way == 3 + checks.QUEUED_MAX // checks.CLIENT_SHARE)
    ended.clear()
    slow_gate.open()
    await asyncio.gather(*others, *flood)
    assert ended.index("a") <= 3
    assert ended.index("b") <= 3
    assert format_checker.under_way == 0


async def test_cancelled_waiting_check_frees_its_slot(slow_gate: Gate) -> None:
    format_checker = FormatChecker(pause=slow_gate.pause)
    draft = await MemorySpool(10**8).begin(None)
    await draft.write(WORST[Format.GIF, "blocks"](150_000))
    waiting = [asyncio.create_task(format_checker.is_whole(draft, Format.GIF)) for _ in range(9)]
    await until(lambda: slow_gate.held == 1 and format_checker._slow.under_way == len(waiting))
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await until(lambda: format_checker.under_way == 1)
    slow_gate.open()
    await until(lambda: format_checker.under_way == 0)


async def test_image_of_too_many_steps_is_refused_and_remembered(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    bomb = WORST[Format.SVG, "markup in an entity"](100_000)
    url = origin.on("/bomb.svg", unframed(bomb))
    assert await read(imgkeep, url) < len(bomb)  # its last byte is never sent
    assert await code_of(imgkeep, url) == (422, "not_an_image")
    assert origin.asked("/bomb.svg") == 1
    assert not imgkeep.files("objects")
    assert (await (await imgkeep.client.get("/readyz")).json())["status"] == "ready"


async def test_upload_of_too_many_steps_is_refused(imgkeep: Imgkeep) -> None:
    data = FormData()
    data.add_field("file", BytesIO(WORST[Format.SVG, "markup in an entity"](100_000)), filename="a.svg")
    response = await imgkeep.client.post("/api/save-image", data=data)
    assert (response.status, (await response.json())["code"]) == (422, "not_an_image")


async def test_closed_format_checker_is_busy() -> None:
    format_checker = FormatChecker()
    format_checker.close()
    draft = await MemorySpool(1_000_000).begin(None)
    await draft.write(STORED)
    with pytest.raises(Busy):
        await format_checker.is_whole(draft, Format.PNG)
    assert format_checker.under_way == 0


async def test_head_beyond_loop_budget_is_checked_once_in_thread() -> None:
    """However slowly it comes: not once for each byte."""
    body = png_chunks(LARGE + 100)
    format_checker = FormatChecker()

    async def chunks(size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    for size in (1, 100, 1_448, 65_536):
        head, seen = await format_checker.read_head(chunks(size))
        assert seen.format is Format.PNG
        assert HEAD_BYTES_MAX <= len(head) < HEAD_BYTES_MAX + size
    format_checker.close()


async def test_noise_after_hostile_head_is_no_image() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"<!--" + b" " * HEAD_BYTES_MAX

    with pytest.raises(NotAnImage):
        await FormatChecker().read_head(chunks())
