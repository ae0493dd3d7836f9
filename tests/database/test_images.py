"""The database: a view of the records that answers, counts, pages, and can be filled anew."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imgkeep.core.errors import StorageError
from imgkeep.core.layout import decode_record, encode_record
from imgkeep.core.records import Digest, Format, Key, PixelSize, Record
from imgkeep.database import ImageIndex, IncompatibleDatabase
from imgkeep.database.image_index import FIND_TIMEOUT_S, PENDING_MAX, _records, _to_record, _to_row
from imgkeep.database.schema import NEWEST, upgrade
from imgkeep.database.tables import images, metadata

from tests.support.program import cannot, run, until
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path

    from tests.database.conftest import Time

    Connect = Callable[..., ImageIndex]

hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)
times = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
    lambda time: time.replace(microsecond=0)
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
any_record = st.builds(
    Record,
    key=hexes.map(Key),
    identity=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8192),
    host=texts,
    digest=hexes.map(Digest),
    format=st.sampled_from(Format),
    size=st.integers(1, 2**53),
    pixel_size=st.none() | st.builds(PixelSize, st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
    etag=hexes.map(lambda text: f'"{text[:32]}"'),
    stored_at=times,
    provider=st.none() | texts,
    temporary=st.booleans(),
    expires_at=st.none() | times,
)


async def flow(records: Iterable[Record]) -> AsyncIterator[Record]:
    """Yield records as a walk through a store does."""
    for record in records:
        yield record


def many(number: int) -> list[Record]:
    """Return records of which every two lie a second apart and every ten share their bytes."""
    return [
        replace(
            record_of(str(index // 10).encode() * 100, name=str(index)),
            stored_at=NOON + timedelta(seconds=index // 2),
            host=f"host-{index % 3}.example",
        )
        for index in range(number)
    ]


def inside(database: ImageIndex, statement: str) -> list[Any]:
    """Ask the database's own database, from this thread."""
    engine = sa.create_engine(database._url)
    with engine.connect() as connection:
        rows = list(connection.exec_driver_sql(statement))
    engine.dispose()
    return rows


def mount(place: Path, *options: str) -> bool:
    return subprocess.run(["mount", *options, str(place)], check=False, capture_output=True).returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


# --- records in, records out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=any_record)
def test_a_record_comes_back_as_it_went_in(record: Record, memory: sa.Engine) -> None:
    with memory.begin() as connection:
        connection.execute(sa.delete(images))
        connection.execute(sa.insert(images), {**_to_row(record), "indexed_at": 0})
        assert _to_record(connection.execute(_records()).one()) == record
    assert decode_record(encode_record(record)) == record


@pytest.fixture(scope="module")
def memory() -> Iterator[sa.Engine]:
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


async def test_what_is_put_is_found_and_the_newest_counts(database: ImageIndex) -> None:
    record = record_of(b"one")
    assert await database.find(record.key) is None
    await database.put(record)
    assert await database.find(record.key) == record
    newer = record_of(b"two", etag='"two"')
    await database.put(newer)
    assert await database.find(record.key) == newer
    assert await database.page(limit=10) == [newer]


@pytest.mark.parametrize("form", Format)
async def test_every_format_comes_back(connect: Connect, tmp_path: Path, form: Format) -> None:
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    record = replace(record_of(b"x"), format=form, pixel_size=None, provider=None, expires_at=None)
    await database.put(record)
    assert await database.find(record.key) == record


async def test_pages_are_newest_first_and_together_hold_each_image_once(database: ImageIndex) -> None:
    records = many(23)
    for record in records:
        await database.put(record)
    found: list[Record] = []
    after: tuple[int, str] | None = None
    while page := await database.page(limit=5, after=after):
        assert len(page) <= 5
        found += page
        after = (int(page[-1].stored_at.timestamp()), page[-1].key)
    assert found == sorted(records, key=lambda record: (record.stored_at, record.key), reverse=True)


async def test_totals_count_equal_bytes_once(database: ImageIndex) -> None:
    empty = await database.count()
    assert (empty.images, empty.objects, empty.object_bytes, empty.oldest, empty.newest) == (0, 0, 0, None, None)
    assert empty.hosts == ()
    records = many(25)
    await database.rebuild(flow(records))
    totals = await database.count()
    assert (totals.images, totals.objects) == (25, 3)
    assert totals.object_bytes == sum({record.digest: record.size for record in records}.values())
    assert (totals.oldest, totals.newest) == (NOON, NOON + timedelta(seconds=12))
    assert totals.hosts == (("host-0.example", 9), ("host-1.example", 8), ("host-2.example", 8))


# --- filled anew


async def test_a_rebuild_brings_in_all_and_drops_what_has_vanished(database: ImageIndex, clock: Time) -> None:
    records = many(1203)  # more than two transactions
    assert not database.complete
    assert await database.rebuild(flow(records)) == 1203
    assert database.complete
    clock.turn(10)
    assert await database.rebuild(flow(records[:1000])) == 1000
    assert {record.key for record in await database.page(limit=2000)} == {record.key for record in records[:1000]}


async def test_a_rebuild_keeps_what_fills_write_meanwhile(database: ImageIndex, clock: Time) -> None:
    old, walked, meanwhile = (record_of(b"x", name=name) for name in ("old", "walked", "meanwhile"))
    await database.put(old)
    assert (await database.count()).images == 1
    clock.turn(10)
    walking, go_on = asyncio.Event(), asyncio.Event()

    async def walk() -> AsyncIterator[Record]:
        yield walked
        walking.set()
        await go_on.wait()

    # A fill's row is written by another process: here by a second database on the same database.
    rebuilding = asyncio.create_task(database.rebuild(walk()))
    await walking.wait()
    other = ImageIndex(database._url.render_as_string(hide_password=False), clock)
    await other.put(meanwhile)
    go_on.set()
    assert await rebuilding == 1
    assert {record.key for record in await other.page(limit=10)} == {walked.key, meanwhile.key}
    await other.aclose()


async def test_a_clock_that_is_set_back_during_a_rebuild_loses_no_row(database: ImageIndex, clock: Time) -> None:
    records = many(600)

    async def walk() -> AsyncIterator[Record]:
        for index, record in enumerate(records):
            if index == 550:
                clock.turn(-3600)
            yield record

    await database.rebuild(walk())
    assert (await database.count()).images == 600


async def test_a_walk_that_fails_drops_nothing_and_does_not_pass_for_complete(
    database: ImageIndex, clock: Time
) -> None:
    records = many(10)
    await database.rebuild(flow(records))
    clock.turn(10)

    async def walk() -> AsyncIterator[Record]:
        yield records[0]
        raise StorageError("the disk of the store failed: Permission denied")

    with pytest.raises(StorageError, match="Permission denied"):
        await database.rebuild(walk())
    assert (await database.count()).images == 10


async def test_complete_is_remembered(connect: Connect, url: str) -> None:
    first = connect(url)
    await first.rebuild(flow([]))
    second = connect(url)
    await second.open()
    assert second.complete


# --- tables


@pytest.mark.parametrize("how", ["made at once", "step by step"])
async def test_both_ways_lead_to_the_tables_as_they_are_declared(connect: Connect, url: str, how: str) -> None:
    engine = sa.create_engine(url)
    if how == "step by step":
        with engine.begin() as connection:
            await asyncio.to_thread(upgrade, connection)
    await connect(url).open()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert context.get_current_revision() == NEWEST
        assert compare_metadata(context, metadata) == []
        names = set(sa.inspect(connection).get_table_names())
        ddl = (
            ""
            if engine.dialect.name != "sqlite"
            else str(connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'images'").scalar())
        )
    engine.dispose()
    assert names == {"alembic_version", *metadata.tables}
    assert not ddl or ddl.rstrip().upper().endswith("WITHOUT ROWID")


def test_the_newest_form_is_where_the_last_migration_leads() -> None:
    config = Config()
    config.set_main_option("script_location", "imgkeep.database:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == NEWEST


async def test_an_older_catalog_is_brought_up_and_keeps_what_it_has(connect: Connect, url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        await asyncio.to_thread(upgrade, connection, "0001")
        columns = "key, identity, host, digest, extension, size, etag, stored_at, temporary, indexed_at"
        connection.exec_driver_sql(
            f"INSERT INTO images ({columns}) VALUES ('k', 'i', 'h', 'd', 'png', 1, 'e', 1, '0', 1)"
        )
    engine.dispose()
    database = connect(url)
    await database.open()
    assert (await database.count()).images == 1


async def test_a_first_start_that_was_cut_short_anywhere_is_no_matter_to_the_next(
    connect: Connect, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount(disk, "-t", "tmpfs", "-o", "size=8k", "tmpfs"):
        cannot("only root can mount a small file system")
    failed = 0
    try:
        for kilobytes in range(8, 128, 4):
            for path in disk.iterdir():
                path.unlink()
            assert mount(disk, "-o", f"remount,size={kilobytes}k")
            database = connect(f"sqlite:///{disk}/imgkeep.db")
            try:
                await database.open()
            except StorageError:
                failed += 1
            assert mount(disk, "-o", "remount,size=4m")
            await database.open()
            await database.put(record_of(b"x"))
            await database.aclose()
    finally:
        unmount(disk)
    assert failed > 10


async def test_processes_that_start_at_once_on_an_empty_database_all_succeed(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    command = ("import", str(tmp_path / "nothing"), "--mount", "old")
    outcomes = await asyncio.gather(*(run(tmp_path / "data", *command) for _ in range(4)))
    assert {status for status, _, _ in outcomes} == {0}, outcomes
    assert not any("failed" in err for _, _, err in outcomes)


async def test_a_catalog_of_a_newer_version_is_left_alone(connect: Connect, url: str) -> None:
    first = connect(url)
    await first.put(record_of(b"x"))
    await first.aclose()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    database = connect(url)
    for _ in range(2):
        with pytest.raises(IncompatibleDatabase):
            await database.open()
    assert inside(database, "SELECT count(*) FROM images") == [(1,)]


# --- many at once, and away from the loop


async def test_two_processes_write_one_database(database: ImageIndex, connect: Connect, url: str) -> None:
    other = connect(url)
    mine, theirs = many(60)[:30], many(60)[30:]

    async def write(to: ImageIndex, records: list[Record]) -> None:
        for record in records:
            await to.put(record)
            assert await to.find(record.key) == record

    await asyncio.gather(write(database, mine), write(other, theirs), database.rebuild(flow(mine)))
    assert (await database.count(), await other.count())[1].images == 60, "what was put is written now"
    for record in (*mine, *theirs):
        assert await database.find(record.key) == await other.find(record.key) == record


async def test_the_loop_turns_while_the_database_is_locked(connect: Connect, tmp_path: Path) -> None:
    # That nothing blocks it is watched by blockbuster; here it is seen to go on.
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    await database.open()
    engine = sa.create_engine(database._url)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        await database.put(record_of(b"x"))
        assert await database.find(record_of(b"x").key) == record_of(b"x"), "nobody waits for the row"
        counting = asyncio.create_task(database.count())
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert not counting.done()
        connection.rollback()
    engine.dispose()
    assert (await counting).images == 1


async def test_a_database_that_hangs_costs_a_look_up_a_second_once(connect: Connect, tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    await database.rebuild(flow(many(1)))
    began, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        assert go_on.wait(10)

    hanging = asyncio.create_task(database._run(hang))
    assert await asyncio.to_thread(began.wait, 10)
    with pytest.raises(StorageError, match="does not answer"):
        await database.find(many(1)[0].key)
    start = asyncio.get_running_loop().time()
    for _ in range(100):
        with pytest.raises(StorageError, match="does not answer"):
            await database.find(many(1)[0].key)
    assert asyncio.get_running_loop().time() - start < FIND_TIMEOUT_S, "not once more each"
    go_on.set()
    await hanging
    await until(lambda: database._late is not None and database._late.done())
    assert await database.find(many(1)[0].key) == many(1)[0]


async def test_what_waits_for_a_database_is_bounded_and_the_rest_is_left_to_a_reindex(
    connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "place").write_bytes(b"a file where a folder should be")
    database = connect(f"sqlite:///{tmp_path}/place/imgkeep.db")
    database.complete = True
    for record in many(PENDING_MAX):
        await database.put(record)
    assert database.complete
    await database.put(record_of(b"x", name="one too many"))
    assert not database.complete
    (tmp_path / "place").unlink()
    await database.check()
    assert (await database.count()).images == PENDING_MAX


async def test_a_start_on_many_rows_scans_none_of_them(connect: Connect, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/imgkeep.db"
    first = connect(url)
    await first.rebuild(flow([record_of(b"x")]))
    await first.aclose()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) "
            "INSERT INTO images SELECT printf('%064x', i), 'https://a.example/' || i, 'a.example', printf('%064x', i), "
            "'png', 100, 1, 1, '\"e\"', i, NULL, 0, NULL, 1, NULL, NULL, NULL, NULL FROM n"
        )
        connection.exec_driver_sql("ANALYZE")
    engine.dispose()

    said: list[tuple[str, Any]] = []

    def listen(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        said.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        database = connect(url)
        await database.open()
        await database.check()
        assert database.complete, "so nobody walks the store either"
        await database.find(Key(f"{77:064x}"))
        await database.page(limit=500)
        page = await database.page(limit=500, after=(50_000, "f" * 64))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)
    assert page[0].stored_at.timestamp() == 50_000
    plans: list[str] = []
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        for statement, parameters in said:
            if statement.lstrip().upper().startswith(("SELECT", "DELETE")):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters or ())
                plans += [row.detail for row in rows]
    engine.dispose()
    about_images = [plan for plan in plans if "images" in plan]
    assert len(about_images) >= 3
    # A page without a place to begin after reads its index in order, and stops at the limit.
    scans = [plan for plan in about_images if plan.startswith("SCAN") and "images_by_time" not in plan]
    assert scans == []
    assert not any("TEMP B-TREE" in plan for plan in plans)


# --- faults


async def test_a_database_that_cannot_be_reached_is_a_fault_and_later_works(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "place").write_bytes(b"a file where a folder should be")
    database = connect(f"sqlite:///{tmp_path}/place/imgkeep.db")
    for call in (database.open, database.check, database.count):
        with pytest.raises(StorageError):
            await call()
    (tmp_path / "place").unlink()
    await database.put(record_of(b"x"))
    assert (await database.count()).images == 1
    found = None
    async with asyncio.timeout(20):
        while found is None:
            with suppress(StorageError):  # a disk that others keep busy takes longer than a look-up waits
                found = await database.find(record_of(b"x").key)
    assert found == record_of(b"x")


async def test_a_postgresql_that_is_not_there_is_a_fault_without_the_password(connect: Connect) -> None:
    database = connect("postgresql+psycopg://imgkeep:s3cret@127.0.0.1:1/imgkeep")
    with pytest.raises(StorageError) as caught:
        await database.open()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_file_that_was_removed_or_replaced_is_left_behind_at_the_next_look(
    connect: Connect, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "imgkeep.db"
    database = connect(f"sqlite:///{path}")
    await database.rebuild(flow(many(3)))
    if how == "replaced":
        other = connect(f"sqlite:///{tmp_path}/other.db")
        await other.put(record_of(b"x", name="another"))
        await other.aclose()
    for part in tmp_path.glob("imgkeep.db*"):  # noqa: ASYNC240 - quick, and nobody waits
        part.unlink()
    if how == "replaced":
        (tmp_path / "other.db").rename(path)
    await database.check()
    assert path.exists()
    assert not database.complete, "so it is filled again"
    assert (await database.count()).images == (1 if how == "replaced" else 0)
    await database.rebuild(flow(many(3)))
    assert inside(database, "SELECT count(*) FROM images")[0][0] >= 3


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\xa5" * 40_000),
    "text": lambda path: path.write_text("not a database at all, and rather short"),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2 // 4096 * 4096),
    "cut to nothing": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_file_is_set_aside_and_begun_anew(
    damage: Callable[[Path], object], connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "imgkeep.db"
    first = connect(f"sqlite:///{path}")
    await first.rebuild(flow(many(300)))
    await first.aclose()
    damage(path)
    data = path.read_bytes()
    database = connect(f"sqlite:///{path}")
    await database.open()
    for record in many(300):
        await database.find(record.key)
    await database.put(record_of(b"x", name="new"))
    assert not database.complete
    assert await database.rebuild(flow(many(300))) == 300
    assert await database.find(many(300)[-1].key) == many(300)[-1]
    if data:
        (aside,) = tmp_path.glob("imgkeep.db.damaged-*[0-9]")  # noqa: ASYNC240 - quick, and nobody waits
        assert aside.read_bytes()[4096:] == data[4096:]


@pytest.mark.parametrize(
    "change", ["extension = 'exe'", "stored_at = 9223372036854775807", "stored_at = 'noon'"], ids=str
)
async def test_a_row_with_flipped_bits_is_a_fault_and_a_rebuild_mends_it(
    change: str, connect: Connect, tmp_path: Path
) -> None:
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    record = record_of(b"x")
    await database.put(record)
    assert (await database.count()).images == 1
    engine = sa.create_engine(database._url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE images SET {change}")
    engine.dispose()
    with pytest.raises(StorageError, match="reindex"):
        await database.find(record.key)
    await database.rebuild(flow([record]))
    assert await database.find(record.key) == record


def test_keys_in_these_tests_are_digests() -> None:
    assert record_of(b"x").digest == sha256(b"x").hexdigest()
