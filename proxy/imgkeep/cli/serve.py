"""`serve`: one process, or several workers under a supervisor, until SIGTERM or Ctrl-C."""

# ruff: noqa: PLC0415 - a supervisor does not import the server, which only its workers run

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgkeep.cli.file_limit import raise_file_limit
from imgkeep.cli.worker import WORKER

if TYPE_CHECKING:
    from imgkeep.cli.dispatch import Command
    from imgkeep.cli.invocation import Invocation
    from imgkeep.config import Config


def run(invocation: Invocation) -> int | Command:
    return _supervise(invocation) if invocation.config.server.workers > 1 else _serve(invocation.config)


async def _serve(config: Config) -> int:
    from imgkeep.bootstrap import lifecycle
    from imgkeep.bootstrap.exit_deadline import start_exit_deadline

    raise_file_limit()
    await lifecycle.serve(config, stopping=start_exit_deadline)
    return 0


def _supervise(invocation: Invocation) -> int:
    """Run several processes that serve on one port."""
    from imgkeep.bootstrap import opening_log
    from imgkeep.bootstrap.peer_tls import require_tls_files
    from imgkeep.cluster.workers.supervisor import Supervisor
    from imgkeep.listening import listen_for_workers

    require_tls_files(invocation.config.cluster)  # rather than in each worker, again and again
    # Workers run the code of this process, even if their working folder holds another package of this name.
    code = str(Path(__file__).parents[2])
    environment = {**invocation.environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (code, environment.get("PYTHONPATH"))))
    with ExitStack() as stack:
        supervisor = Supervisor(
            invocation.config,
            sockets=listen_for_workers(invocation.config, stack),
            command=(sys.executable, "-P", "-m", "imgkeep", WORKER),
            environment=environment,
            reload=invocation.reload,
            opened=partial(opening_log.tell_workers_opening, invocation.config),
        )
        return supervisor.run()
