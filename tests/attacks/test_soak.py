"""Longer attacks: what others wait for, and what stays in memory. Counted, not timed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from itertools import cycle, islice
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.formats import LOOP_STEPS_MAX, Budget, steps_max
from imgkeep.core.formats import binary_reader as fields
from imgkeep.core.records import Format
from imgkeep.images import format_checker as checks
from imgkeep.images.fill import Fill
from imgkeep.images.format_checker import ITERATION_STEPS_MAX, QUICK_THREADS, SLOW_THREADS, FormatChecker
from imgkeep.storage.local.draft import LocalDraft
from imgkeep.web.parse_budget import PARSE_ITERATION_BYTES, PARSE_STEP_BYTES
from tests.support.hostile_images import WORST
from tests.support.hostile_transfers import read, unframed
from tests.support.images import make_image, png_of
from tests.support.raw_http import port_of, request, split, talk, target_of
from tests.support.single_process import serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

STORED = make_image()
HEAD = 65_536
ATTACK = list(WORST.values())[::2]
SVG_BYTES = 3_000_000
LEFT_BYTES_MAX = 50_000_000
BODIES = (("GET", "/healthz"), ("POST", "/img"), ("POST", "/api/save-image"), ("GET", "/nothing"))
HEAVY = ("open elements", "named elements", "open namespaces", "attributes of a tag", "namespaces", "a value")
"""SVGs that took most memory for their bytes."""


class StepCounter:
    """Counts the steps of each iteration of the event loop and of each thread."""

    def __init__(self) -> None:
        self.iteration = 0
        self.of_iteration: Counter[int] = Counter()
        self.of_thread: Counter[str] = Counter()
        self.at_work: set[str] = set()
        self._loop_thread = threading.current_thread()

    def note(self, steps: int) -> None:
        thread = threading.current_thread()
        self.of_thread[thread.name] += steps
        if thread is self._loop_thread:
            self.of_iteration[self.iteration] += steps

    async def count_iterations(self) -> None:
        while True:
            self.iteration += 1
            await asyncio.sleep(0)


@pytest.fixture
def step_counter(monkeypatch: pytest.MonkeyPatch) -> StepCounter:
    step_counter = StepCounter()

    class Noted(Budget):
        __slots__ = ()

        def spend(self, steps: int = 1) -> None:
            step_counter.note(min(steps, self.steps_max))
            super().spend(steps)

    monkeypatch.setattr(checks, "Budget", Noted)
    return step_counter


def dripping(body: bytes, size: int) -> Callable[[Exchange], Awaitable[None]]:
    """Answer without framing, in pieces of `size` bytes, each in an iteration of its own."""

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Connection: close")
        for at in range(0, len(body), size):
            await exchange.send(body[at : at + size])
            await asyncio.sleep(0)
        exchange.finish()

    return script


async def test_hits_continue_during_hostile_checks(start: Start, origin: FakeOrigin, step_counter: StepCounter) -> None:
    format_checker = FormatChecker()
    imgkeep = await start(platform=Platform(make_format_checker=lambda: format_checker), fetch={"per_host_max": 64})
    stored = origin.gives("/stored.png", STORED)
    assert await (await imgkeep.img(stored)).read() == STORED
    iterations = asyncio.create_task(step_counter.count_iterations())
    sizes = cycle((HEAD, 16_384, 1_448, 700))
    hostile = [
        read(imgkeep, origin.on(f"/{n}", dripping(make(HEAD), size)))
        for n, (make, size) in enumerate(zip(ATTACK, sizes, strict=False))
    ]
    attack = asyncio.gather(*hostile)
    hits = most_under_way = 0
    while not attack.done():
        hit = await imgkeep.img(stored)
        assert (await hit.read(), hit.headers["Cache-Status"]) == (STORED, "imgkeep; hit")
        assert (await imgkeep.client.get("/healthz")).status == 200
        assert (await imgkeep.client.get("/readyz")).status == 200
        hits += 1
        most_under_way = max(most_under_way, format_checker.under_way)
    await attack
    iterations.cancel()
    assert hits >= 10

    # A check may begin when one step of the iteration is left, and its last call may be a search of one window.
    window = 65_536 // fields.BYTES_SCANNED_PER_STEP
    assert 0 < max(step_counter.of_iteration.values()) <= ITERATION_STEPS_MAX + LOOP_STEPS_MAX + window
    on_loop = step_counter.of_thread.pop(threading.current_thread().name)
    assert on_loop <= (len(ATTACK) + 1) * (LOOP_STEPS_MAX + window)
    # A few threads did the rest, which do nothing else: none of a disk, none that resolves names.
    assert {name.rpartition("_")[0] for name in step_counter.of_thread} <= {"format-check", "format-check-slow"}
    assert len(step_counter.of_thread) <= QUICK_THREADS + SLOW_THREADS
    assert sum(step_counter.of_thread.values()) <= len(ATTACK) * 4 * steps_max(HEAD)
    assert most_under_way <= len(ATTACK)
    assert format_checker.under_way == 0


async def test_endless_chunks_do_not_block_the_loop(
    imgkeep: Imgkeep, origin: FakeOrigin, step_counter: StepCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unread body was parsed as it came once, 43,000 chunks of one byte in one go."""
    stored = origin.gives("/stored.png", STORED)
    assert await (await imgkeep.img(stored)).read() == STORED
    given: Counter[int] = Counter()
    give = web.RequestHandler.data_received

    def note(handler: web.RequestHandler, data: bytes) -> None:
        given[step_counter.iteration] += len(data)
        give(handler, data)

    monkeypatch.setattr(web.RequestHandler, "data_received", note)
    iterations = asyncio.create_task(step_counter.count_iterations())
    heads = [request(target, "Transfer-Encoding: chunked", method=method, close=False) for method, target in BODIES]
    floods = [asyncio.create_task(talk(port_of(imgkeep), head + b"1\r\na\r\n" * 20_000)) for head in heads]
    hits = 0
    while not all(flood.done() for flood in floods):
        hit = await imgkeep.img(stored)
        assert (await hit.read(), hit.headers["Cache-Status"]) == (STORED, "imgkeep; hit")
        hits += 1
    iterations.cancel()
    assert hits >= 10
    assert PARSE_ITERATION_BYTES <= max(given.values()) < PARSE_ITERATION_BYTES + PARSE_STEP_BYTES


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_body_arrives_whole(imgkeep: Imgkeep, *, chunked: bool) -> None:
    body = png_of(300_000)
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + body + b"\r\n--b--\r\n"
    framed = b"".join(b"7\r\n%b\r\n" % form[at : at + 7] for at in range(0, len(form) - 6, 7))
    tail = form[len(form) - len(form) % 7 :]
    framed += b"%x\r\n%b\r\n0\r\n\r\n" % (len(tail), tail) if tail else b"0\r\n\r\n"
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(form)}"
    fields = ("Content-Type: multipart/form-data; boundary=b", framing, f"Authorization: Bearer {imgkeep.token}")
    head = request("/api/save-image", *fields, method="POST")
    answer = split(await talk(port_of(imgkeep), head + (framed if chunked else form), timeout_s=20))
    assert answer.status == 201, answer.body
    assert [path.stat().st_size for path in imgkeep.files("objects")] == [len(body)]


async def refused(exchange: Exchange) -> None:
    """Answer with bytes that are no image."""
    await exchange.answer(b"The link has expired.")


FAILURES = {
    "no image": refused,
    "not whole": unframed(WORST[Format.SVG, "open elements"](200_000)),
    "too many steps": unframed(WORST[Format.SVG, "markup in an entity"](80_000)),
}


@pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES)
async def test_failed_fill_is_freed_without_garbage_collector(
    imgkeep: Imgkeep, origin: FakeOrigin, script: Callable[[Exchange], Awaitable[None]]
) -> None:
    """The traceback of its error held the fill, and the fill held the error, once."""
    gc.collect()
    gc.disable()
    try:
        for n in range(3):
            await asyncio.gather(*[read(imgkeep, origin.on(f"/{n}", script)) for _ in range(3)])
        await until(lambda: not [thing for thing in gc.get_objects() if isinstance(thing, (Fill, LocalDraft))])
    finally:
        gc.enable()


async def test_memory_returns_after_hostile_fills(tmp_path: Path, origin: FakeOrigin) -> None:
    """In a process of its own. Each fill took 134 MB once, and never freed it."""
    bodies = [WORST[Format.SVG, name](SVG_BYTES) for name in HEAVY]
    urls = [origin.on(f"/{n}.svg", unframed(body)) for n, body in enumerate(islice(cycle(bodies), 60))]
    async with serving(tmp_path / "run") as running:

        async def fill(url: str) -> int:
            return len(split(await talk(running.port, request(target_of(url)), timeout_s=30)).body)

        for url in urls[:12]:
            assert await fill(url) > 0
        before = running.rss()
        for url in urls[12:24]:
            await fill(url)
        most = running.rss()
        for at in range(24, len(urls), 12):
            await asyncio.gather(*[fill(url) for url in urls[at : at + 12]])
            most = max(most, running.rss())
        assert running.rss() - before < LEFT_BYTES_MAX
        assert most - before < 2 * LEFT_BYTES_MAX
        assert all(origin.asked(f"/{n}.svg") == 1 for n in range(len(urls)))
        assert split(await talk(running.port, request("/readyz"))).status == 200
    assert not list(running.folder.glob("v1/objects/*/*"))
