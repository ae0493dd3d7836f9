"""The process as a whole: signals, a blocked loop, clocks that jump, and what many slow readers cost (P1 to P3, C1)."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.lifecycle import DRAIN_NOTICE_S
from imgkeep.bootstrap.platform import Platform
from tests.support.fakes import Timer
from tests.support.image_requests import store_image
from tests.support.images import make_image, png_of
from tests.support.origins import gated_body
from tests.support.raw_http import ask, request, split, talk, target_of
from tests.support.single_process import Running, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]


async def test_sigterm_under_load_finishes_running_requests(tmp_path: Path, origin: FakeOrigin) -> None:
    body = png_of(2_000_000)
    gate = asyncio.Event()
    url = origin.on("/slow.png", gated_body(body, gate, ahead=1_000_000))
    orphan = origin.on("/orphan.png", gated_body(body, gate, ahead=1_000_000))
    stored = origin.gives("/stored.png", png_of(50_000))
    async with serving(tmp_path / "run") as running:
        assert split(await talk(running.port, request(target_of(stored)))).status == 200
        clients = [asyncio.create_task(talk(running.port, request(target_of(url)), timeout_s=60)) for _ in range(10)]
        leaver = asyncio.create_task(talk(running.port, request(target_of(orphan))))
        await until(lambda: origin.asked("/slow.png") + origin.asked("/orphan.png") == 2, within_s=20)
        leaver.cancel()
        load_ended = asyncio.Event()
        answered: list[int] = []

        async def load() -> None:
            while not load_ended.is_set():
                with suppress(OSError):
                    data = await talk(running.port, request(target_of(stored)))
                    if data:
                        answered.append(split(data).status)

        loads = [asyncio.create_task(load()) for _ in range(4)]
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            answer = split(await talk(running.port, request("/readyz")))
            return answer.status == 503 and json.loads(answer.body)["status"] == "draining"

        await until(draining, within_s=20)
        assert split(await talk(running.port, request("/healthz"))).status == 200
        assert split(await talk(running.port, request(target_of(stored)))).status == 200

        async def closed() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            except ConnectionRefusedError:
                return True
            writer.close()
            return False

        await until(closed, within_s=20)
        assert time.monotonic() - start >= DRAIN_NOTICE_S * 0.9
        assert running.process.returncode is None
        load_ended.set()
        await asyncio.gather(*loads)
        gate.set()
        answers = [split(data) for data in await asyncio.gather(*clients)]
        assert {(answer.status, answer.body == body) for answer in answers} == {(200, True)}
        assert await running.ended(within_s=10) == 0
    assert len(answered) > 4
    assert set(answered) == {200}
    assert not list((running.folder / "partial").iterdir())
    assert len(list(running.folder.glob("v1/records/*/*"))) == 3
    assert running.log[-1]["message"] == "stopped"
    assert [record for record in running.log if record["level"] not in {"info", "debug"}] == []


async def test_second_signal_ends_the_notice(tmp_path: Path) -> None:
    async with serving(tmp_path / "run") as running:
        running.process.send_signal(signal.SIGTERM)
        await until(lambda: any(record["message"] == "draining" for record in running.log), within_s=20)
        running.process.send_signal(signal.SIGINT)
        assert await running.ended(within_s=20) == 0
        wanted = ["draining", "drain notice cut short", "stopped"]
        assert [record["message"] for record in running.log if record["message"] in wanted] == wanted


async def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path / "run") as running:
        pairs = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(20)]
        for _, writer in pairs[:10]:
            writer.write(request("/healthz", close=False))
        for reader, _ in pairs[:10]:
            await reader.readuntil(b"ok\n")
        for _ in range(2):
            running.process.send_signal(signal.SIGTERM)
            await until(lambda: any(record["message"] == "draining" for record in running.log), within_s=20)
        assert await running.ended(within_s=20) == 0, "an idle connection is waited for three times as long"
        for _, writer in pairs:
            writer.close()


READERS = 200
READERS_BYTES_MAX = 60_000_000
"""
For 200 readers of one 5 MB image: a copy each would be 1 GB. Measured: 20 to 45 MB, 75 kB for each (a connection, a
task, a piece of 32 KB) and the rest once, for threads that were not needed before. (`bench/` measures 2,000 readers.)
"""


def listener(port: int) -> socket.socket:
    """Return a connection that takes a little and then waits."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock


@pytest.mark.parametrize("stored", [False, True], ids=["while it is filled", "as a hit"])
async def test_slow_readers_cost_no_copy(tmp_path: Path, origin: FakeOrigin, stored: bool) -> None:  # noqa: FBT001 - a table
    body = png_of(5_000_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=4_000_000))
    loop = asyncio.get_running_loop()
    async with serving(tmp_path / "run") as running:
        warm = origin.gives("/warm.png", png_of(5_000_000, seed=9))
        assert split(await talk(running.port, request(target_of(warm)))).status == 200
        if stored:
            gate.set()
            assert split(await talk(running.port, request(target_of(url)))).body == body
        before = running.rss()
        socks = [await asyncio.to_thread(listener, running.port) for _ in range(READERS)]
        try:
            for sock in socks:
                sock.setblocking(False)
                await loop.sock_sendall(sock, request(target_of(url)))
            received = [bytearray() for _ in socks]
            for sock, data in zip(socks, received, strict=True):
                data.extend(await loop.sock_recv(sock, 1000))
            assert split(await talk(running.port, request("/healthz"))).status == 200
            most = running.rss() - before
            gate.set()
            # One of them reads on to the end; a few take a part.
            for sock, data in zip(socks[:20], received[:20], strict=True):
                while len(data) < 300_000:
                    data.extend(await loop.sock_recv(sock, 65_536))
            while piece := await loop.sock_recv(socks[0], 65_536):
                received[0] += piece
            assert split(bytes(received[0])).body == body
            most = max(most, running.rss() - before)
        finally:
            for sock in socks:
                sock.close()
        assert most < READERS_BYTES_MAX
        await until(_all_left(running), within_s=10)
    assert origin.asked("/a.png") == 1


def _all_left(running: Running) -> Callable[[], Awaitable[bool]]:
    async def left() -> bool:
        page = (await talk(running.port, request("/metrics"))).decode()
        counts = re.findall(r'imgkeep_requests_total\{.*outcome="client_left".*\} (\S+)', page)
        return sum(map(float, counts)) >= READERS - 1

    return left


async def test_event_loop_stays_free_for_a_large_image(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(20_000_000)

    async def script(exchange: Exchange) -> None:
        # Nothing says where it ends, so the whole image has to be checked.
        await exchange.send_head("Connection: close")
        await exchange.send(body)
        exchange.finish()

    url = origin.on("/a.png", script)
    lags: list[float] = []

    async def watch() -> None:
        while True:
            # Processor time of this thread: other programs may have taken the rest.
            start = time.thread_time()
            await asyncio.sleep(0.005)
            lags.append(time.thread_time() - start)

    watching = asyncio.create_task(watch())
    answer = await imgkeep.img(url)
    received = 0
    async for chunk in answer.content.iter_any():
        received += len(chunk)
    watching.cancel()
    assert received == len(body)
    assert len(lags) > 5
    assert max(lags) < 0.25
    assert imgkeep.files("objects")[0].stat().st_size == len(body)


async def test_clock_that_jumps_back_changes_no_answer(start: Start, origin: FakeOrigin) -> None:
    now = datetime(2026, 11, 22, 10, tzinfo=UTC)
    timer = Timer()
    imgkeep = await start(platform=Platform(clock=lambda: now, timer=timer))
    url = origin.gives("/a.png", make_image())
    dead = origin.url("/dead.png")
    first = await store_image(imgkeep, url)
    assert (await ask(imgkeep, target_of(dead))).status == 404
    now -= timedelta(hours=1)
    hit = await ask(imgkeep, target_of(url))
    assert (hit.status, hit.body, hit.headers["etag"]) == (200, first.body, first.headers["etag"])
    other = origin.gives("/b.png", make_image(seed=1))
    await store_image(imgkeep, other)
    # Remembered failures go by the monotonic timer.
    assert (await ask(imgkeep, target_of(dead))).status == 404
    assert origin.asked("/dead.png") == 1
    timer.seconds += 119
    assert (await ask(imgkeep, target_of(dead))).status == 404
    assert origin.asked("/dead.png") == 1
    timer.seconds += 1
    assert (await ask(imgkeep, target_of(dead))).status == 404
    assert origin.asked("/dead.png") == 2
    # And so do durations: none is negative.
    page = (await ask(imgkeep, "/metrics")).body.decode()
    assert not re.search(r" -\d", page)
    stamps = sorted(json.loads(path.read_bytes())["stored_at"] for path in imgkeep.files("records"))
    assert stamps == ["2026-11-22T09:00:00Z", "2026-11-22T10:00:00Z"]


async def test_retry_after_by_date_is_never_negative(start: Start, origin: FakeOrigin) -> None:
    now = datetime(2026, 11, 22, 10, tzinfo=UTC)
    imgkeep = await start(platform=Platform(clock=lambda: now))
    date = "Sun, 22 Nov 2026 09:00:00 GMT"
    url = origin.gives("/a.png", b"", status="503 Busy", headers={"Retry-After": date})
    answer = await ask(imgkeep, target_of(url))
    assert (answer.status, answer.headers["retry-after"]) == (502, "0")
