"""
What PostgreSQL asks of the engine: a connection that ends also when the server does not answer, databases that imgkeep
refuses, and what an operator can do about a fault.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.errors import StorageError
from imgkeep.database.schema_upgrade import IncompatibleDatabase

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy as sa

    Connection = psycopg.Connection[Any]
    AsyncConnection = psycopg.AsyncConnection[Any]

CONNECT_TIMEOUT_S: Final = 5
"""Timeout for a connection, for each address of the server."""

CONNECTION_PARAMETERS: Final = {
    "connect_timeout": str(CONNECT_TIMEOUT_S),
    "application_name": "imgkeep",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Parameters of a connection (PostgreSQL 17, 32.1.2): a dead server is noticed within some ten seconds."""

SERVER_SETTINGS: Final = (
    "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false), "
    "set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '10000', false), "
    "set_config('idle_in_transaction_session_timeout', '10000', false), set_config('TimeZone', 'UTC', false)"
)
"""
A statement that has the server notice a dead client as soon (PostgreSQL 17, 19.3.2 and 19.11.1), and with it release
what the client has locked, as the leadership. It is a statement because poolers refuse settings at the connection. For
the zone UTC psycopg reads no file.
"""
PING_TIMEOUT_S: Final = 2
"""Timeout for the answer of a server to a new connection."""
ECHO_TIMEOUT_S: Final = 2
"""Timeout for a notification of this process to itself."""
ENCODING: Final = "UTF8"
_GRANTS: Final = (
    "give the user of database.url the rights on it, as the owner of the database: "
    'GRANT USAGE, CREATE ON SCHEMA public TO "{user}"; '
    'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{user}"; '
    "to change tables it has to be their owner (REASSIGN OWNED BY ... TO ...)"
)
_PRIMARY: Final = (
    "database.url names a server that takes no writes, as a standby: name the primary, or all servers with "
    "?target_session_attrs=read-write"
)
_CREATE: Final = (
    f"check the name in database.url, or make it: CREATE DATABASE \"{{name}}\" ENCODING '{ENCODING}' "
    'TEMPLATE template0 OWNER "{user}"'
)
_POOLER: Final = (
    "database.url leads to a pooler that takes its connections back after each transaction: set pool_mode = session "
    "there, or name the server itself"
)
UNREACHABLE: Final = "check host and port in database.url, and that the server runs and can be reached from here"
_CONNECTIONS: Final = (
    "raise max_connections of the server, or the CONNECTION LIMIT of the role or of the database in database.url; "
    "docs/scale.md says how many connections a node needs"
)
_REMEDIES: Final = {
    "42501": _GRANTS,
    "25006": _PRIMARY,
    "53300": _CONNECTIONS,
    "53100": "the disk of the server in database.url is full: make room there; imgkeep goes on by itself",
    "57P01": "the server in database.url stops or was restarted; imgkeep goes on by itself",
    "57014": "the server in database.url took too long; is it overloaded, or does a lock of another program last?",
    "22021": f"the database of database.url is not in {ENCODING}",
}
"""Remedies by SQLSTATE (PostgreSQL 17, appendix A)."""
_CONNECT_REMEDIES: Final = (
    ("password authentication failed", "check the user and the password in database.url"),
    ("no password supplied", "add a password to database.url"),
    ("no pg_hba.conf entry", "allow the user, the database and this host of database.url in pg_hba.conf of the server"),
    (
        r"role .* (does not exist|is not permitted to log in)",
        'check the user in database.url, or make it: CREATE ROLE "{user}" LOGIN PASSWORD ...',
    ),
    ("database .* does not exist", _CREATE),
    ("too many", _CONNECTIONS),
    ("remaining connection slots", _CONNECTIONS),
    ("starting up", "the server in database.url starts; imgkeep goes on by itself"),
    ("shutting down", "the server in database.url stops; imgkeep goes on by itself"),
    ("session is read-only", _PRIMARY),
    ("certificate", "check sslmode and sslrootcert in database.url"),
    ("", UNREACHABLE),
)
"""Remedies by patterns of a message: libpq gives no SQLSTATE for a connection that failed. The first one counts."""


def connect(parameters: dict[str, Any], *, read_only: bool, statement_timeout_s: int, place: str) -> Connection:
    """
    Connect to a database. Blocks.

    Args:
        parameters: libpq's, by name.
        read_only: Whether a server that takes no writes will do.
        statement_timeout_s: The time after which the server itself ends a statement. Otherwise one whose caller has
            gone would keep its locks, and the connection.
        place: The database, for errors.

    Raises:
        IncompatibleDatabase: The database has an encoding that cannot hold every text.
        StorageError: The server takes no writes.
        psycopg.OperationalError: The connection failed.
    """
    import psycopg  # noqa: PLC0415 - an extra

    connection = psycopg.connect(**{**CONNECTION_PARAMETERS, **parameters})
    try:
        check_server(connection, read_only=read_only, place=place)
        connection.execute(SERVER_SETTINGS)
        connection.execute("SELECT set_config('statement_timeout', %s, false)", [f"{statement_timeout_s}s"])
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


def check_server(connection: psycopg.BaseConnection[Any], *, read_only: bool, place: str) -> None:
    """
    Check the parameters that a server reports to each new connection.

    Raises: as `connect`.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {ENCODING, None}:
        raise IncompatibleDatabase(
            f"the database is in {encoding}, and imgkeep needs {ENCODING}: make another one (CREATE DATABASE name "
            f"ENCODING '{ENCODING}' TEMPLATE template0) and name it in database.url; `imgkeep reindex` fills it"
        )
    # Servers before PostgreSQL 14 do not report these; there a write fails.
    reported = {connection.info.parameter_status(name) for name in ("in_hot_standby", "default_transaction_read_only")}
    if "on" in reported and not read_only:
        raise StorageError("the database takes no writes", cause=_PRIMARY, place=place)


async def check_pooler(listening: AsyncConnection, sending: AsyncConnection, place: str) -> None:
    """
    Check that a notification arrives, where a pooler is between: in transactions alone it would be lost silently.

    Raises:
        StorageError: It does not arrive.
    """
    rows = await (await listening.execute("SELECT pg_backend_pid()")).fetchall()
    if rows[0][0] == listening.info.backend_pid:
        return  # the server itself
    channel = f"imgkeep_{secrets.token_hex(8)}"
    await listening.execute(f'LISTEN "{channel}"'.encode())
    await sending.execute("SELECT pg_notify(%s, '')", (channel,))
    if not [notice async for notice in listening.notifies(timeout=ECHO_TIMEOUT_S, stop_after=1)]:
        raise StorageError("a pooler keeps notifications of the database back", cause=_POOLER, place=place)
    await listening.execute(f'UNLISTEN "{channel}"'.encode())


def is_lost(connection: Connection) -> bool:
    """
    Tell whether the server has closed a connection that was idle. This costs no round trip.

    The server may also have reported a changed setting, which says nothing; a new connection is right then too.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def answers(url: sa.URL) -> bool:
    """Tell whether a server answers a new connection within `PING_TIMEOUT_S`, be it with a refusal."""
    import psycopg  # noqa: PLC0415 - an extra; its own function for this holds the interpreter until the answer

    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            connection = await psycopg.AsyncConnection.connect(plain)
            await connection.close()
    except TimeoutError:
        return False
    except psycopg.Error:
        pass
    return True


def interrupt(connection: psycopg.BaseConnection[Any]) -> None:
    """End the calls that wait for the server, by the end of their socket; its descriptor stays psycopg's."""
    # It may have ended meanwhile.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.pgconn.socket)) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def explain(error: BaseException, *, user: str, name: str) -> str:
    """
    Return the server's message in one line, and what an operator can do about it.

    Args:
        error: psycopg's.
        user: The role of the connection.
        name: The database.
    """
    diagnosis = getattr(error, "diag", None)
    text = " ".join((getattr(diagnosis, "message_primary", None) or str(error) or type(error).__name__).split())
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is not None:
        remedy = _REMEDIES.get(sqlstate, "")
    else:
        remedy = next(remedy for pattern, remedy in _CONNECT_REMEDIES if re.search(pattern, text))
    return f"{text}; {remedy.format(user=user, name=name)}" if remedy else text
