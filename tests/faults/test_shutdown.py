"""The end of a process whose disk hangs: within the time that the systemd unit allows."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp

from imgkeep.bootstrap.exit_deadline import EXIT_TIMEOUT_S
from imgkeep.bootstrap.lifecycle import DRAIN_NOTICE_S, GRACE_S
from imgkeep.cluster.workers.control import KILL_TIMEOUT_S
from imgkeep.cluster.workers.supervisor import CHECK_INTERVAL_S
from tests.support.images import make_image
from tests.support.program import ROOT, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import FakeOrigin

HANGING = """
import os, signal, sys, time
from imgkeep.bootstrap import exit_deadline, lifecycle
from imgkeep.__main__ import main

def hang(_descriptor):
    print("hanging", file=sys.stderr, flush=True)
    time.sleep(600)

exit_deadline.EXIT_TIMEOUT_S, lifecycle.DRAIN_NOTICE_S, lifecycle.GRACE_S = 3.0, 0.1, 1
signal.signal(signal.SIGUSR1, lambda *_: setattr(os, "fsync", hang))
sys.exit(main(sys.argv[sys.argv.index("serve"):]))
"""
"""The program on a disk that hangs from SIGUSR1 on, and with a tenth of its patience."""


def test_every_deadline_is_below_that_of_the_unit() -> None:
    unit = (ROOT / "deploy" / "imgkeep.service").read_text()
    (allowed,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert DRAIN_NOTICE_S + GRACE_S < EXIT_TIMEOUT_S < KILL_TIMEOUT_S
    assert int(allowed) > KILL_TIMEOUT_S + CHECK_INTERVAL_S


async def test_hanging_disk_does_not_hold_up_the_end(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    async with serving(tmp_path / "data", under=(sys.executable, "-c", HANGING)) as program:
        program.process.send_signal(signal.SIGUSR1)
        asking = asyncio.create_task(program.img(url))
        await until(lambda: "hanging\n" in program.log)
        program.process.terminate()
        assert await asyncio.wait_for(program.process.wait(), 20) == 1
        with suppress(aiohttp.ClientError):
            await asking
        await until(lambda: any("shutdown timed out" in line for line in program.log))
    assert not list((tmp_path / "data" / "v1").rglob("*.json")), "no record of an image that is not durable"
