"""
The program: argv, environment, configuration file, logging and exit status; the only reader of these.

Nothing that takes long to import is imported before it is needed: `--help` and `--version` answer at once, and Ctrl-C
while the rest is imported leaves no traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imgkeep.cli.interruption import INTERRUPTED, TERMINATED, Terminated, describe_interruption
from imgkeep.cli.parser import make_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import TextIO

    from imgkeep.cluster.worker_process import WorkerSetup
    from imgkeep.config import Config

# ruff: noqa: PLC0415 - see above

CONFIG_FILE = "config.toml"
WORKER = "worker"
DONE, SOME_FAILED, USAGE = 0, 1, 2
TOKEN = "IMGKEEP_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE = "IMGKEEP_TOKEN_FILE"  # noqa: S105 - likewise
TOKEN_BYTES_MAX = 4096
END_BY_THEMSELVES = frozenset({"serve", "demo"})
"""Commands that take signals as their orderly end."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command and return the exit status: 0, 1 (some failed), 2 (usage or configuration), 130 (Ctrl-C), 143
    (SIGTERM).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = argparse.Namespace(command=None)
    try:
        try:
            arguments = _read_worker(words[1:]) if words[:1] == [WORKER] else make_parser().parse_args(words)
            os.umask(0o077)  # records may hold links that still open something
            return _run_command(arguments)
        finally:
            sys.stdout.flush()  # here, because no code could handle a broken pipe at the interpreter's end
    except BrokenPipeError:
        # The reader of our answer has enough; the interpreter must not complain about it while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except KeyboardInterrupt:
        return _interrupt(arguments, INTERRUPTED)
    except Terminated:
        return _interrupt(arguments, TERMINATED)


def _run_command(arguments: argparse.Namespace) -> int:
    from imgkeep.config import ENVIRONMENT_PREFIX

    level = os.environ.get(f"{ENVIRONMENT_PREFIX}LOG__LEVEL", "").lower()  # noqa: TID251 - the one reader
    try:
        # A worker goes by what its supervisor has read.
        setup = _read_setup() if arguments.command == WORKER else None
        config = _configure(arguments) if setup is None else setup.config
        level = config.log.level
        if arguments.command == "health":
            return _check_health(arguments, config)
        return _run_with_logs(arguments, config, setup)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last resort among them
        return _report_error(error, in_full=level == "debug")


def _configure(arguments: argparse.Namespace) -> Config:
    """Return the configuration; a demonstration and a completion are the same everywhere."""
    from imgkeep.config import Config, Log

    return Config(log=Log(level="warning")) if arguments.command in {"demo", "completion"} else _load(arguments)


def _check_health(arguments: argparse.Namespace, config: Config) -> int:
    """Answer without the rest of the program: containers ask twice a minute."""
    from imgkeep.cli.health import health

    return health(config.server, as_json=arguments.json, out=sys.stdout, err=sys.stderr)


def _run_with_logs(arguments: argparse.Namespace, config: Config, setup: WorkerSetup | None) -> int:
    from imgkeep.observability.logs import logging_to

    # To standard error: what a command prints is its answer, and no log record must get in between.
    with logging_to(cast("TextIO", _StandardError()), config.log):
        if arguments.command == "serve" and config.server.workers > 1:
            return _supervise(arguments, config)
        if setup is not None:
            return _run(_work_as(arguments, setup), ends_itself=True)
        return _dispatch(arguments, config)


class _StandardError:
    """Standard error as it is at the moment: a progress bar has records printed above itself."""

    @staticmethod
    def write(text: str) -> int:
        return sys.stderr.write(text)

    @staticmethod
    def flush() -> None:
        sys.stderr.flush()


def _dispatch(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.command == "serve":
        return _run(_serve(config), ends_itself=True)
    from imgkeep.commands import Invocation, prepare

    environment = _environment(arguments)
    prepared = prepare(Invocation(arguments, config, environment, _read_token(arguments, environment)))
    if isinstance(prepared, int):
        return prepared
    return _run(prepared, ends_itself=arguments.command in END_BY_THEMSELVES)


async def _serve(config: Config) -> int:
    from imgkeep.bootstrap import server as app
    from imgkeep.bootstrap.exit_deadline import start_exit_deadline

    _raise_file_limit()
    await app.serve(config, stopping=start_exit_deadline)
    return DONE


def _supervise(arguments: argparse.Namespace, config: Config) -> int:
    """Run several processes that serve on one port."""
    from contextlib import ExitStack
    from functools import partial

    from imgkeep.bootstrap import server as app
    from imgkeep.cluster.supervisor import Supervisor
    from imgkeep.listening import listen_for_workers

    # Workers run what we run, whatever else is called `proxy` where they are started.
    here = str(Path(__file__).parents[1])
    environment = dict(os.environ)  # noqa: TID251 - to be handed on
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
    with ExitStack() as stack:
        supervisor = Supervisor(
            config,
            sockets=listen_for_workers(config.server, stack),
            command=(sys.executable, "-P", "-m", "imgkeep", WORKER),
            environment=environment,
            reload=lambda: _load(arguments),
            opened=partial(app.tell_workers_opening, config),
        )
        return supervisor.run()


def _read_worker(words: Sequence[str]) -> argparse.Namespace:
    """Read how the supervisor has started us; no person calls this, so it is in no help."""
    parser = argparse.ArgumentParser(prog=f"imgkeep {WORKER}", add_help=False)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--control", required=True, type=int)
    return parser.parse_args(words, argparse.Namespace(command=WORKER))


def _read_setup() -> WorkerSetup:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends these to all; the supervisor decides
    import msgspec

    from imgkeep.cluster.worker_process import WorkerSetup
    from imgkeep.config import ConfigError

    try:
        return msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSetup)
    except msgspec.DecodeError:
        raise ConfigError("the supervisor is of another version: restart instead of reloading") from None


async def _work_as(arguments: argparse.Namespace, setup: WorkerSetup) -> int:
    """Serve as the worker that the supervisor has started."""
    import socket

    import msgspec

    from imgkeep.bootstrap import server as app
    from imgkeep.bootstrap.exit_deadline import start_exit_deadline
    from imgkeep.cluster.info import WorkerInfo

    _raise_file_limit()
    worker = msgspec.convert({**msgspec.json.decode(arguments.worker), "secret": setup.secret}, WorkerInfo)
    listening = [socket.socket(fileno=int(number)) for number in arguments.listen.split(",")]
    control = socket.socket(fileno=arguments.control)
    await app.work(setup.config, worker, listening, control, stopping=start_exit_deadline)
    return DONE


def _load(arguments: argparse.Namespace) -> Config:
    """Read the configuration: a file that was named has to be there, the default one need not."""
    from imgkeep.config import ENVIRONMENT_PREFIX, ConfigError, load, read_config_file

    named = arguments.config or os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")  # noqa: TID251 - the one reader
    file: dict[str, Any] = {}
    try:
        file = read_config_file(named or CONFIG_FILE)
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{named}: there is no such file") from None
    look = _check_placeholder if arguments.command in {"serve", "check"} else None
    return load(file, _environment(arguments), look=look)


def _check_placeholder(config: Config) -> None:
    if config.delivery.placeholder:
        from imgkeep.web.error_responses import read_placeholder

        read_placeholder(config.delivery.placeholder)


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the process with what flags stand for, which win over it."""
    environment = dict(os.environ)  # noqa: TID251 - the one reader
    chosen: dict[str, str | None] = {}
    if arguments.command == "serve":
        chosen["SERVER__HOST"] = arguments.host
        chosen["SERVER__PORT"] = None if arguments.port is None else str(arguments.port)
    data = getattr(arguments, "data", None)
    if data is not None:
        environment.pop("AWS_S3_BUCKET_NAME", None)  # it names a store where none is set, and now one is
        place = f"file:{data}"
        chosen |= {"STORE__URL": place, "STORE__FALLBACK": place, "DATABASE__URL": f"sqlite:{data}/imgkeep.db"}
    return environment | {f"IMGKEEP_{name}": value for name, value in chosen.items() if value is not None}


def _read_token(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str | None:
    """Return what the API of `--server` takes, where it was given: by a flag, the environment, or a file."""
    from imgkeep.config import ConfigError

    flag, file = getattr(arguments, "token", None), environment.get(TOKEN_FILE)
    name, token = ("--token", flag) if isinstance(flag, str) else (TOKEN, environment.get(TOKEN))
    if not getattr(arguments, "server", None) and arguments.command != "failures":  # which always asks a server
        if name == "--token" and isinstance(flag, str):
            raise ConfigError("--token: needs --server")
        return None
    if token is None and file:
        name = TOKEN_FILE
        try:
            with Path(file).open("rb") as opened:
                token = opened.read(TOKEN_BYTES_MAX).decode("ascii", "replace").strip()
        except OSError as error:
            raise ConfigError(f"{TOKEN_FILE}: {file}: {error.strerror}") from None
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise ConfigError(f"{name}: expected printable ASCII characters without spaces")
    return token


def _run(command: Coroutine[Any, Any, int], *, ends_itself: bool) -> int:
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(command if ends_itself else _until_terminated(command))


async def _until_terminated(command: Coroutine[Any, Any, int]) -> int:
    """
    Run a command that SIGTERM ends as Ctrl-C does: it is cancelled, and tidies up. A second signal ends it at once.

    Raises:
        Terminated: SIGTERM came.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    heard = False

    def hear() -> None:
        nonlocal heard
        heard = True
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()

    with suppress(ValueError):  # only the main thread hears signals
        loop.add_signal_handler(signal.SIGTERM, hear)
    try:
        return await command
    except asyncio.CancelledError:
        if heard:
            raise Terminated from None
        raise
    finally:
        with suppress(ValueError):
            loop.remove_signal_handler(signal.SIGTERM)


def _raise_file_limit() -> None:
    """Use as many file descriptors as the system allows: a client and the file it reads need one each."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _interrupt(arguments: argparse.Namespace, status: int) -> int:
    has_job = arguments.command == "save" and bool(arguments.server)
    with suppress(OSError):
        _print_error(describe_interruption(arguments.command, has_job=has_job), status)
    return status


def _report_error(error: Exception, *, in_full: bool) -> int:
    """Say what went wrong, and return the exit status. An error that no code of ours expected is one line too."""
    from imgkeep.config import ConfigError

    if isinstance(error, ConfigError):
        sys.stderr.writelines(f"imgkeep: {message}\n" for message in error.messages)
        return USAGE
    from imgkeep.core.errors import StorageError
    from imgkeep.database import IncompatibleDatabase
    from imgkeep.observability.logs import describe_crash

    match error:
        case IncompatibleDatabase():
            return _print_error(error.in_full, USAGE)  # to start again mends nothing
        case StorageError():
            return _print_error(error.in_full, SOME_FAILED)
        case OSError():
            name = f": {error.filename}" if error.filename else ""
            return _print_error(f"{error.strerror or error}{name}", SOME_FAILED)
        case _:
            return _print_error(describe_crash(error, in_full=in_full), SOME_FAILED)


def _print_error(message: str, status: int) -> int:
    sys.stderr.write(f"imgkeep: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
