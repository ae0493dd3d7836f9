"""Fixtures that run the tests of the database on SQLite, and on PostgreSQL where its server is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.database import Database, ImageIndex
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from imgkeep.clock import Clock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/imgkeep.db"
        return
    given: str = request.getfixturevalue("postgresql_url")
    yield given.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
async def connect(clock: FakeClock) -> AsyncIterator[Callable[..., Database]]:
    """Make databases that are closed in the end."""
    made: list[Database] = []

    def make(url: str, clock: Clock = clock) -> Database:
        made.append(Database(url, clock))
        return made[-1]

    yield make
    for database in made:
        await database.aclose()


@pytest.fixture
async def database(connect: Callable[..., Database], url: str) -> Database:
    opened = connect(url)
    await opened.open()
    return opened


@pytest.fixture
def index(database: Database) -> ImageIndex:
    return database.image_index
