"""The facts of pictures: found behind the first answer, once a digest, and gone with a removal."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from imgkeep.core.errors import Busy, DeriveFailed, ImgkeepError, NotSupported, Removed, StorageError
from imgkeep.core.picture_facts import PictureFacts
from imgkeep.core.records import Digest, Doubt, Format, Record
from imgkeep.database import Database
from imgkeep.derived import facts as facts_module
from imgkeep.derived.facts import BATCH_MAX, FAILURE_TTL_S, QUEUE_MAX, FactsFinder, FactsLimits
from imgkeep.derived.messages import Facts, FactsJob, NotSmaller, Refused
from tests.support.images import make_image
from tests.support.stores import NOON, local_store, put_image, record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from imgkeep.derived.messages import Answer
    from imgkeep.storage.local.store import LocalStore

FACTS = PictureFacts(
    width=48, height=64, frames=1, has_alpha=False, orientation=6, colour="aa10ff", thumbhash="2gcKFIJ5eHg4h4eHdw=="
)
ANSWER = Facts(
    width=48, height=64, frames=1, has_alpha=False, orientation=6, colour="aa10ff", thumbhash="2gcKFIJ5eHg4h4eHdw=="
)


@dataclass
class Runner:
    """A runner whose answer the test chooses, and holds back until `gate` is set."""

    answer: Answer | BaseException = ANSWER
    jobs: list[FactsJob] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def run(self, job: FactsJob, source: int) -> Answer:
        assert source > 0
        self.jobs.append(job)
        await self.gate.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@dataclass
class Timer:
    """Monotonic seconds that a test moves."""

    now: float = 0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """A store, a database and a finder, whose task runs."""

    store: LocalStore
    database: Database
    runner: Runner
    finder: FactsFinder
    timer: Timer
    blocked: set[Digest]

    async def put(self, body: bytes, **changes: object) -> Record:
        record = replace(record_of(body), **changes)  # type: ignore[arg-type]
        return await put_image(self.store, body, record)

    async def known(self, record: Record) -> PictureFacts | None:
        return (await self.database.picture_facts.find([record.digest])).get(record.digest)

    async def in_record(self, record: Record) -> PictureFacts | None:
        found = await self.store.find(record.key)
        assert found is not None
        return found.picture


@asynccontextmanager
async def open_place(folder: Path, *, runs: bool = True, svg: bool = False, **options: bool) -> AsyncGenerator[Place]:
    store, runner, timer = local_store(folder / "store"), Runner(), Timer()
    await store.disk.open()
    database = Database(f"sqlite:///{folder}/facts.db", lambda: NOON)
    blocked: set[Digest] = set()
    finder = FactsFinder(
        store=store,
        spool=store.disk,
        table=database.picture_facts,
        run_job=runner.run,
        limits=FactsLimits(pixels_max=1000, frames_max=5, rasterise_svg=svg, timeout_s=3),
        blocked=blocked,
        timer=timer,
        **options,
    )

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    task = asyncio.create_task(finder.run(sleep)) if runs else None
    await asyncio.sleep(0)
    try:
        yield Place(store, database, runner, finder, timer, blocked)
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await finder.aclose()
        await database.aclose()
        await store.disk.aclose()


# --- in idle time


async def test_facts_of_a_stored_image_are_found(tmp_path: Path) -> None:
    async with open_place(tmp_path, in_records=True) as place:
        record = await place.put(make_image())
        place.finder.note_stored(record)
        await until(lambda: not place.finder.waiting)
        assert await place.known(record) == FACTS
        await place.finder.aclose()
        job = FactsJob(original_format="PNG", pixels_max=1000, frames_max=5, timeout_s=3)
        assert place.runner.jobs == [job]


async def test_record_on_the_disk_gets_its_facts(tmp_path: Path) -> None:
    async with open_place(tmp_path, runs=False, in_records=True) as place:
        record, doubted = await place.put(make_image()), await place.put(make_image(seed=1), **_doubted("b"))
        await place.finder.find(record)
        await place.finder.find(doubted)
        assert await place.in_record(record) == FACTS
        assert await place.in_record(doubted) is None, "another process may confirm it at this moment"


async def test_record_elsewhere_stays_as_it_is(tmp_path: Path) -> None:
    async with open_place(tmp_path, runs=False) as place:
        record = await place.put(make_image())
        await place.finder.find(record)
        assert await place.in_record(record) is None
        assert await place.known(record) == FACTS


async def test_record_that_was_replaced_or_removed_gets_no_facts(tmp_path: Path) -> None:
    async with open_place(tmp_path, runs=False, in_records=True) as place:
        old = await place.put(make_image())
        await put_image(place.store, make_image(seed=1), record_of(make_image(seed=1)), replaces=old.digest)
        assert await place.finder.find(old) == FACTS
        assert await place.in_record(old) is None


async def test_records_of_the_same_bytes_cost_one_job(tmp_path: Path) -> None:
    async with open_place(tmp_path, runs=False) as place:
        record = await place.put(make_image())
        other = await place.put(make_image(), key=record_of(b"", name="b").key)
        place.finder.note_stored(record)  # nothing takes it from the queue
        assert place.finder.waiting == 0
        for each in (record, other, replace(record, pixel_size=None)):
            assert await place.finder.find(each) == FACTS
        assert len(place.runner.jobs) == 1


async def test_known_facts_cost_no_job(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        await place.database.picture_facts.put({record.digest: FACTS})
        place.finder.note_stored(record)
        await until(lambda: not place.finder.waiting)
        place.finder.note_stored(record)
        assert place.finder.waiting == 0
        (complete,) = await place.finder.add_to([record])
        assert complete.picture == FACTS
        assert await place.finder.find(complete) == FACTS
        assert place.runner.jobs == []


async def test_full_queue_drops_images_and_counts_them(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        place.runner.gate.clear()
        for number in range(QUEUE_MAX + 3):
            place.finder.note_stored(replace(record_of(b"x"), digest=Digest(f"{number:064x}")))
        assert place.finder.waiting == QUEUE_MAX
        assert place.finder.dropped == 3


async def test_images_that_the_api_shows_come_into_the_queue_of_a_local_store(tmp_path: Path) -> None:
    async with open_place(tmp_path, in_records=True) as place:
        record = await place.put(make_image())
        assert await place.finder.add_to([record]) == [record]
        await until(lambda: len(place.runner.jobs) == 1)
        place.runner.gate.clear()
        many = [replace(record, digest=Digest(f"{number:064x}")) for number in range(QUEUE_MAX + 3)]
        await place.finder.add_to(many)
        assert place.finder.dropped == 0


async def test_images_that_the_api_shows_cost_a_bucket_no_request(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        assert await place.finder.add_to([record]) == [record]
        assert place.finder.waiting == 0


async def test_slow_database_delays_no_answer_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        await place.database.open()
        held, release = threading.Event(), threading.Event()
        monkeypatch.setattr(facts_module, "LOOKUP_TIMEOUT_S", 0.05)

        def hold(_: object) -> None:
            held.set()
            release.wait()

        busy = asyncio.create_task(place.database.engine.execute(hold))
        await until(held.is_set)
        assert await place.finder.add_to([record]) == [record]
        release.set()
        await busy
        assert await place.known(record) is None, "a lookup that was given up does not make the database fail"


async def test_setting_switches_the_idle_work_off_alone(tmp_path: Path) -> None:
    async with open_place(tmp_path, in_idle_time=False) as place:
        record = await place.put(make_image())
        place.finder.note_stored(record)
        assert place.finder.waiting == 0
        assert await place.finder.find(record) == FACTS


async def test_missing_extra_switches_the_idle_work_off(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        place.runner.answer = NotSupported("pip install it")
        for seed in range(3):
            place.finder.note_stored(await place.put(make_image(seed=seed), key=record_of(b"", name=str(seed)).key))
        await until(lambda: not place.finder.waiting)
        place.finder.note_stored(record_of(b"another"))
        assert place.finder.waiting == 0
        assert len(place.runner.jobs) == 1


@pytest.mark.parametrize("error", [Busy("later"), StorageError("the database failed")])
async def test_busy_process_is_asked_again(tmp_path: Path, error: ImgkeepError) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        place.runner.answer = error
        place.finder.note_stored(record)
        await until(lambda: place.runner.jobs)
        place.runner.answer = ANSWER
        await until(lambda: not place.finder.waiting)
        if isinstance(error, Busy):
            assert await place.known(record) == FACTS


async def test_unexpected_error_ends_no_loop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_place(tmp_path) as place:
        place.runner.answer = ZeroDivisionError()
        place.finder.note_stored(await place.put(make_image()))
        await until(lambda: not place.finder.waiting)
        place.runner.answer = ANSWER
        record = await place.put(make_image(seed=1), key=record_of(b"", name="b").key)
        place.finder.note_stored(record)
        await until(lambda: not place.finder.waiting)
    assert "facts of a picture failed unexpectedly" in caplog.text


# --- images without facts


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Refused(reason="unreadable", detail="it is damaged"), DeriveFailed),
        (Refused(reason="unsupported", detail="no HEIC here"), NotSupported),
        (DeriveFailed("it crashed"), DeriveFailed),
        (NotSmaller(), DeriveFailed),
        (msgspec.structs.replace(ANSWER, colour="red"), DeriveFailed),
    ],
)
async def test_failure_is_remembered(tmp_path: Path, answer: Answer | BaseException, error: type[ImgkeepError]) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        place.runner.answer = answer
        place.finder.note_stored(record)
        await until(lambda: not place.finder.waiting)
        for _ in range(3):
            with pytest.raises(error):
                await place.finder.find(record)
        assert len(place.runner.jobs) == 1
        place.timer.now += FAILURE_TTL_S + 1
        place.runner.answer = ANSWER
        assert await place.finder.find(record) == FACTS
        place.finder.note_stored(await place.put(make_image(seed=1), key=record_of(b"", name="b").key))
        await until(lambda: len(place.runner.jobs) == 3)  # one image alone does not switch the others off


async def test_svg_is_not_drawn_unless_configured(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(b"<svg/>", format=Format.SVG)
        place.finder.note_stored(record)
        assert place.finder.waiting == 0
        with pytest.raises(NotSupported, match=r"derive\.svg"):
            await place.finder.find(record)
        assert place.runner.jobs == []
    async with open_place(tmp_path / "drawn", svg=True) as place:
        record = await place.put(b"<svg/>", format=Format.SVG)
        assert await place.finder.find(record) == FACTS


async def test_missing_original_is_a_fault_of_the_store(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        record = record_of(b"never stored")
        with pytest.raises(StorageError, match="imgkeep verify"):
            await place.finder.find(record)
        place.finder.note_stored(record)
        await until(lambda: not place.finder.waiting)
        assert place.runner.jobs == []


# --- callers at the same time, and removals


async def test_callers_at_the_same_time_share_one_job(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        place.runner.gate.clear()
        place.finder.note_stored(record)
        tasks = [asyncio.create_task(place.finder.find(record)) for _ in range(5)]
        await until(lambda: place.runner.jobs)
        tasks[0].cancel()
        place.runner.gate.set()
        assert await asyncio.gather(*tasks[1:]) == [FACTS] * 4
        assert len(place.runner.jobs) == 1


async def test_removed_image_has_no_facts(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        place.runner.gate.clear()
        task = asyncio.create_task(place.finder.find(record))
        await until(lambda: place.runner.jobs)
        place.blocked.add(record.digest)
        await place.database.removals.block([record.digest])
        place.runner.gate.set()
        with pytest.raises(Removed):
            await task
        assert await place.known(record) is None


async def test_end_of_the_server_ends_a_search(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        record = await place.put(make_image())
        place.runner.gate.clear()
        task = asyncio.create_task(place.finder.find(record))
        await until(lambda: place.runner.jobs)
        await place.finder.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_batch_fits_into_the_queue() -> None:
    assert BATCH_MAX < QUEUE_MAX <= facts_module.SETTLED_MAX


def _doubted(name: str) -> dict[str, object]:
    record = record_of(b"", name=name).with_doubts(frozenset({Doubt.SIGNATURE}))
    return {"key": record.key, "identity": record.identity, "trust": record.trust}
