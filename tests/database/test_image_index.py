"""The image index: a view of the records that finds, counts, pages, and can be filled anew."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import decode_record, encode_record
from imgkeep.core.records import Digest, Doubt, Format, Key, PixelSize, Provenance, Record
from imgkeep.database.advisory_locks import INDEX_LOCK
from imgkeep.database.image_index import UNWRITTEN_MAX
from imgkeep.database.image_rows import to_record, to_row
from imgkeep.database.schema import images, metadata, select_records
from tests.support.database import make_records, query, walk
from tests.support.stores import NOON, record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator
    from pathlib import Path

    from imgkeep.database import Database, ImageIndex
    from tests.support.clock import FakeClock

    Connect = Callable[..., Database]

hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)
times = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
    lambda time: time.replace(microsecond=0)
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=60)
any_record = st.builds(
    Record,
    key=hexes.map(Key),
    identity=st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8192),
    digest=hexes.map(Digest),
    format=st.sampled_from(Format),
    size=st.integers(1, 2**53),
    pixel_size=st.none() | st.builds(PixelSize, st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
    etag=hexes.map(lambda text: f'"{text[:32]}"'),
    stored_at=times,
    provenance=st.builds(
        Provenance, host=texts, provider=st.none() | texts, temporary=st.booleans(), expires_at=st.none() | times
    ),
)

# --- records in, records out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=any_record)
def test_record_survives_the_round_trip(record: Record, memory: sa.Engine) -> None:
    with memory.begin() as connection:
        connection.execute(sa.delete(images))
        connection.execute(sa.insert(images), {**to_row(record), "indexed_at": 0})
        assert to_record(connection.execute(select_records("")).one()) == record
    assert decode_record(encode_record(record)) == record


@pytest.fixture(scope="module")
def memory() -> Iterator[sa.Engine]:
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


async def test_find_returns_the_newest_record(index: ImageIndex) -> None:
    record = record_of(b"one")
    assert await index.find(record.key) is None
    await index.put(record)
    assert await index.find(record.key) == record
    newer = record_of(b"two", etag='"two"')
    await index.put(newer)
    assert await index.find(record.key) == newer
    assert await index.page(limit=10) == [newer]


@pytest.mark.parametrize("form", Format)
async def test_every_format_is_stored(connect: Connect, tmp_path: Path, form: Format) -> None:
    index = connect(f"sqlite:///{tmp_path}/imgkeep.db").image_index
    record = replace(
        record_of(b"x"),
        format=form,
        pixel_size=None,
        provenance=replace(record_of(b"x").provenance, provider=None, expires_at=None),
    )
    await index.put(record)
    await index.flush()
    assert await index.find(record.key) == record


async def test_pages_are_newest_first_and_have_each_image_once(index: ImageIndex) -> None:
    records = make_records(23)
    for record in records:
        await index.put(record)
    found: list[Record] = []
    after: tuple[int, str] | None = None
    while page := await index.page(limit=5, after=after):
        assert len(page) <= 5
        found += page
        after = (int(page[-1].stored_at.timestamp()), page[-1].key)
    assert found == sorted(records, key=lambda record: (record.stored_at, record.key), reverse=True)


async def test_totals_count_equal_bytes_once(index: ImageIndex) -> None:
    empty = await index.count()
    assert (empty.images, empty.objects, empty.object_bytes, empty.oldest, empty.newest) == (0, 0, 0, None, None)
    assert empty.hosts == ()
    records = make_records(25)
    await index.rebuild(walk(records))
    totals = await index.count()
    assert (totals.images, totals.objects) == (25, 3)
    assert totals.object_bytes == sum({record.digest: record.size for record in records}.values())
    assert (totals.oldest, totals.newest) == (NOON, NOON + timedelta(seconds=12))
    assert totals.hosts == (("host-0.example", 9), ("host-1.example", 8), ("host-2.example", 8))


# --- rebuild


async def test_rebuild_adds_all_and_drops_vanished_records(index: ImageIndex, clock: FakeClock) -> None:
    records = make_records(1203)  # more than two transactions
    assert not index.complete
    assert await index.rebuild(walk(records)) == 1203
    assert index.complete
    clock.advance(10)
    assert await index.rebuild(walk(records[:1000])) == 1000
    assert {record.key for record in await index.page(limit=2000)} == {record.key for record in records[:1000]}


async def test_rebuild_drops_many_rows_in_several_steps(
    index: ImageIndex, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgkeep.database.image_index.DELETED_MAX", 10)
    records = make_records(200)
    await index.rebuild(walk(records))
    clock.advance(10)
    await index.rebuild(walk(records[:70]))
    assert {record.key for record in await index.page(limit=200)} == {record.key for record in records[:70]}


async def test_many_rows_are_counted_by_a_sample(
    connect: Connect, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = connect(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))
    index = database.image_index
    await index.rebuild(walk(make_records(4000)))
    query(database, "ANALYZE images")
    exact = await index.count()
    assert (exact.images, exact.objects, exact.is_estimate) == (4000, 400, False)
    monkeypatch.setattr("imgkeep.database.image_counts.EXACT_MAX", 1000)
    monkeypatch.setattr("imgkeep.database.image_counts.COUNTED_MIN", 1000)
    monkeypatch.setattr("imgkeep.database.image_counts.READ_MIN", 1000)
    totals = await index.count()
    assert totals.is_estimate
    assert totals.images == pytest.approx(4000, rel=0.1)
    assert totals.images % 4 == 0, "one row in four is read"
    assert totals.objects == pytest.approx(400, rel=0.3)
    assert totals.object_bytes == pytest.approx(exact.object_bytes, rel=0.3)
    assert sum(number for _, number in totals.hosts) == pytest.approx(4000, rel=0.1)
    assert (totals.oldest, totals.newest) == (exact.oldest, exact.newest)
    assert (await index.count_images())[0] == totals.images


async def test_rebuild_keeps_rows_of_concurrent_fills(
    index: ImageIndex, connect: Connect, url: str, clock: FakeClock
) -> None:
    old, walked, meanwhile = (record_of(b"x", name=name) for name in ("old", "walked", "meanwhile"))
    await index.put(old)
    assert (await index.count()).images == 1
    clock.advance(10)
    walking, go_on = asyncio.Event(), asyncio.Event()

    async def wait_midway() -> AsyncIterator[Record]:
        yield walked
        walking.set()
        await go_on.wait()

    # Another process writes a fill's row: here a second connection to the same database.
    rebuilding = asyncio.create_task(index.rebuild(wait_midway()))
    await walking.wait()
    other = connect(url).image_index
    await other.put(meanwhile)
    await other.flush()
    go_on.set()
    assert await rebuilding == 1
    assert {record.key for record in await other.page(limit=10)} == {walked.key, meanwhile.key}


async def test_rebuild_survives_a_clock_that_is_set_back(index: ImageIndex, clock: FakeClock) -> None:
    records = make_records(600)

    async def set_clock_back() -> AsyncIterator[Record]:
        for number, record in enumerate(records):
            if number == 550:
                clock.advance(-3600)
            yield record

    await index.rebuild(set_clock_back())
    assert (await index.count()).images == 600


async def test_failed_walk_drops_nothing(index: ImageIndex, clock: FakeClock) -> None:
    records = make_records(10)
    await index.rebuild(walk(records))
    clock.advance(10)

    async def fail() -> AsyncIterator[Record]:
        yield records[0]
        raise StorageError("the disk of the store failed: Permission denied")

    with pytest.raises(StorageError, match="Permission denied"):
        await index.rebuild(fail())
    assert (await index.count()).images == 10


async def test_failed_first_walk_is_not_complete(index: ImageIndex) -> None:
    async def fail() -> AsyncIterator[Record]:
        yield record_of(b"x")
        raise StorageError("the disk of the store failed: Permission denied")

    with pytest.raises(StorageError, match="Permission denied"):
        await index.rebuild(fail())
    assert not index.complete


async def test_complete_survives_a_restart(connect: Connect, url: str) -> None:
    await connect(url).image_index.rebuild(walk([]))
    second = connect(url)
    await second.open()
    assert second.image_index.complete


# --- records that wait to be written


async def test_unwritten_records_are_bounded(connect: Connect, tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path}/place/imgkeep.db")
    index = database.image_index
    await index.rebuild(walk([]))
    assert index.complete
    (tmp_path / "place").rename(tmp_path / "away")
    (tmp_path / "place").write_bytes(b"a file where a folder should be")
    with pytest.raises(StorageError):
        await database.check()
    for record in make_records(UNWRITTEN_MAX):
        await index.put(record)
    assert index.complete
    await index.put(record_of(b"x", name="one too many"))
    assert not index.complete, "a reindex finds the dropped record"
    (tmp_path / "place").unlink()
    (tmp_path / "away").rename(tmp_path / "place")
    await database.check()
    assert (await index.count()).images == UNWRITTEN_MAX
    assert not index.complete
    await index.rebuild(walk(make_records(3)))
    assert index.complete


async def test_end_of_a_process_reports_images_that_the_index_lacks(
    connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "place").write_bytes(b"a file where a folder should be")
    database = connect(f"sqlite:///{tmp_path}/place/imgkeep.db")
    await database.image_index.put(record_of(b"x"))
    await database.aclose()
    assert [(record.message, vars(record).get("images")) for record in caplog.records] == [
        ("image index lacks images; `imgkeep reindex` adds them", 1)
    ]


async def test_two_processes_write_one_database(database: Database, connect: Connect, url: str) -> None:
    index, other = database.image_index, connect(url).image_index
    mine, theirs = make_records(60)[:30], make_records(60)[30:]

    async def write(to: ImageIndex, records: list[Record]) -> None:
        for record in records:
            await to.put(record)
            assert await to.find(record.key) == record

    await asyncio.gather(write(index, mine), write(other, theirs), index.rebuild(walk(mine)))
    await asyncio.gather(index.flush(), other.flush())
    assert (await other.count()).images == 60
    for record in (*mine, *theirs):
        assert await index.find(record.key) == await other.find(record.key) == record


# --- plans and rows


async def test_start_scans_no_rows(connect: Connect, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/imgkeep.db"
    first = connect(url)
    await first.image_index.rebuild(walk([record_of(b"x")]))
    await first.aclose()
    query(
        first,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) "
        "INSERT INTO images SELECT printf('%064x', i), 'https://a.example/' || i, 'a.example', printf('%064x', i), "
        "'png', 100, 1, 1, '\"e\"', i, NULL, 0, NULL, 1, NULL, NULL, NULL, NULL FROM n",
    )
    query(first, "ANALYZE")
    statements: list[tuple[str, Any]] = []

    def listen(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        database = connect(url)
        index = database.image_index
        await database.open()
        await database.check()
        assert index.complete, "no reindex walks the store either"
        await index.find(Key(f"{77:064x}"))
        await index.page(limit=500)
        page = await index.page(limit=500, after=(50_000, "f" * 64))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)
    assert page[0].stored_at.timestamp() == 50_000
    plans = _explain(url, statements)
    about_images = [plan for plan in plans if "images" in plan]
    assert len(about_images) >= 3
    # The first page reads its index in order, and stops at the limit.
    scans = [plan for plan in about_images if plan.startswith("SCAN") and "images_by_second" not in plan]
    assert scans == []
    assert not any("TEMP B-TREE" in plan for plan in plans)


def _explain(url: str, statements: list[tuple[str, Any]]) -> list[str]:
    plans: list[str] = []
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        for statement, parameters in statements:
            if statement.lstrip().upper().startswith(("SELECT", "DELETE")):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters or ())
                plans += [row.detail for row in rows]
    engine.dispose()
    return plans


@pytest.mark.parametrize(
    "change", ["extension = 'exe'", "stored_at = 9223372036854775807", "stored_at = 'noon'"], ids=str
)
async def test_damaged_row_is_a_fault_until_a_rebuild(change: str, connect: Connect, tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    index, record = database.image_index, record_of(b"x")
    await index.put(record)
    assert (await index.count()).images == 1
    query(database, f"UPDATE images SET {change}")
    with pytest.raises(StorageError, match="reindex"):
        await index.find(record.key)
    await index.rebuild(walk([record]))
    assert await index.find(record.key) == record


# --- several nodes


@pytest.fixture
async def shared(postgresql_url: str, connect: Connect) -> tuple[ImageIndex, ImageIndex, list[Digest]]:
    """Give the image indexes of two nodes that share a database, and what the second one is told of blocks."""
    url = postgresql_url.replace("postgresql:", "postgresql+psycopg:")
    first, second = connect(url), connect(url)
    await first.open()
    told: list[Digest] = []

    async def learn(digests: Collection[Digest]) -> None:
        told.extend(digests)

    second.image_index.when_blocked(learn)
    return first.image_index, second.image_index, told


async def test_record_before_a_removal_is_found_by_it(shared: tuple[ImageIndex, ImageIndex, list[Digest]]) -> None:
    first, second, told = shared
    record = record_of(b"an image")
    await second.put(record)
    await second.flush()
    assert await first.block(record.digest) == [record.key]
    assert told == []


async def test_record_after_a_removal_is_told_of_it(shared: tuple[ImageIndex, ImageIndex, list[Digest]]) -> None:
    first, second, told = shared
    record, other = record_of(b"an image"), record_of(b"another image", name="b")
    assert await first.block(record.digest) == []
    for each in (record, other):
        await second.put(each)
    await second.flush()
    assert told == [record.digest]
    assert await first.block(record.digest) == [record.key], "a repeated removal finds it"


async def test_record_during_a_removal_waits_for_it(
    shared: tuple[ImageIndex, ImageIndex, list[Digest]], postgresql_url: str
) -> None:
    _, second, told = shared
    record = record_of(b"an image")
    await second.keys_of(record.digest)  # it is connected
    async with await psycopg.AsyncConnection.connect(postgresql_url) as removal:
        await removal.execute("SELECT pg_advisory_xact_lock(%s)", (INDEX_LOCK,))
        await second.put(record)
        flushing = asyncio.create_task(second.flush())
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

        async def is_waiting() -> bool:
            rows = await (await removal.execute(waiting)).fetchone()
            return rows == (1,)

        await until(is_waiting)
        await removal.execute("INSERT INTO refused (digest) VALUES (%s)", (record.digest,))
        assert await (await removal.execute("SELECT key FROM images")).fetchall() == []
        await removal.commit()
        await flushing
    assert told == [record.digest]


async def test_removal_in_a_file_of_one_node_blocks_nothing(tmp_path: Path, connect: Connect) -> None:
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    record = record_of(b"an image")
    await database.image_index.put(record)
    assert await database.image_index.block(record.digest) == [record.key]
    assert await database.removals.list_blocked() == []


async def test_adopted_record_replaces_no_row_that_stands_for_every_link(index: ImageIndex) -> None:
    old, new = record_of(b"an image"), record_of(b"another image", etag='"new"')
    await index.put(new)
    await index.flush()
    await index.put(old, is_adopted=True)  # read from the store before `new` was there, and written after it
    assert await index.find(new.key) == new
    await index.flush()
    assert await index.find(new.key) == new
    doubted = new.with_doubts(frozenset({Doubt.UNSIGNED}))
    await index.put(doubted)
    await index.flush()
    await index.put(new, is_adopted=True)
    await index.flush()
    assert await index.find(new.key) == new, "a lookup of such a row asks the store in any case"


async def test_record_that_another_process_may_have_replaced_is_written_as_adopted(
    shared: tuple[ImageIndex, ImageIndex, list[Digest]],
) -> None:
    first, second, _ = shared
    old, new = record_of(b"an image"), record_of(b"another image", etag='"new"')
    second._batch_delay_s = 60
    await second.put(old)
    await first.put(new)
    await first.flush()
    assert await second.find(old.key) == old
    second.doubt(old.key)  # it is told of the change
    assert await second.find(old.key) == new
    await second.flush()
    assert await first.find(new.key) == new
