"""Derive processes for tests: of the real program, or of one that misbehaves."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from imgkeep.config.schema import Derive
from imgkeep.core.records import OWN, Client, Format
from imgkeep.derived.derive_process import COMMAND
from imgkeep.derived.messages import DeriveJob, FactsJob
from imgkeep.derived.processes import DeriveProcesses
from imgkeep.observability.derive_metrics import DeriveMetrics
from imgkeep.observability.metrics import Metrics
from tests.support import derive_program
from tests.support.program import cannot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from imgkeep.derived.messages import Answer, Job

PROGRAM = str(Path(derive_program.__file__).resolve())
MIBIBYTES = 1024 * 1024


@dataclass
class Pool:
    """Derive processes, and what they wrote."""

    processes: DeriveProcesses
    metrics: Metrics
    outputs: list[bytes] = field(default_factory=list)

    async def run(
        self,
        stem: str,
        client: Client = OWN,
        *,
        source: bytes = b"original",
        original: Format = Format.PNG,
        picture: Format | None = Format.WEBP,
    ) -> Answer:
        """Have a picture made of `source`, or, without a format, its facts found."""
        job: Job = FactsJob(original_format=original.name, pixels_max=100_000_000, frames_max=500, rasterise_svg=True)
        if picture is not None:
            job = DeriveJob(
                stem=stem,
                format=picture.name,
                original_format=original.name,
                pixels_max=100_000_000,
                frames_max=500,
                rasterise_svg=True,
            )
        with TemporaryFile() as source_file, TemporaryFile() as output:
            source_file.write(source)
            source_file.flush()
            return await self.run_on(job, source_file.fileno(), output.fileno(), client)

    async def run_on(self, job: Job, source: int, output: int, client: Client = OWN) -> Answer:
        makes = isinstance(job, DeriveJob)
        answer = await self.processes.run(job, source, output if makes else None, client)
        if makes:
            self.outputs.append(os.pread(output, 65_536, 0))
        return answer

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"imgkeep_derive_{name}_total", labels) or 0


@asynccontextmanager
async def open_pool(start: str = "ok", **settings: float) -> AsyncGenerator[Pool]:
    """Open processes of the program that misbehaves; `start` says how they start."""
    async with _open((sys.executable, "-P", PROGRAM, start), settings) as pool:
        yield pool


@asynccontextmanager
async def open_real_pool(**settings: float) -> AsyncGenerator[Pool]:
    """Open processes of the real program, or skip the test."""
    if find_spec("pyvips") is None:
        cannot("pyvips is not installed (pip install 'imgkeep[derive]')")
    async with _open(COMMAND, settings) as pool:
        yield pool


@asynccontextmanager
async def _open(command: Sequence[str], settings: dict[str, float]) -> AsyncGenerator[Pool]:
    metrics = Metrics()
    section = Derive(**({"processes": 1, "memory_bytes_max": 512 * MIBIBYTES} | settings))  # type: ignore[arg-type]
    processes = DeriveProcesses(
        section,
        dict(os.environ),  # noqa: TID251 - what the tests run in
        DeriveMetrics(metrics),
        command=command,
    )
    try:
        yield Pool(processes, metrics)
    finally:
        await processes.aclose()
