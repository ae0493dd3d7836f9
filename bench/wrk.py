"""Load by wrk, on the client's core, and what it says."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.servers import CLIENT_CORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.servers import Server

CONNECTIONS: Final = 64

UNIFORM: Final = """
local first, number, before, after = %d, %d, "%s", "%s"
math.randomseed(os.time())
request = function() return wrk.format("GET", before .. (first + math.random(0, number - 1)) .. after) end
"""
"""Any of `number` paths, all alike."""
IN_ORDER: Final = """
local next, before, after = %d, "%s", "%s"
request = function() next = next + 1 return wrk.format("GET", before .. (next - 1) .. after) end
"""
"""Each path once."""


class InvalidRun(Exception):
    """What was measured is not what was to be measured."""


@dataclass(frozen=True)
class Load:
    """What came of it. Latencies are milliseconds."""

    requests: int
    requests_per_s: float
    bytes_per_s: float
    p50_ms: float
    p99_ms: float


def load(  # noqa: PLR0913 - all but two by keyword
    server: Server,
    target: str,
    *,
    seconds: float,
    script: str = "",
    connections: int = CONNECTIONS,
    cores: Sequence[int] = (CLIENT_CORE,),
) -> Load:
    """
    Ask for `target`, or for what a script says, as fast as the server answers.

    Raises:
        InvalidRun: Something was not answered, or not with 200.
    """
    url = f"http://127.0.0.1:{server.port}{target}"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = [
            "taskset",
            "-c",
            ",".join(map(str, cores)),
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "--latency",
        ]
        command += ["-s", file.name] if script else []
        done = subprocess.run(
            [*command, url],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
            env={"PATH": os.environ.get("PATH", "")},  # noqa: TID251
        )
    return read(done.stdout)


def read(said: str) -> Load:
    """
    Read what wrk prints.

    Raises:
        InvalidRun: It speaks of errors.
    """
    for trouble in ("Non-2xx", "Socket errors"):
        if trouble in said:
            line = next(line for line in said.splitlines() if trouble in line)
            raise InvalidRun(line.strip())
    requests = re.search(r"([0-9]+) requests in", said)
    rate = re.search(r"Requests/sec: +([0-9.]+)", said)
    transfer = re.search(r"Transfer/sec: +([0-9.]+)([KMG]?)B", said)
    if requests is None or rate is None or transfer is None or requests[1] == "0":
        raise InvalidRun("wrk counted nothing")
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[transfer[2]]
    return Load(
        int(requests[1]), float(rate[1]), float(transfer[1]) * scale, _latency(said, "50"), _latency(said, "99")
    )


def _latency(said: str, percentile: str) -> float:
    found = re.search(rf"{percentile}%\s+([0-9.]+)(us|ms|s)\b", said)
    return 0 if found is None else float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000}[found[2]]
