"""Derive processes in the place of real ones, which answer as a test says, and a picture service on a folder."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from imgkeep.config.schema import Derive
from imgkeep.core.errors import Busy
from imgkeep.core.records import OWN
from imgkeep.derived.messages import Derived, DeriveJob
from imgkeep.derived.picture_cache import PictureCache
from imgkeep.derived.picture_sharing import PictureSharing
from imgkeep.derived.picture_store import PictureStore
from imgkeep.derived.pictures import DerivedPictures
from imgkeep.derived.processes import DeriveProcesses
from imgkeep.observability.derive_metrics import DeriveMetrics
from imgkeep.observability.metrics import Metrics
from tests.support.picture_program import picture_of
from tests.support.stores import local_store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from imgkeep.core.records import Client, Digest
    from imgkeep.derived.messages import Answer, Job
    from imgkeep.storage.local.store import LocalStore


class ScriptedProcesses(DeriveProcesses):
    """
    Write a picture that names the options of its job (`picture_program.picture_of`).

    Attributes:
        jobs: The jobs so far, with the bytes of their originals.
        answers: By file name: what happens in the place of a picture.
        gate: What each job waits for; `None`: nothing.
        has_places: Whether a job finds a place in the queue.
        gets_place: Whether it does a moment later.
    """

    def __init__(self) -> None:
        super().__init__(Derive(), {}, DeriveMetrics(Metrics()))
        self.jobs: list[tuple[DeriveJob, bytes]] = []
        self.answers: dict[str, Answer | Exception] = {}
        self.gate: asyncio.Event | None = None
        self.clients: list[Client] = []
        self.has_places = True
        self.gets_place = False

    def has_room(self, client: Client) -> bool:
        del client
        return self.has_places

    def require_room(self, client: Client) -> None:
        if not self.has_room(client):
            raise Busy("too many pictures wait to be made")

    async def sleep(self, _seconds: float) -> None:
        self.has_places = self.gets_place

    async def run(self, job: Job, source: int, output: int | None = None, client: Client = OWN) -> Answer:
        assert isinstance(job, DeriveJob)
        assert output is not None
        self.jobs.append((job, os.pread(source, 1_000_000, 0)))
        self.clients.append(client)
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers.get(f"{job.stem}.{job.format}")
        if isinstance(answer, Exception):
            raise answer
        picture = picture_of(job.stem, job.format)
        os.pwrite(output, picture, 0)
        return answer or Derived(size=len(picture), width=1, height=1)


class PictureWorld:
    """A store, its pictures, and the processes that make them."""

    def __init__(self, folder: Path, timer: Callable[[], float]) -> None:
        self.store: LocalStore = local_store(folder, memory_bytes_max=1_000_000)
        self.cache = PictureCache(self.store.disk, 10_000_000)
        self.processes = ScriptedProcesses()
        self.blocked: set[Digest] = set()
        self.cache.blocked = self.blocked
        self.pictures = DerivedPictures(
            processes=self.processes,
            cache=self.cache,
            picture_store=PictureStore(None, self.cache, timer=timer, sleep=asyncio.sleep),
            sharing=PictureSharing(self.cache, None, None),
            originals=self.store,
            spool=self.store.disk,
            settings=Derive(),
            blocked=self.blocked,
            timer=timer,
            sleep=self.processes.sleep,
            draw=lambda: 0.5,
        )


@asynccontextmanager
async def picture_world(folder: Path, timer: Callable[[], float] = lambda: 0.0) -> AsyncGenerator[PictureWorld]:
    """Open a `PictureWorld`."""
    world = PictureWorld(folder, timer)
    await world.store.disk.open()
    try:
        yield world
    finally:
        await world.pictures.aclose()
        await world.processes.aclose()
        await world.store.disk.aclose()
