"""Common arguments of the commands in `parser.py`: options, exit statuses, and the forms of values."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from imgkeep import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.cli.spelling_hints import CommandParser

LIFE_DEFAULT_S: Final = 30
LIFE_MAX_S: Final = 600
"""Maximum life of a link of `demo`."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

USAGE: Final = (2, "wrong usage or configuration")
INTERRUPTED: Final = ((130, "ended by Ctrl-C"), (143, "ended by SIGTERM"))

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"  # noqa: SLF001 - argparse has no public name for it


def add_command(
    commands: Commands,
    name: str,
    sentence: str,
    *examples: str,
    statuses: Sequence[tuple[int, str]] = (),
    store: bool = False,
) -> argparse.ArgumentParser:
    """Add a command; `store`: it works on stored images, and so takes `--data`."""
    shown = "\n".join(f"  {example}" for example in examples)
    listed = "\n".join(f"  {status:<3}  {words}" for status, words in statuses)
    command = commands.add_parser(
        name,
        help=sentence,
        description=f"{sentence[0].upper()}{sentence[1:]}.",
        epilog=f"{'examples' if len(examples) > 1 else 'example'}:\n{shown}\n\nexit status:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_common(command, default=argparse.SUPPRESS)
    if store:
        command.add_argument(
            "--data",
            type=read_folder,
            metavar="DIR",
            help="keep images and database in this folder; wins over store.url, store.fallback and database.url",
        )
    return command


def add_common(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Add the options of every command."""
    parser.add_argument("-V", "--version", action="version", version=f"imgkeep {__version__}")
    action = parser.add_argument(
        "--config",
        metavar="FILE",
        default=default,
        help="configuration (default: $IMGKEEP_CONFIG, or config.toml if there is one)",
    )
    complete_names_of(action, "file")


def add_json(command: argparse.ArgumentParser, words: str = "one JSON object a line") -> None:
    command.add_argument("--json", action="store_true", help=f"print {words}")


def add_server(command: argparse.ArgumentParser, words: str = "a running imgkeep (default: the store itself)") -> None:
    command.add_argument("--server", metavar="URL", help=words)
    command.add_argument(
        "--token",
        metavar="TOKEN",
        help="for its API; other users can see it in the list of processes, so rather set $IMGKEEP_TOKEN or "
        "$IMGKEEP_TOKEN_FILE (default: the token of this configuration)",
    )


def complete_names_of(action: argparse.Action, what: Literal["file", "folder"]) -> None:
    """Let shells complete the names of files or folders."""
    action.kind = what  # type: ignore[attr-defined] # `cli/completion.py` hands it to shtab


def read_count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def read_port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 5 or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def read_time(text: str) -> datetime:
    """Read a day or a time (ISO 8601); one without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected a time like 2026-11-22T10:00:00Z, got {text!r}") from None


def read_folder(text: str) -> str:
    """Check a folder for the URLs of a store and of a database, which will hold its name."""
    if not text or not text.isprintable() or set(text) & set("?#%:") or text.startswith("//"):
        raise argparse.ArgumentTypeError("expected a folder, without ? # % : and control characters in its name")
    return text.rstrip("/") or "/"


def read_life(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    if not number.isascii() or not number.isdecimal() or not 1 <= int(number[:9]) * _UNITS[unit] <= LIFE_MAX_S:
        raise argparse.ArgumentTypeError(f"expected a time like 10s or 2m, at least 1s and at most {LIFE_MAX_S}s")
    return float(int(number) * _UNITS[unit])
