"""The engine: away from the event loop, through locks, hangs, lost and damaged files."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.database.outbox import FIND_TIMEOUT_S
from tests.support.database import make_records, query, walk
from tests.support.stores import record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgkeep.database import Database

    Connect = Callable[..., Database]


async def test_loop_turns_while_the_database_is_locked(connect: Connect, tmp_path: Path) -> None:
    # Blockbuster watches that nothing blocks the loop; here it is seen to go on.
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    await database.open()
    index = database.image_index
    engine = sa.create_engine(database.engine.url)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        await index.put(record_of(b"x"))
        assert await index.find(record_of(b"x").key) == record_of(b"x"), "before the row is written"
        counting = asyncio.create_task(index.count())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not counting.done()
        connection.rollback()
    engine.dispose()
    assert (await counting).images == 1


async def test_hanging_database_costs_one_look_up_a_second(connect: Connect, tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path}/imgkeep.db")
    index = database.image_index
    await index.rebuild(walk(make_records(1)))
    began, go_on = threading.Event(), threading.Event()

    def hang(_: sa.Connection) -> None:
        began.set()
        assert go_on.wait(10)

    hanging = asyncio.create_task(database.engine.execute(hang))
    assert await asyncio.to_thread(began.wait, 10)
    with pytest.raises(StorageError, match="does not answer"):
        await index.find(make_records(1)[0].key)
    start = asyncio.get_running_loop().time()
    for _ in range(100):
        with pytest.raises(StorageError, match="does not answer"):
            await index.find(make_records(1)[0].key)
    assert asyncio.get_running_loop().time() - start < FIND_TIMEOUT_S, "the other look-ups fail at once"
    go_on.set()
    await hanging
    call = database.engine._hung_call
    assert call is not None
    await until(call.done)
    assert await index.find(make_records(1)[0].key) == make_records(1)[0]


# --- a database that is away


async def test_unreachable_database_is_a_fault_until_it_is_back(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "place").write_bytes(b"a file where a folder should be")
    database = connect(f"sqlite:///{tmp_path}/place/imgkeep.db")
    index = database.image_index
    for call in (database.open, database.check, index.count):
        with pytest.raises(StorageError):
            await call()
    (tmp_path / "place").unlink()
    await index.put(record_of(b"x"))
    assert (await index.count()).images == 1
    found = None
    async with asyncio.timeout(20):
        while found is None:
            with suppress(StorageError):  # on a busy disk it takes longer than a look-up waits
                found = await index.find(record_of(b"x").key)
    assert found == record_of(b"x")


async def test_fault_of_postgresql_has_no_password(connect: Connect) -> None:
    database = connect("postgresql+psycopg://imgkeep:s3cret@127.0.0.1:1/imgkeep")
    with pytest.raises(StorageError) as caught:
        await database.open()
    assert "s3cret" not in f"{caught.value} {caught.value.in_full}"


# --- SQLite files that are lost or damaged


@pytest.mark.parametrize("way", ["removed", "replaced"])
async def test_check_leaves_a_lost_file(connect: Connect, tmp_path: Path, way: str) -> None:
    path = tmp_path / "imgkeep.db"
    database = connect(f"sqlite:///{path}")
    index = database.image_index
    await index.rebuild(walk(make_records(3)))
    if way == "replaced":
        other = connect(f"sqlite:///{tmp_path}/other.db")
        await other.image_index.put(record_of(b"x", name="another"))
        await other.aclose()
    for part in tmp_path.glob("imgkeep.db*"):  # noqa: ASYNC240 - quick
        part.unlink()
    if way == "replaced":
        (tmp_path / "other.db").rename(path)
    await database.check()
    assert path.exists()
    assert not index.complete, "a reindex has to fill it again"
    assert (await index.count()).images == (1 if way == "replaced" else 0)
    await index.rebuild(walk(make_records(3)))
    assert query(database, "SELECT count(*) FROM images")[0][0] >= 3


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\xa5" * 40_000),
    "text": lambda path: path.write_text("not a database at all, and rather short"),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2 // 4096 * 4096),
    "cut to nothing": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damaged_file_is_quarantined(damage: Callable[[Path], object], connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "imgkeep.db"
    first = connect(f"sqlite:///{path}")
    await first.image_index.rebuild(walk(make_records(300)))
    await first.aclose()
    damage(path)
    data = path.read_bytes()
    database = connect(f"sqlite:///{path}")
    index = database.image_index
    await database.open()
    for record in make_records(300):
        await index.find(record.key)
    await index.put(record_of(b"x", name="new"))
    assert not index.complete
    assert await index.rebuild(walk(make_records(300))) == 300
    assert await index.find(make_records(300)[-1].key) == make_records(300)[-1]
    if data:
        (quarantined,) = tmp_path.glob("imgkeep.db.damaged-*[0-9]")  # noqa: ASYNC240 - quick
        assert quarantined.read_bytes()[4096:] == data[4096:]
