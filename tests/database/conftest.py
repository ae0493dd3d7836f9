"""Fixtures that run the tests of the database on SQLite, and on PostgreSQL where its server is installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg  # noqa: F401 - an import reads files, and so must not be left to a test on an event loop
import pytest
import sqlalchemy as sa

from imgkeep.database import Database, ImageIndex
from tests.support.clock import FakeClock
from tests.support.program import cannot
from tests.support.waiting import block_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from imgkeep.clock import Clock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start a throw-away server; give the URL of its maintenance database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not programs:
        cannot("no PostgreSQL server is installed; SQLite needs none")
    binaries = programs[-1].parent
    # Not under pytest's own folder: each new session makes that one unreachable for other users again.
    folder = Path(tempfile.mkdtemp(prefix="imgkeep-postgresql-"))
    user: str | None = None
    if os.geteuid() == 0:
        user = "postgres"  # the server refuses to run as root
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    subprocess.run(
        [str(binaries / "initdb"), "-D", str(data), "-U", "imgkeep", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"],
        check=True,
        stdout=subprocess.DEVNULL,
        user=user,
        cwd=folder,
    )
    settings = {"listen_addresses": "127.0.0.1", "port": port, "fsync": "off", "unix_socket_directories": ""}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log = folder / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options],
            stdout=file,
            stderr=file,
            user=user,
            cwd=folder,
            start_new_session=True,
        )
    try:
        block_until(
            lambda: "ready to accept connections" in log.read_text("utf-8", "replace") or server.poll() is not None
        )
        assert server.poll() is None, log.read_text("utf-8", "replace")
        yield f"postgresql+psycopg://imgkeep@127.0.0.1:{port}/postgres"
        assert server.poll() is None, log.read_text("utf-8", "replace")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/imgkeep.db"
        return
    server = request.getfixturevalue("postgresql")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS test WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE test")
    engine.dispose()
    yield server.replace("/postgres", "/test")


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
