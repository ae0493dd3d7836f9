"""The facts of pictures in the database: by digest, gone with a removal, restored by a reindex."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.core.picture_facts import PictureFacts
from imgkeep.core.records import Digest, PixelSize, Record
from imgkeep.database.picture_facts import FIND_MAX, add_facts
from imgkeep.database.schema_upgrade import COMPATIBLE_FROM
from tests.support.database import query, walk
from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.database import Database

    Connect = Callable[..., Database]

FACTS = PictureFacts(
    width=30, height=40, frames=1, has_alpha=False, orientation=6, colour="aa10ff", thumbhash="2gcKFIJ5eHg4h4eHdw=="
)


def record_with(facts: PictureFacts | None, data: bytes = b"x", name: str = "a") -> Record:
    return replace(record_of(data, name=name), pixel_size=PixelSize(40, 30, facts))


async def test_facts_are_found_by_digest(connect: Connect, url: str) -> None:
    table = connect(url).picture_facts
    digests = [Digest(f"{number:064x}") for number in range(FIND_MAX + 2)]
    await table.put(dict.fromkeys(digests[1:], FACTS))
    await table.put({digests[1]: replace(FACTS, frames=9)})
    found = await table.find([*digests, digests[1]])
    assert found == dict.fromkeys(digests[1:], FACTS), "those that are there stay"
    assert await table.find([]) == {}


async def test_records_of_the_same_bytes_share_facts(connect: Connect, url: str) -> None:
    table = connect(url).picture_facts
    records = [record_with(None, name="a"), record_with(None, name="b"), record_with(None, b"other")]
    await table.put({records[0].digest: FACTS})
    assert [record.picture for record in await table.add_to(records)] == [FACTS, FACTS, None]
    assert await table.add_to(records) == records, "facts make no other record"


async def test_record_without_size_gets_no_facts() -> None:
    record = replace(record_of(b"x"), pixel_size=None)
    assert add_facts(record, FACTS).picture is None


async def test_damaged_row_is_no_row(connect: Connect, url: str) -> None:
    database, record = connect(url), record_with(None)
    await database.picture_facts.put({record.digest: FACTS})
    query(database, "UPDATE picture_facts SET colour = 'rouge'")
    assert await database.picture_facts.find([record.digest]) == {}


async def test_removal_deletes_the_facts(connect: Connect, url: str) -> None:
    database = connect(url)
    first, second = record_with(None), record_with(None, b"y")
    await database.picture_facts.put({first.digest: FACTS, second.digest: FACTS})
    await database.image_index.block(first.digest)
    await database.removals.block([second.digest])
    assert await database.picture_facts.find([first.digest, second.digest]) == {}


async def test_facts_of_a_blocked_digest_are_not_written(connect: Connect, url: str) -> None:
    database, record = connect(url), record_with(None)
    await database.removals.block([record.digest])
    await database.picture_facts.put({record.digest: FACTS})
    assert await database.picture_facts.find([record.digest]) == {}
    await database.removals.unblock([record.digest])
    await database.picture_facts.put({record.digest: FACTS})
    assert await database.picture_facts.find([record.digest]) == {record.digest: FACTS}


async def test_reindex_restores_facts_and_deletes_those_of_no_image(connect: Connect, url: str) -> None:
    database = connect(url)
    stale, known = record_with(None, b"stale"), record_with(None, b"known", "known")
    new = record_with(FACTS, b"new", "new")
    await database.picture_facts.put({stale.digest: FACTS, known.digest: FACTS})
    await database.image_index.rebuild(walk([known, new]))
    found = await database.picture_facts.find([stale.digest, known.digest, new.digest])
    assert found == {known.digest: FACTS, new.digest: FACTS}


async def test_database_that_fails_knows_no_facts(connect: Connect, url: str) -> None:
    database, record = connect(url), record_with(None)
    await database.open()
    query(database, "DROP TABLE picture_facts")
    assert await database.picture_facts.add_to([record]) == [record]
    if not url.startswith("sqlite"):  # a file without a table is replaced
        with pytest.raises(StorageError):
            await database.picture_facts.find([record.digest])


def test_node_of_the_version_before_goes_on() -> None:
    assert COMPATIBLE_FROM == "0007", "the table is new, and no other one has changed"
