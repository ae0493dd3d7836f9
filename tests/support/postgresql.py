"""
PostgreSQL as Debian has it: a throw-away server that starts in a second, and databases of it that take a moment.

For `pytest_plugins`; nothing starts before a test asks for it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import pytest

from tests.support.loopback import HOST, port_of, reserve
from tests.support.program import cannot
from tests.support.waiting import block_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping, Sequence

_PROGRAMS: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
_READY: Final = re.compile("ready to accept (read-only )?connections")
_QUICK: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "unix_socket_directories": ""}
"""Settings of a server that is thrown away."""
_BREAK_OFF: Final = """
SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_EMPTY: Final = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE 'DROP TABLE public.' || name || ' CASCADE';
    END LOOP;
END
$$
"""


@dataclass
class PostgresqlServer:
    """
    A server that can be stopped and started again, with its data.

    Attributes:
        address: Where it listens; clients of the same /24 network need no password.
        within: The command that runs another one in the server's network, where that is not the network of the tests.
        settings: Settings beside those of a server that is thrown away.
    """

    address: str = HOST
    within: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    _folder: Path = field(init=False)
    _holder: socket.socket = field(default_factory=reserve)
    _process: subprocess.Popen[bytes] | None = None
    _numbers: count[int] = field(default_factory=lambda: count(1))
    _empty: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not _PROGRAMS:
            self._holder.close()
            cannot("no PostgreSQL server is installed (Debian: apt-get install postgresql); SQLite needs none")
        # Not under pytest's own folder: each new session makes that one unreachable for other users again.
        self._folder = Path(tempfile.mkdtemp(prefix="imgkeep-postgresql-"))
        self._become: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(self._folder, "postgres")
            self._become = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        self._run("initdb", "-U", "imgkeep", "-A", "trust", "-N", "--locale=C", "-E", "UTF8")
        with (self._folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {self.address}/24 trust\n")

    @property
    def port(self) -> int:
        return port_of(self._holder)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """Return what `database.url` is for a database, and what psycopg connects to."""
        return f"postgresql://imgkeep@{self.address}:{self.port}/{database}"

    def make_database(self) -> str:
        """Return the URL of a new empty database."""
        name = f"test_{next(self._numbers)}"
        # A copy of the template's files takes a third of the time that a copy through the log takes.
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
        return self.url(name)

    def lend_database(self) -> str:
        """Return the URL of an empty database, for `take_back`."""
        return self._empty.pop() if self._empty else self.make_database()

    def take_back(self, url: str) -> None:
        """Empty a database for the next test: that costs the server a third of what another database costs."""
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(_BREAK_OFF)
                connection.execute(_EMPTY)
                left = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
                assert left.fetchall() == []
        except psycopg.OperationalError:
            self.drop_database(url)  # a test has removed it, or closed it
        else:
            self._empty.append(url)

    def drop_database(self, url: str) -> None:
        """Remove a database, and break off what is connected with it."""
        self.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement in autocommit, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        assert not self.is_running
        # The parent, for the kernel, is the thread that starts a process: the server would end with that thread.
        assert threading.current_thread() is threading.main_thread()
        options = {"listen_addresses": self.address, "port": str(self.port), **_QUICK, **self.settings}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = self._folder / "log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*self.within, *self._command("postgres"), *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self._folder,
                start_new_session=True,
            )
        block_until(lambda: _READY.search(log.read_text("utf-8", "replace")) or not self.is_running)
        assert self.is_running, log.read_text("utf-8", "replace")

    def stop(self) -> None:
        """Stop the server as `systemctl stop` does: it breaks off every connection."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stop every process of the server until the end of the block: it accepts connections and never answers."""
        assert self._process is not None
        parent = self._process.pid
        os.kill(parent, signal.SIGSTOP)  # first: from now on it starts no process
        children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split()]
        try:
            _send_all(children, signal.SIGSTOP)
            yield
        finally:
            _send_all([parent, *children], signal.SIGCONT)

    @contextmanager
    def requiring_password(self, role: str) -> Iterator[None]:
        """Let a role in by its password alone, until the end of the block."""
        rules = self._folder / "data" / "pg_hba.conf"
        before = rules.read_text()
        self._configure(rules, f"host all {role} all scram-sha-256\n{before}")
        try:
            yield
        finally:
            self._configure(rules, before)

    def _configure(self, file: Path, text: str) -> None:
        """Change a configuration file of the running server, and wait until the server has read it."""
        loaded = self.execute("SELECT pg_conf_load_time()")
        file.write_text(text)
        self.execute("SELECT pg_reload_conf()")
        block_until(lambda: self.execute("SELECT pg_conf_load_time()") != loaded)

    def begin_standby(self) -> None:
        """Start the stopped server as a standby, which takes no writes."""
        (self._folder / "data" / "standby.signal").touch()
        self.start()

    def promote(self) -> None:
        """Let a standby take writes."""
        self.execute("SELECT pg_promote() WHERE pg_is_in_recovery()")

    def remove(self) -> None:
        """End the server for good, with its data."""
        self.stop()
        self._holder.close()
        shutil.rmtree(self._folder)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([*self._command(name), *arguments], check=True, stdout=subprocess.DEVNULL, cwd=self._folder)

    def _command(self, name: str) -> list[str]:
        """Return a command that ends with the tests, however these end, as the user that may run it."""
        program = str(_PROGRAMS[-1].with_name(name))
        return ["setpriv", "--pdeathsig", "INT", *self._become, program, "-D", str(self._folder / "data")]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """One server for all tests of a session."""
    server = PostgresqlServer()
    try:
        server.start()
        yield server
        assert server.is_running
    finally:
        server.remove()


@pytest.fixture
def postgresql_url(postgresql: PostgresqlServer) -> Iterator[str]:
    """Give the URL of an empty database of the test's own."""
    url = postgresql.lend_database()
    yield url
    postgresql.take_back(url)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Give a folder on a disk of 16 MB, which belongs to the user of the server."""
    place = Path(tempfile.mkdtemp(prefix="imgkeep-small-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False).returncode != 0:
        place.rmdir()
        cannot("only root can mount a small file system")
    shutil.chown(place, "postgres")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
    place.rmdir()


def _send_all(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes of a server; one whose client has gone may have ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
