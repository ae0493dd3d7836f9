"""
The program: argv, environment, configuration file, logging and exit status. Only this module reads these.

It imports what takes long only before its use: `--help` and `--version` answer at once, and Ctrl-C during an import
leaves no traceback.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from imgkeep.cli.interruption import INTERRUPTED, TERMINATED, Terminated, describe_interruption
from imgkeep.cli.parser import make_parser
from imgkeep.cli.worker import WORKER, read_worker_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import TextIO

    from imgkeep.config import Config

# ruff: noqa: PLC0415 - see above

CONFIG_FILE = "config.toml"
SOME_FAILED, USAGE = 1, 2
TOKEN = "IMGKEEP_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE = "IMGKEEP_TOKEN_FILE"  # noqa: S105 - likewise
TOKEN_BYTES_MAX = 4096
HANDLE_SIGNALS = frozenset({"serve", "demo", WORKER})
"""Commands that handle SIGTERM and Ctrl-C themselves, and drain."""
WITHOUT_CONFIGURATION = frozenset({"demo", "completion"})
"""Commands that do the same on every machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command and return the exit status: 0, 1 (some failed), 2 (usage or configuration), 130 (Ctrl-C), 143
    (SIGTERM).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = Namespace(command=None)
    try:
        try:
            arguments = read_worker_arguments(words[1:]) if words[:1] == [WORKER] else make_parser().parse_args(words)
            os.umask(0o077)  # records may hold links that still open something
            return _run_command(arguments)
        finally:
            sys.stdout.flush()  # here, because no code could handle a broken pipe at the interpreter's end
    except BrokenPipeError:
        # The reader of the output has closed it; the interpreter must not report that while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except KeyboardInterrupt:
        return _report_interruption(arguments, INTERRUPTED)
    except Terminated:
        return _report_interruption(arguments, TERMINATED)


def _run_command(arguments: Namespace) -> int:
    from imgkeep.config import ENVIRONMENT_PREFIX

    level = os.environ.get(f"{ENVIRONMENT_PREFIX}LOG__LEVEL", "").lower()  # noqa: TID251 - the one reader
    try:
        if arguments.command == WORKER:
            from imgkeep.cli.worker import read_worker_setup, run_worker

            setup = read_worker_setup(sys.stdin.buffer)  # it holds the configuration that the supervisor has read
            level = setup.config.log.level
            return _run_with_logs(arguments, setup.config, lambda: run_worker(arguments, setup))
        config = _configure(arguments)
        level = config.log.level
        return _run_with_logs(arguments, config, lambda: _start(arguments, config))
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last resort among them
        return _report_error(error, arguments.command, in_full=level == "debug")


def _configure(arguments: Namespace) -> Config:
    from imgkeep.config import Config, Log

    return Config(log=Log(level="warning")) if arguments.command in WITHOUT_CONFIGURATION else _load(arguments)


def _run_with_logs(arguments: Namespace, config: Config, start: Callable[[], int | Coroutine[Any, Any, int]]) -> int:
    from imgkeep.observability.logs import logging_to

    # To standard error: standard output holds the answer of a command, and no log record must get in between.
    with logging_to(cast("TextIO", _StandardError()), config.log):
        started = start()
        if isinstance(started, int):
            return started
        from imgkeep.cli.event_loop import run_coroutine

        return run_coroutine(started, handles_signals=arguments.command in HANDLE_SIGNALS)


class _StandardError:
    """The standard error stream of the moment: a progress bar replaces it, and prints records above itself."""

    @staticmethod
    def write(text: str) -> int:
        return sys.stderr.write(text)

    @staticmethod
    def flush() -> None:
        sys.stderr.flush()


def _start(arguments: Namespace, config: Config) -> int | Coroutine[Any, Any, int]:
    from imgkeep.cli.dispatch import run
    from imgkeep.cli.invocation import Invocation

    environment = _environment(arguments)
    token = _read_token(arguments, environment)
    return run(Invocation(arguments, config, environment, lambda: _load(arguments), token))


def _load(arguments: Namespace) -> Config:
    """Read the configuration. A file that a flag or a variable names must exist, the default one need not."""
    from imgkeep.config import ENVIRONMENT_PREFIX, ConfigError, load, read_config_file

    named = arguments.config or os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")  # noqa: TID251 - the one reader
    file: dict[str, Any] = {}
    try:
        file = read_config_file(named or CONFIG_FILE)
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{named}: there is no such file") from None
    check = _check_placeholder if arguments.command in {"serve", "check"} else None
    return load(file, _environment(arguments), check=check)


def _check_placeholder(config: Config) -> None:
    if config.delivery.placeholder:
        from imgkeep.web.error_presentation import read_placeholder

        read_placeholder(config.delivery.placeholder)


def _environment(arguments: Namespace) -> dict[str, str]:
    """Return the variables of the process, and over them those that flags stand for."""
    environment = dict(os.environ)  # noqa: TID251 - the one reader
    chosen: dict[str, str | None] = {}
    if arguments.command == "serve":
        chosen["SERVER__HOST"] = arguments.host
        chosen["SERVER__PORT"] = None if arguments.port is None else str(arguments.port)
    data = getattr(arguments, "data", None)
    if data is not None:
        environment.pop("AWS_S3_BUCKET_NAME", None)  # it names a store where none is set, and --data sets one
        url = f"file:{data}"
        chosen |= {"STORE__URL": url, "STORE__FALLBACK": url, "DATABASE__URL": f"sqlite:{data}/imgkeep.db"}
    return environment | {f"IMGKEEP_{name}": value for name, value in chosen.items() if value is not None}


def _read_token(arguments: Namespace, environment: Mapping[str, str]) -> str | None:
    """Return the token for the API of `--server` from a flag, the environment or a file; `None`: none is given."""
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
            with open(file, "rb") as opened:  # noqa: PTH123 - no command waits for pathlib because of this
                token = opened.read(TOKEN_BYTES_MAX).decode("ascii", "replace").strip()
        except OSError as error:
            raise ConfigError(f"{TOKEN_FILE}: {file}: {error.strerror}") from None
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise ConfigError(f"{name}: expected printable ASCII characters without spaces")
    return token


def _report_interruption(arguments: Namespace, status: int) -> int:
    has_job = arguments.command == "save" and bool(arguments.server)
    with suppress(OSError):
        _print_error(describe_interruption(arguments.command, has_job=has_job), status)
    return status


def _report_error(error: Exception, command: str, *, in_full: bool) -> int:
    """Print one line, and return the exit status; also for an unexpected error."""
    from imgkeep.config import ConfigError
    from imgkeep.core.errors import StorageError

    match error:
        case ConfigError():
            sys.stderr.writelines(f"imgkeep: {message}\n" for message in error.messages)
            return USAGE
        case ModuleNotFoundError() if error.name and error.name.partition(".")[0] != "imgkeep":
            return _print_error(
                f"`imgkeep {command}` needs {error.name}, which is not installed: pip install 'imgkeep[server]'", USAGE
            )
        case StorageError():
            from imgkeep.database import IncompatibleDatabase

            # A newer version wrote the database: another start would not help.
            return _print_error(error.in_full, USAGE if isinstance(error, IncompatibleDatabase) else SOME_FAILED)
        case OSError():
            name = f": {error.filename}" if error.filename else ""
            return _print_error(f"{error.strerror or error}{name}", SOME_FAILED)
        case _:
            from imgkeep.observability.logs import describe_crash

            return _print_error(describe_crash(error, in_full=in_full), SOME_FAILED)


def _print_error(message: str, status: int) -> int:
    sys.stderr.write(f"imgkeep: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
