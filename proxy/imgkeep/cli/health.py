"""`health`: whether the server of this configuration answers and accepts requests; a container's health check."""

from __future__ import annotations

import http.client
import json
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

from imgkeep.cli.printing import print_json
from imgkeep.config import ConfigError
from imgkeep.listening import format_address, reachable_hosts

if TYPE_CHECKING:
    from imgkeep.cli.invocation import Invocation
    from imgkeep.config import Server

TIMEOUT_S: Final = 2
"""Timeout for each address: the server answers `/readyz` from memory."""
ANSWER_BYTES_MAX: Final = 65_536


class _OtherProgram(Exception):
    """The answer of a program that is not imgkeep."""


def run(invocation: Invocation) -> int:
    return health(invocation.config.server, as_json=invocation.arguments.json, out=sys.stdout, err=sys.stderr)


def health(server: Server, *, as_json: bool, out: TextIO, err: TextIO) -> int:
    """
    Ask `/readyz` at the addresses of the configuration, one after the other until one answers.

    Return 0 if the server accepts requests, `degraded` included: a restart would repair no disk and no bucket. 1 if it
    does not answer, or says `unready` or `draining`.

    Raises:
        ConfigError: The configuration does not name the port.
    """
    if not server.port:
        raise ConfigError("server.port: is 0, so the server chose its port itself, and nothing names it")
    for host in reachable_hosts(server):
        try:
            status, report = _ask(host, server.port)
        except (OSError, http.client.HTTPException, _OtherProgram) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            what = "another program" if isinstance(error, (_OtherProgram, http.client.HTTPException)) else "nothing"
            place = format_address(host, server.port)
            err.write(f"imgkeep: {what} answers at {place} (server.host, server.port): {cause}\n")
            continue
        if as_json:
            print_json(out, report)
            return 0 if status == 200 else 1
        failing = [name for name, part in report.items() if isinstance(part, dict) and part.get("status") == "failing"]
        names = f" ({', '.join(failing)} failing)" if failing else ""
        out.write(f"{report['status']}{names}\n")
        return 0 if status == 200 else 1
    return 1


def _ask(host: str, port: int) -> tuple[int, dict[str, Any]]:
    """Return what `/readyz` answers. Raises: _OtherProgram: Another program answers."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        report = json.loads(response.read(ANSWER_BYTES_MAX))
    except ValueError:  # also bytes that are no text
        raise _OtherProgram("it is not imgkeep") from None
    finally:
        connection.close()
    if not isinstance(report, dict) or "status" not in report:
        raise _OtherProgram("it is not imgkeep")
    return response.status, report
