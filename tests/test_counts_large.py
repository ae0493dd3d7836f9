"""What a hit on a large object costs: it is sent from its map, which one look at its file guards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.images import png_of
from tests.support.program import need_strace, serving
from tests.support.raw_http import request, target_of
from tests.support.system_calls import NUMBER, QUICK, SLACK, ask_often, counting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import FakeOrigin

WRITES = ("write", "writev", "sendmsg", "sendto")
FSTATS = ("fstat", "newfstatat")


@pytest.mark.parametrize(
    ("fields", "writes", "fstats"),
    [
        # The client may take it in more than one piece.
        pytest.param((), 3, 1, id="whole"),
        pytest.param(("If-None-Match: *",), 1, 1, id="not modified"),
    ],
)
async def test_system_calls_of_a_hit_on_a_large_object(
    tmp_path: Path, origin: FakeOrigin, fields: tuple[str, ...], writes: int, fstats: int
) -> None:
    need_strace()
    url = origin.gives("/a.png", png_of(200_000))
    calls: dict[str, int] = {}
    async with serving(tmp_path / "data", log__access="false") as program:
        for _ in range(3):
            await program.img(url)
        data = request(target_of(url), *fields, close=False)
        await ask_often(program, data)
        async with counting(program, calls):
            await ask_often(program, data)
    assert sum(calls.get(name, 0) for name in WRITES) <= writes * NUMBER + SLACK, calls
    assert sum(calls.get(name, 0) for name in FSTATS) <= fstats * NUMBER + SLACK, calls
    assert calls.get("read", 0) <= NUMBER + SLACK, calls
    others = {name: n for name, n in calls.items() if name not in {*QUICK, *FSTATS, "epoll_ctl"} and n > SLACK}
    assert others == {}, "nothing is opened, mapped or read from a file, and no thread is woken"
    assert origin.asked("/a.png") == 1
