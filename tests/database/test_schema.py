"""The tables: made at once or by migrations, refused where another version wrote them, found under an old name."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from imgkeep.core.errors import StorageError
from imgkeep.database import Database, IncompatibleDatabase
from imgkeep.database.cluster_schema import cluster_metadata
from imgkeep.database.migrations import versions
from imgkeep.database.schema import metadata
from imgkeep.database.schema_upgrade import NEWEST, migrate
from imgkeep.database.sqlite_file import find_fault
from tests.support.database import query
from tests.support.program import cannot, run
from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Connect = Callable[..., Database]


def mount(place: Path, *options: str) -> bool:
    return subprocess.run(["mount", *options, str(place)], check=False, capture_output=True).returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("way", ["at once", "by migrations"])
async def test_both_ways_make_the_declared_tables(connect: Connect, url: str, way: str) -> None:
    engine = sa.create_engine(url)
    if way == "by migrations":
        with engine.begin() as connection:
            await asyncio.to_thread(migrate, connection)
    await connect(url).open()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert context.get_current_revision() == NEWEST
        declared = [metadata] if engine.dialect.name == "sqlite" else [metadata, cluster_metadata]
        assert compare_metadata(context, declared) == []  # type: ignore[arg-type]  # takes a list as well
        names = set(sa.inspect(connection).get_table_names())
        ddl = (
            ""
            if engine.dialect.name != "sqlite"
            else str(connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'images'").scalar())
        )
    engine.dispose()
    assert names == {"alembic_version", *(name for each in declared for name in each.tables)}
    assert not ddl or ddl.rstrip().upper().endswith("WITHOUT ROWID")


def test_newest_version_is_the_head_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", "imgkeep.database:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == NEWEST


def test_migrations_have_their_tables_written_out() -> None:
    for path in Path(versions.__file__).parent.glob("v*.py"):
        assert "imgkeep" not in path.read_text(), "a later version changes the tables of the program"


async def test_interrupted_first_start_does_not_harm_the_next(connect: Connect, tmp_path: Path) -> None:
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
            await database.image_index.put(record_of(b"x"))
            await database.aclose()
    finally:
        unmount(disk)
    assert failed > 10


async def test_concurrent_first_starts_all_succeed(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    command = ("import", str(tmp_path / "nothing"), "--mount", "old")
    outcomes = await asyncio.gather(*(run(tmp_path / "data", *command) for _ in range(4)))
    assert {status for status, _, _ in outcomes} == {0}, outcomes
    assert not any("failed" in err for _, _, err in outcomes)


# --- databases of other versions


@pytest.mark.parametrize(
    ("version", "message"),
    [("9999", r"newer version of imgkeep \(schema 9999\)"), ("0004", "before the first release .*move it away")],
    ids=["newer", "unreleased"],
)
async def test_database_of_another_version_stays_as_it_is(
    connect: Connect, url: str, version: str, message: str
) -> None:
    first = connect(url)
    await first.image_index.put(record_of(b"x"))
    await first.aclose()
    query(first, f"UPDATE alembic_version SET version_num = '{version}'")
    query(first, f"UPDATE state SET value = '{version}' WHERE name = 'compatible_from'")
    database = connect(url)
    for _ in range(2):
        with pytest.raises(IncompatibleDatabase, match=message):
            await database.open()
    engine = database.engine
    assert engine.found_incompatible.is_set()
    assert engine.incompatible is not None
    assert engine.incompatible.place == engine.location
    assert query(database, "SELECT count(*) FROM images") == [(1,)]


@pytest.mark.parametrize(("version", "says"), [("9999", "newer"), ("0004", "move it away"), (NEWEST, None)])
async def test_check_reports_the_version_of_a_file(
    connect: Connect, tmp_path: Path, version: str, says: str | None
) -> None:
    path = tmp_path / "imgkeep.db"
    database = connect(f"sqlite:///{path}")
    await database.open()
    await database.aclose()
    query(database, f"UPDATE alembic_version SET version_num = '{version}'")
    query(database, f"UPDATE state SET value = '{version}' WHERE name = 'compatible_from'")
    fault = await asyncio.to_thread(find_fault, path)
    assert fault is None if says is None else fault is not None and says in fault


# --- the file's name before the first release


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """Make a `catalog.db` with one job whose link waits."""
    database = Database(f"sqlite:///{tmp_path}/catalog.db", lambda: record_of(b"x").stored_at)

    async def fill() -> None:
        await database.image_index.put(record_of(b"x"))
        await database.jobs.create("job", [], None)
        await database.aclose()

    asyncio.run(fill())
    return tmp_path / "catalog.db"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_start_renames_the_old_file(old_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert asyncio.run(_read_job(old_file.with_name("imgkeep.db")))
    assert names(old_file.parent) == {"imgkeep.db"}
    assert "database file renamed" in caplog.text


def test_start_renames_the_file_of_a_killed_process(old_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    with closing(sqlite3.connect(old_file)) as connection:
        connection.execute("INSERT INTO refused VALUES ('d')")
        connection.commit()
        for path in old_file.parent.glob("catalog.db*"):
            shutil.copy(path, folder)
    assert names(folder) == {"catalog.db", "catalog.db-wal", "catalog.db-shm"}
    assert asyncio.run(_read_job(folder / "imgkeep.db"))
    assert names(folder) == {"imgkeep.db"}
    with closing(sqlite3.connect(folder / "imgkeep.db")) as connection:
        assert connection.execute("SELECT * FROM refused").fetchall() == [("d",)]


def test_old_file_that_is_in_use_keeps_its_name(old_file: Path) -> None:
    with closing(sqlite3.connect(old_file)) as connection:
        connection.execute("SELECT * FROM images").fetchall()
        assert asyncio.run(_read_job(old_file.with_name("imgkeep.db")))
        assert "imgkeep.db" not in names(old_file.parent)
    assert asyncio.run(_read_job(old_file.with_name("imgkeep.db")))
    assert names(old_file.parent) == {"imgkeep.db"}


def test_reader_leaves_the_old_file_its_name(old_file: Path) -> None:
    assert asyncio.run(_read_job(old_file.with_name("imgkeep.db"), read_only=True))
    assert names(old_file.parent) == {"catalog.db"}


def test_old_file_that_cannot_be_renamed_is_used(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    assert asyncio.run(_read_job(old_file.with_name("imgkeep.db")))
    assert "imgkeep.db" not in names(old_file.parent)


def test_old_file_that_is_renamed_meanwhile_is_not_begun_anew(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_file = old_file.with_name("imgkeep.db")

    def lose_race(_path: Path) -> Path:
        old_file.rename(new_file)
        return old_file

    with monkeypatch.context() as patch:
        patch.setattr("imgkeep.database.engine.take_over", lose_race)
        with pytest.raises(StorageError):
            asyncio.run(_read_job(new_file))
    assert names(old_file.parent) == {"imgkeep.db"}
    assert asyncio.run(_read_job(new_file))


def test_new_file_wins_over_the_old_one(old_file: Path) -> None:
    old_file.with_name("imgkeep.db").touch()
    assert not asyncio.run(_read_job(old_file.with_name("imgkeep.db")))
    assert names(old_file.parent) >= {"imgkeep.db", "catalog.db"}


def test_other_names_take_no_file_over(old_file: Path) -> None:
    assert not asyncio.run(_read_job(old_file.with_name("other.db")))
    assert names(old_file.parent) == {"other.db", "catalog.db"}


async def test_commands_find_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (tmp_path / "nothing").mkdir()
    await run(folder, "import", str(tmp_path / "nothing"), "--mount", "old")
    (folder / "imgkeep.db").rename(folder / "catalog.db")
    status, _, err = await run(folder, "list")
    assert status == 0, err
    assert "imgkeep.db" not in names(folder), "a command that only reads renames nothing"
    status, _, err = await run(folder, "reindex")
    assert status == 0, err
    assert names(folder) >= {"imgkeep.db"}
    assert "catalog.db" not in names(folder)


async def _read_job(path: Path, *, read_only: bool = False) -> bool:
    database = Database(f"sqlite:///{path}", lambda: record_of(b"x").stored_at, read_only=read_only)
    try:
        return await database.jobs.find("job") is not None
    finally:
        await database.aclose()
