"""Under attack for a while: what others wait for, and what is left of it in memory. Counted, not timed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from itertools import cycle, islice
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from imgkeep.bootstrap.server import Platform
from imgkeep.core.formats import LOOP_STEPS_MAX, Budget, steps_max
from imgkeep.core.formats import binary_reader as fields
from imgkeep.core.records import Format
from imgkeep.images import format_checker as judging
from imgkeep.images.fill import Fill
from imgkeep.images.format_checker import ITERATION_STEPS_MAX, QUICK_THREADS, SLOW_THREADS, FormatChecker
from imgkeep.storage.local.draft import LocalDraft
from imgkeep.web.parse_budget import PARSE_STEP_BYTES, PARSE_ITERATION_BYTES

from tests.faults.test_process import serving
from tests.support.hostile_images import WORST
from tests.support.hostile_transfers import read, unframed
from tests.support.network import until
from tests.support.pictures import picture, picture_of
from tests.support.raw_http import port_of, request, split, talk, target_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Imgkeep
    from tests.support.origins import Exchange, FakeOrigin

    Start = Callable[..., Awaitable[Imgkeep]]

STORED = picture()
HEAD = 65_536
ATTACK = list(WORST.values())[::2]
SVG_BYTES = 3_000_000
LEFT_BYTES_MAX = 50_000_000
BODIES = (("GET", "/healthz"), ("POST", "/img"), ("POST", "/api/save-image"), ("GET", "/nothing"))
HEAVY = ("open elements", "named elements", "open namespaces", "attributes of a tag", "namespaces", "a value")
"""SVGs that took their parser most memory for their bytes."""


class Ledger:
    """Counts the steps that are taken in each turn of the event loop and in each thread."""

    def __init__(self) -> None:
        self.turn = 0
        self.of_turn: Counter[int] = Counter()
        self.of_thread: Counter[str] = Counter()
        self.at_work: set[str] = set()
        self._loop_thread = threading.current_thread()

    def note(self, steps: int) -> None:
        thread = threading.current_thread()
        self.of_thread[thread.name] += steps
        if thread is self._loop_thread:
            self.of_turn[self.turn] += steps

    async def count_turns(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    ledger = Ledger()

    class Noted(Budget):
        __slots__ = ()

        def spend(self, steps: int = 1) -> None:
            ledger.note(min(steps, self.steps_max))
            super().spend(steps)

    monkeypatch.setattr(judging, "Budget", Noted)
    return ledger


def dripping(body: bytes, size: int) -> Callable[[Exchange], Awaitable[None]]:
    """Answer without framing, in pieces of `size` bytes, each in a turn of its own."""

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Connection: close")
        for at in range(0, len(body), size):
            await exchange.send(body[at : at + size])
            await asyncio.sleep(0)
        exchange.finish()

    return script


async def test_hits_go_on_between_small_pieces_of_hostile_work(
    start: Start, origin: FakeOrigin, ledger: Ledger
) -> None:
    format_checker = FormatChecker()
    imgkeep = await start(platform=Platform(make_format_checker=lambda: format_checker), fetch={"per_host_max": 64})
    stored = origin.gives("/stored.png", STORED)
    assert await (await imgkeep.img(stored)).read() == STORED
    turns = asyncio.create_task(ledger.count_turns())
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
    turns.cancel()
    assert hits >= 10

    # A head may begin when one step of the turn is left, and its last call may be a search of one window.
    window = 65_536 // fields.BYTES_SCANNED_PER_STEP
    assert 0 < max(ledger.of_turn.values()) <= ITERATION_STEPS_MAX + LOOP_STEPS_MAX + window
    on_loop = ledger.of_thread.pop(threading.current_thread().name)
    assert on_loop <= (len(ATTACK) + 1) * (LOOP_STEPS_MAX + window)
    # The rest was done by few threads, which do nothing else: none of a disk's, nor of those that look names up.
    assert {name.rpartition("_")[0] for name in ledger.of_thread} <= {"format-check", "format-check-slow"}
    assert len(ledger.of_thread) <= QUICK_THREADS + SLOW_THREADS
    assert sum(ledger.of_thread.values()) <= len(ATTACK) * 4 * steps_max(HEAD)
    assert most_under_way <= len(ATTACK)
    assert format_checker.under_way == 0


async def test_chunks_without_end_hold_no_turn_of_the_loop(
    imgkeep: Imgkeep, origin: FakeOrigin, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that nothing of ours asked for was parsed as it came, 43,000 chunks of one byte at a time."""
    stored = origin.gives("/stored.png", STORED)
    assert await (await imgkeep.img(stored)).read() == STORED
    given: Counter[int] = Counter()
    give = web.RequestHandler.data_received

    def note(handler: web.RequestHandler, data: bytes) -> None:
        given[ledger.turn] += len(data)
        give(handler, data)

    monkeypatch.setattr(web.RequestHandler, "data_received", note)
    turns = asyncio.create_task(ledger.count_turns())
    heads = [request(target, "Transfer-Encoding: chunked", method=method, close=False) for method, target in BODIES]
    floods = [asyncio.create_task(talk(port_of(imgkeep), head + b"1\r\na\r\n" * 20_000)) for head in heads]
    hits = 0
    while not all(flood.done() for flood in floods):
        hit = await imgkeep.img(stored)
        assert (await hit.read(), hit.headers["Cache-Status"]) == (STORED, "imgkeep; hit")
        hits += 1
    turns.cancel()
    assert hits >= 10
    assert PARSE_ITERATION_BYTES <= max(given.values()) < PARSE_ITERATION_BYTES + PARSE_STEP_BYTES


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_arrives_whole_step_by_step(imgkeep: Imgkeep, *, chunked: bool) -> None:
    body = picture_of(300_000)
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
    """Answer with something that is no image."""
    await exchange.answer(b"The link has expired.")


FAILURES = {
    "no image": refused,
    "not whole": unframed(WORST[Format.SVG, "open elements"](200_000)),
    "too many steps": unframed(WORST[Format.SVG, "markup in an entity"](80_000)),
}


@pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES)
async def test_a_failed_fill_is_freed_without_the_garbage_collector(
    imgkeep: Imgkeep, origin: FakeOrigin, script: Callable[[Exchange], Awaitable[None]]
) -> None:
    """Its error knew by its traceback all that the fill held, and the fill knew the error."""
    gc.collect()
    gc.disable()
    try:
        for n in range(3):
            await asyncio.gather(*[read(imgkeep, origin.on(f"/{n}", script)) for _ in range(3)])
        await until(lambda: not [thing for thing in gc.get_objects() if isinstance(thing, (Fill, LocalDraft))])
    finally:
        gc.enable()


async def test_memory_returns_after_hostile_fills(tmp_path: Path, origin: FakeOrigin) -> None:
    """In a process of its own. Each of them took 134 MB once, and kept it."""
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
