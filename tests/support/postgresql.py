"""A PostgreSQL server of Debian's packages, one for each session of tests, and empty databases in it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg  # an import reads files, and so must not be left to a test on an event loop
import pytest

from tests.support.program import cannot
from tests.support.waiting import block_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVER: Final = "postgresql+psycopg:"
"""The scheme of SQLAlchemy's URLs."""


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


_numbers = count()


@pytest.fixture
def empty_database(postgresql: str) -> str:
    """Give `database.url` of a new database, which has no tables."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(postgresql.replace(DRIVER, "postgresql:"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    return postgresql.replace(DRIVER, "postgresql:").replace("/postgres", f"/{name}")
