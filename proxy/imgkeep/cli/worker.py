"""
A worker: one of several processes that serve on one port, started by a supervisor.

No person gives this command, so that no help names it.
"""

# ruff: noqa: PLC0415 - every command imports this module, to learn that it is not a worker

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.cluster.workers.worker_process import WorkerSetup

WORKER: Final = "worker"


def read_worker_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments that the supervisor gives."""
    parser = argparse.ArgumentParser(prog=f"imgkeep {WORKER}", add_help=False)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--control", required=True, type=int)
    return parser.parse_args(words, argparse.Namespace(command=WORKER))


def read_worker_setup(stdin: BinaryIO) -> WorkerSetup:
    """
    Read the configuration that the supervisor sends. Blocks.

    Raises:
        ConfigError: The supervisor is of another version.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends these to all processes; the supervisor decides
    import msgspec

    from imgkeep.cluster.workers.worker_process import WorkerSetup
    from imgkeep.config import ConfigError

    try:
        return msgspec.json.decode(stdin.read(), type=WorkerSetup)
    except msgspec.DecodeError:
        raise ConfigError("the supervisor is of another version: restart instead of reloading") from None


async def run_worker(arguments: argparse.Namespace, setup: WorkerSetup) -> int:
    """Serve until the supervisor or a signal ends this process."""
    import socket

    import msgspec

    from imgkeep.bootstrap import lifecycle
    from imgkeep.bootstrap.exit_deadline import start_exit_deadline
    from imgkeep.cli.file_limit import raise_file_limit
    from imgkeep.cluster.workers.worker_info import WorkerInfo

    raise_file_limit()
    worker = msgspec.convert({**msgspec.json.decode(arguments.worker), "secret": setup.secret}, WorkerInfo)
    listening = [socket.socket(fileno=int(number)) for number in arguments.listen.split(",")]
    control = socket.socket(fileno=arguments.control)
    await lifecycle.work(setup.config, worker, listening, control, stopping=start_exit_deadline)
    return 0
