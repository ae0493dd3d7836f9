"""
The arguments of every command, and their help.

Rules:
- Each command has a sentence, an example and its exit statuses in its `--help`; only what a person calls is in there.
- `--config` and `--version` stand before or behind the command. A flag wins over the environment and the file.
- Importing this module is cheap: `--help` and `--version` wait for nothing else.
"""

from __future__ import annotations

import argparse
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from imgkeep import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

SHELLS: Final = ("bash", "zsh", "fish", "tcsh")
"""Those that shtab writes for."""
LIFE_DEFAULT_S: Final = 30
LIFE_MAX_S: Final = 600
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_USAGE: Final = (2, "wrong usage or configuration")
_INTERRUPTED: Final = ((130, "ended by Ctrl-C"), (143, "ended by SIGTERM"))

SIMILARITY_MIN: Final = 0.6
"""Minimum ratio of difflib for a word that may be misspelt: `lst` is 0.86 of `list`."""
WORD_CHARS_MAX: Final = 64
"""Maximum length of a word that is compared with others: what is longer is no misspelling."""


class _Parser(argparse.ArgumentParser):
    """A parser that says which command or option a misspelt one may have meant."""

    def parse_args(  # type: ignore[override] # all that we call it with
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        commands = next(action.choices for action in self._actions if isinstance(action.choices, dict))
        for word in takewhile(lambda word: word not in commands, args):
            # Else what follows an option that there is not would be taken for the command.
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions:
                self._refuse_option(word)
        arguments, rest = self.parse_known_args(args, namespace)
        if rest:
            commands[arguments.command]._refuse_option(rest[0])  # noqa: SLF001 - of this class
        return arguments

    def _refuse_option(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        if not word.startswith("-"):
            self.error(f"one argument too many: {word!r}")
        self.error(f"there is no option {name}{_suggest(name, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = "command" if action.metavar == "COMMAND" else "choice"
            listed = (
                "; `imgkeep --help` lists them" if kind == "command" else f"; there are {', '.join(action.choices)}"
            )
            hint = _suggest(str(value), action.choices) or listed
            raise argparse.ArgumentError(None if kind == "command" else action, f"there is no {kind} {value!r}{hint}")


def _suggest(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - for mistakes alone

    found = get_close_matches(word, list(known), n=1, cutoff=SIMILARITY_MIN) if len(word) <= WORD_CHARS_MAX else []
    return f"; did you mean {found[0]}?" if found else ""


_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="imgkeep",
        description="Makes temporary image links permanent.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="first steps:\n  imgkeep demo\n  imgkeep serve\n\n`imgkeep COMMAND --help` has an example of each.",
        allow_abbrev=False,
    )
    _add_common(parser, default=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serving(commands)
    _add_looking(commands)
    _add_saving(commands)
    _add_changes(commands)
    _add_rewrite(commands)
    _add_upkeep(commands)
    _add_secrets(commands)
    completion = _add(
        commands,
        "completion",
        "print the completion of these commands for a shell",
        'eval "$(imgkeep completion bash)"',
        statuses=((0, "printed"), _USAGE),
    )
    completion.add_argument("shell", choices=SHELLS, help="the shell that reads it")
    return parser


def _add(
    commands: _Commands[_Parser],
    name: str,
    sentence: str,
    *examples: str,
    statuses: Sequence[tuple[int, str]] = (),
    store: bool = False,
) -> argparse.ArgumentParser:
    """Add a command; `store`: one that works on stored images, and so takes `--data`."""
    shown = "\n".join(f"  {example}" for example in examples)
    told = "\n".join(f"  {status:<3}  {words}" for status, words in statuses)
    command = commands.add_parser(
        name,
        help=sentence,
        description=f"{sentence[0].upper()}{sentence[1:]}.",
        epilog=f"{'examples' if len(examples) > 1 else 'example'}:\n{shown}\n\nexit status:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(command, default=argparse.SUPPRESS)
    if store:
        command.add_argument(
            "--data",
            type=_folder,
            metavar="DIR",
            help="keep images and database in this folder; wins over store.url, store.fallback and database.url",
        )
    return command


def _add_common(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument("-V", "--version", action="version", version=f"imgkeep {__version__}")
    action = parser.add_argument(
        "--config",
        metavar="FILE",
        default=default,
        help="configuration (default: $IMGKEEP_CONFIG, or config.toml if there is one)",
    )
    _completes(action, "file")


def _add_json(command: argparse.ArgumentParser, words: str = "one JSON object a line") -> None:
    command.add_argument("--json", action="store_true", help=f"print {words}")


def _add_server(command: argparse.ArgumentParser, words: str = "a running imgkeep (default: the store itself)") -> None:
    command.add_argument("--server", metavar="URL", help=words)
    command.add_argument(
        "--token",
        metavar="TOKEN",
        help="of its API; other users can see it in the list of processes, so rather set $IMGKEEP_TOKEN or "
        "$IMGKEEP_TOKEN_FILE (default: what this configuration knows)",
    )


def _add_serving(commands: _Commands[_Parser]) -> None:
    serve = _add(
        commands,
        "serve",
        "serve images until SIGTERM or Ctrl-C",
        "imgkeep serve",
        "imgkeep serve --host 0.0.0.0 --port 80 --data /var/lib/imgkeep",
        statuses=((0, "stopped in order"), (1, "could not start, or failed"), _USAGE),
        store=True,
    )
    serve.add_argument("--host", metavar="ADDRESS", help="address to listen on; wins over server.host")
    serve.add_argument("--port", type=_port, help="port to listen on, 0: any free one; wins over server.port")
    demo = _add(
        commands,
        "demo",
        "show in a browser what imgkeep does, with pictures whose links die after half a minute",
        "imgkeep demo",
        "imgkeep demo --port 8000 --life 10s --open",
        statuses=((0, "stopped by SIGTERM or Ctrl-C"), (1, "could not start"), _USAGE),
    )
    demo.add_argument("--port", type=_port, default=0, help="of the page (default: any free one)")
    demo.add_argument(
        "--life", type=_life, default=LIFE_DEFAULT_S, metavar="TIME", help="of each link, as 10s or 2m (default: 30s)"
    )
    demo.add_argument("--data", type=_folder, metavar="DIR", help="keep the images here (default: until the end)")
    demo.add_argument("--open", action="store_true", help="open the page in the browser of this machine")


def _add_looking(commands: _Commands[_Parser]) -> None:
    check = _add(
        commands,
        "check",
        "validate the configuration",
        "imgkeep check --live",
        statuses=((0, "valid, and all works that was tried"), (1, "something does not work"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    check.add_argument("--live", action="store_true", help="try all that every configured store must be able to do")
    _add_json(check, "one JSON object for each part")
    inspect = _add(
        commands,
        "inspect",
        "tell what links name and whether they may be fetched; without --server no network is used",
        "imgkeep inspect 'https://example.com/picture.png?X-Amz-Expires=3600&X-Amz-Signature=0a0b'",
        statuses=((0, "all were read"), (1, "some are no links that imgkeep reads"), _USAGE, *_INTERRUPTED),
    )
    inspect.add_argument("urls", nargs="+", metavar="URL", help="- reads one a line from standard input")
    _add_server(inspect, "a running imgkeep (default: by this configuration)")
    _add_json(inspect)
    images = _add(
        commands,
        "list",
        "list stored images, newest first",
        "imgkeep list --limit 10",
        statuses=((0, "listed"), (1, "the database or the server cannot be used"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    images.add_argument("--limit", type=_count, default=100, help="how many; 0: all (default: %(default)s)")
    _add_server(images)
    _add_json(images)
    failures = _add(
        commands,
        "failures",
        "list what failed lately at a running imgkeep, and why",
        "imgkeep failures --limit 20",
        statuses=((0, "listed"), (1, "the server cannot be asked"), _USAGE, *_INTERRUPTED),
    )
    failures.add_argument("--limit", type=_count, default=100, help="how many, 500 at most (default: %(default)s)")
    _add_server(failures, "a running imgkeep (default: the one of this configuration)")
    _add_json(failures)
    health = _add(
        commands,
        "health",
        "tell whether the server of this configuration answers and wants requests",
        "imgkeep health",
        statuses=((0, "ready, or degraded"), (1, "unready, draining, or no answer"), _USAGE, *_INTERRUPTED),
    )
    _add_json(health, "one JSON object, as /readyz answers it")
    stats = _add(
        commands,
        "stats",
        "tell how much is stored",
        "imgkeep stats",
        statuses=((0, "told"), (1, "the database cannot be used"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    _add_json(stats, "one JSON object")


def _add_saving(commands: _Commands[_Parser]) -> None:
    saving = _add(
        commands,
        "save",
        "store images before a visitor asks for them, and print their permanent URLs",
        "imgkeep save 'https://example.com/picture.png?X-Amz-Expires=3600&X-Amz-Signature=0a0b'",
        "imgkeep save -f links.txt --server http://127.0.0.1:8080",
        statuses=((0, "all are stored"), (1, "some are not"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    saving.add_argument("urls", nargs="*", metavar="URL", help="- reads one a line from standard input")
    _completes(saving.add_argument("-f", "--file", type=Path, metavar="FILE", help="with one URL a line"), "file")
    _add_server(saving)
    _add_json(saving)
    adopting = _add(
        commands,
        "import",
        "adopt a folder of images with their names",
        "imgkeep import public/generated-images --mount generated-images",
        statuses=((0, "all images are stored"), (1, "some are not"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    folder = adopting.add_argument("folder", type=Path, metavar="DIR", help="images are found at any depth")
    _completes(folder, "folder")
    adopting.add_argument("--mount", required=True, help="old names answer under /MOUNT/NAME, see [[legacy]]")
    _add_json(adopting, "one JSON object")
    exporting = _add(
        commands,
        "export",
        "print source, permanent URL, digest and time of all images",
        "imgkeep export > images.csv",
        statuses=((0, "printed"), (1, "the database cannot be used"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    form = exporting.add_mutually_exclusive_group()
    form.add_argument("--format", choices=["csv", "jsonl"], default="csv", help="(default: %(default)s)")
    form.add_argument("--json", action="store_const", dest="format", const="jsonl", help="the same as --format jsonl")


def _add_changes(commands: _Commands[_Parser]) -> None:
    statuses = ((0, "done for all names"), (1, "not done for some"), _USAGE, *_INTERRUPTED)
    removing = _add(
        commands,
        "remove",
        "remove images, so that they are neither shown nor fetched again",
        "imgkeep remove 'https://example.com/picture.png'",
        statuses=statuses,
        store=True,
    )
    removing.add_argument("names", nargs="+", metavar="KEY|URL", help="- reads one a line from standard input")
    removing.add_argument("--digest", action="store_true", help="the names are digests")
    removing.add_argument("--force", action="store_true", help="also what is not stored, so that it never is")
    restoring = _add(
        commands,
        "restore",
        "undo removals",
        "imgkeep restore 'https://example.com/picture.png'",
        statuses=statuses,
        store=True,
    )
    restoring.add_argument("names", nargs="+", metavar="KEY|DIGEST|URL", help="- reads one a line from standard input")
    refetching = _add(
        commands,
        "refetch",
        "fetch stored images again, and replace those that differ",
        "imgkeep refetch 'https://example.com/picture.png?X-Amz-Expires=3600&X-Amz-Signature=0a0b'",
        statuses=statuses,
        store=True,
    )
    refetching.add_argument("names", nargs="+", metavar="KEY|URL", help="- reads one a line from standard input")
    refetching.add_argument("--url", metavar="URL", help="the link to fetch by, where one key is named")
    for command in (removing, restoring, refetching):
        _add_server(command)
        _add_json(command)


def _add_rewrite(commands: _Commands[_Parser]) -> None:
    rewriting = _add(
        commands,
        "rewrite",
        "have links to images in HTML and Markdown lead through imgkeep",
        "imgkeep rewrite page.html > new.html",
        "imgkeep rewrite --in-place --save --base https://img.example.com site",
        "imgkeep rewrite --in-place --undo --base https://img.example.com site",
        statuses=(
            (0, "all documents are as they should be"),
            (1, "some cannot be rewritten or some images not stored; with --diff: something would change"),
            _USAGE,
            *_INTERRUPTED,
        ),
        store=True,
    )
    names = rewriting.add_argument(
        "names", nargs="+", metavar="FILE|DIR", help="- reads one document from standard input"
    )
    _completes(names, "file")
    rewriting.add_argument("--format", choices=["html", "markdown"], help="of a file whose name does not tell")
    which = rewriting.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="all links (default: temporary ones)")
    which.add_argument("--hosts", action="append", metavar="GLOB", help="links of these hosts; may be given often")
    which.add_argument("--undo", action="store_true", help="put the source URLs back that links of imgkeep hold")
    rewriting.add_argument("--url", help="the page's own, or the folder's, for relative links")
    rewriting.add_argument("--base", metavar="URL", help="what new links begin with; wins over server.public_url")
    way = rewriting.add_mutually_exclusive_group()
    way.add_argument("--in-place", action="store_true", help="replace files (default: print one document)")
    way.add_argument("--diff", action="store_true", help="print what would change; exit status 1 if something would")
    rewriting.add_argument(
        "--save", action="store_true", help="store the images first; links of those that are not stored stay"
    )
    _add_server(rewriting, "a running imgkeep that tells what it would refuse and, with --save, stores the images")
    _add_json(rewriting, "with --in-place: one JSON object a file")


def _add_upkeep(commands: _Commands[_Parser]) -> None:
    verify = _add(
        commands,
        "verify",
        "read all that is stored again, and quarantine what is damaged",
        "imgkeep verify",
        statuses=((0, "all is good"), (1, "something is damaged or missing"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    _add_json(verify)
    reindex = _add(
        commands,
        "reindex",
        "fill the database from the records",
        "imgkeep reindex",
        statuses=((0, "filled"), (1, "the store or the database cannot be used"), _USAGE, *_INTERRUPTED),
        store=True,
    )
    _add_json(reindex, "one JSON object")
    migration = _add(
        commands,
        "migrate",
        "copy all that is stored from one store to another",
        "imgkeep migrate file:data 's3://bucket/images?region=eu-west-1'",
        statuses=((0, "all is copied"), (1, "something is not"), _USAGE, *_INTERRUPTED),
    )
    migration.add_argument("source", metavar="FROM", help="file:PATH or s3://BUCKET/PREFIX, as in store.url")
    migration.add_argument("target", metavar="TO", help="likewise; what it has already stays")
    _add_json(migration, "one JSON object")


def _add_secrets(commands: _Commands[_Parser]) -> None:
    sign = _add(
        commands,
        "sign",
        "print signed /img URLs",
        "imgkeep sign --ttl-s 3600 'https://example.com/picture.png'",
        statuses=((0, "all are signed"), (1, "some are no links that imgkeep reads"), _USAGE, *_INTERRUPTED),
    )
    sign.add_argument("urls", nargs="+", metavar="URL", help="- reads one a line from standard input")
    sign.add_argument("--ttl-s", type=_count, metavar="SECONDS", help="how long they hold (default: for ever)")
    _add_json(sign)
    token = _add(
        commands,
        "token",
        "print a new secret, or what opens the API of this machine",
        "imgkeep token",
        "imgkeep token --login",
        statuses=((0, "printed"), _USAGE),
        store=True,
    )
    which = token.add_mutually_exclusive_group()
    which.add_argument("--local", action="store_true", help="print the token that the API of this machine takes")
    which.add_argument("--login", action="store_true", help="print a link by which a browser here gets into the API")
    _add_json(token, "one JSON object")


def _completes(action: argparse.Action, what: str) -> None:
    """Have shells complete the names of files or folders."""
    action.kind = what  # type: ignore[attr-defined] # `cli/completion.py` hands it to shtab


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 5 or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def _folder(text: str) -> str:
    """Check a folder that is going to stand in the URLs of a store and of a database."""
    if not text or not text.isprintable() or set(text) & set("?#%:") or text.startswith("//"):
        raise argparse.ArgumentTypeError("expected a folder, without ? # % : and control characters in its name")
    return text.rstrip("/") or "/"


def _life(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    if not number.isascii() or not number.isdecimal() or not 1 <= int(number[:9]) * _UNITS[unit] <= LIFE_MAX_S:
        raise argparse.ArgumentTypeError(f"expected a time like 10s or 2m, at least 1s and at most {LIFE_MAX_S}s")
    return float(int(number) * _UNITS[unit])
