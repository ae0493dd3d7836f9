"""
What an answer costs, in counts that no machine changes: system calls, SQL, calls of Python functions.

A count that grows is a regression, whatever a stopwatch says. Each limit is what was measured and a little room.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from imgkeep.web.access_log import ACCESS_LOG
from imgkeep.web.fastpath.protocol import FastConnection
from tests.support.image_requests import store_image
from tests.support.images import png_of
from tests.support.program import need_strace, serving
from tests.support.raw_http import request, target_of
from tests.support.system_calls import NUMBER, QUICK, SLACK, ask_often, counting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

TAIL = {"openat2", "fstat", "newfstatat", "preadv2", "close"}


@pytest.mark.parametrize(
    ("hot_bytes_max", "fields", "per_request"),
    [
        pytest.param("1000000", (), {"read": 1, "writes": 1, "openat2": 0, "preadv2": 0, "close": 0}, id="in memory"),
        pytest.param("0", (), {"read": 1, "writes": 1, "openat2": 1, "preadv2": 1, "close": 1}, id="in the page cache"),
        pytest.param(
            "1000000", ("If-None-Match: *",), {"read": 1, "writes": 1, "openat2": 0, "preadv2": 0}, id="not modified"
        ),
    ],
)
async def test_system_calls_of_a_hit(
    tmp_path: Path, origin: FakeOrigin, hot_bytes_max: str, fields: tuple[str, ...], per_request: dict[str, int]
) -> None:
    need_strace()
    url = origin.gives("/a.png", png_of(20_000))
    calls: dict[str, int] = {}
    async with serving(tmp_path / "data", store__hot_bytes_max=hot_bytes_max, log__access="false") as program:
        for _ in range(3):
            await program.img(url)
        data = request(target_of(url), *fields, close=False)
        await ask_often(program, data)
        async with counting(program, calls):
            await ask_often(program, data)
    calls["writes"] = sum(calls.get(name, 0) for name in ("write", "writev", "sendmsg", "sendto"))
    for name, limit in per_request.items():
        assert calls.get(name, 0) <= limit * NUMBER + SLACK, calls
    others = {name: n for name, n in calls.items() if name not in QUICK | TAIL | {"writes"} and n > SLACK}
    assert others == {}, "nothing else is asked of the system"


class Transport(asyncio.Transport):
    """As much of a transport as a quick answer needs."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Any] = []

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def write(self, data: Any) -> None:
        self.pieces.append(data)

    def writelines(self, list_of_data: Any) -> None:
        self.pieces += list_of_data

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default

    def close(self) -> None: ...
    def is_closing(self) -> bool:
        return False


async def test_function_calls_and_sql_of_a_hit(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(20_000))
    await store_image(imgkeep, url)
    await store_image(imgkeep, url)
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert server is not None
    connection, transport = server(), Transport()
    assert isinstance(connection, FastConnection)
    app = imgkeep.client.app
    assert app is not None
    object.__setattr__(app[ACCESS_LOG], "enabled", False)
    connection.connection_made(transport)
    while not connection._is_aiohttp_idle():  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    data = request(target_of(url), close=False)
    connection.data_received(data)
    calls = 0
    statements: list[Any] = []

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    def note(*facts: object) -> None:
        statements.append(facts[2])

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    sys.setprofile(count)
    try:
        for _ in range(100):
            connection.data_received(data)
    finally:
        sys.setprofile(None)
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert len(transport.pieces) == 202, "head and body, in one go"
    assert calls <= 100 * 15 + 2
    assert statements == []
    connection.connection_lost(None)
    await asyncio.sleep(0)
