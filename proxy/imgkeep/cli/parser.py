"""
The arguments of every command, and their help.

Rules:
- The `--help` of each command has a sentence, an example and the exit statuses. The command of a worker has none.
- `--config` and `--version` stand before or after the command. A flag wins over the environment and the file.
- Importing this module is cheap: `--help` and `--version` import nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imgkeep.cli.common_arguments import (
    INTERRUPTED,
    LIFE_DEFAULT_S,
    USAGE,
    add_command,
    add_common,
    add_json,
    add_server,
    complete_names_of,
    read_count,
    read_folder,
    read_life,
    read_port,
)
from imgkeep.cli.picture_arguments import add_pictures
from imgkeep.cli.spelling_hints import CommandParser

if TYPE_CHECKING:
    from imgkeep.cli.common_arguments import Commands

SHELLS: Final = ("bash", "zsh", "fish", "tcsh")
"""The shells that shtab knows."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = CommandParser(
        prog="imgkeep",
        description="Makes temporary image links permanent.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="first steps:\n  imgkeep demo\n  imgkeep serve\n\n`imgkeep COMMAND --help` has an example of each.",
        allow_abbrev=False,
    )
    add_common(parser, default=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serving(commands)
    _add_checks(commands)
    _add_reports(commands)
    _add_saving(commands)
    _add_changes(commands)
    add_pictures(commands)
    _add_rewrite(commands)
    _add_upkeep(commands)
    _add_secrets(commands)
    completion = add_command(
        commands,
        "completion",
        "print the completion of these commands for a shell",
        'eval "$(imgkeep completion bash)"',
        statuses=((0, "printed"), USAGE),
    )
    completion.add_argument("shell", choices=SHELLS, help="the shell that reads it")
    return parser


def _add_serving(commands: Commands) -> None:
    serve = add_command(
        commands,
        "serve",
        "serve images until SIGTERM or Ctrl-C",
        "imgkeep serve",
        "imgkeep serve --host 0.0.0.0 --port 80 --data /var/lib/imgkeep",
        statuses=((0, "stopped in order"), (1, "could not start, or failed"), USAGE),
        store=True,
    )
    serve.add_argument("--host", metavar="ADDRESS", help="address to listen on; wins over server.host")
    serve.add_argument("--port", type=read_port, help="port to listen on, 0: any free one; wins over server.port")
    demo = add_command(
        commands,
        "demo",
        "show in a browser what imgkeep does, with pictures whose links die after half a minute",
        "imgkeep demo",
        "imgkeep demo --port 8000 --life 10s --open",
        statuses=((0, "stopped by SIGTERM or Ctrl-C"), (1, "could not start"), USAGE),
    )
    demo.add_argument("--port", type=read_port, default=0, help="of the page (default: any free one)")
    demo.add_argument(
        "--life",
        type=read_life,
        default=LIFE_DEFAULT_S,
        metavar="TIME",
        help="of each link, as 10s or 2m (default: 30s)",
    )
    demo.add_argument("--data", type=read_folder, metavar="DIR", help="keep the images here (default: until the end)")
    demo.add_argument("--open", action="store_true", help="open the page in the browser of this machine")


def _add_checks(commands: Commands) -> None:
    check = add_command(
        commands,
        "check",
        "validate the configuration",
        "imgkeep check --live",
        statuses=((0, "valid, and all probes succeeded"), (1, "a probe failed"), USAGE, *INTERRUPTED),
        store=True,
    )
    check.add_argument(
        "--live", action="store_true", help="probe every operation that imgkeep needs of each configured store"
    )
    add_json(check, "one JSON object for each part")
    inspect = add_command(
        commands,
        "inspect",
        "tell what links name and whether imgkeep may fetch them; without --server it uses no network",
        "imgkeep inspect 'https://example.com/picture.png?X-Amz-Expires=3600&X-Amz-Signature=0a0b'",
        statuses=((0, "imgkeep can read all"), (1, "imgkeep cannot read some"), USAGE, *INTERRUPTED),
    )
    inspect.add_argument("urls", nargs="+", metavar="URL", help="- reads one a line from standard input")
    add_server(inspect, "a running imgkeep (default: by this configuration)")
    add_json(inspect)


def _add_reports(commands: Commands) -> None:
    images = add_command(
        commands,
        "list",
        "list stored images, newest first",
        "imgkeep list --limit 10",
        statuses=((0, "listed"), (1, "the database or the server cannot be used"), USAGE, *INTERRUPTED),
        store=True,
    )
    images.add_argument("--limit", type=read_count, default=100, help="how many; 0: all (default: %(default)s)")
    add_server(images)
    add_json(images)
    failures = add_command(
        commands,
        "failures",
        "list the recent failures of a running imgkeep, with their causes",
        "imgkeep failures --limit 20",
        statuses=((0, "listed"), (1, "the server does not answer"), USAGE, *INTERRUPTED),
    )
    failures.add_argument("--limit", type=read_count, default=100, help="how many, 500 at most (default: %(default)s)")
    add_server(failures, "a running imgkeep (default: the one of this configuration)")
    add_json(failures)
    health = add_command(
        commands,
        "health",
        "tell whether the server of this configuration answers and accepts requests",
        "imgkeep health",
        statuses=((0, "ready, or degraded"), (1, "unready, draining, or no answer"), USAGE, *INTERRUPTED),
    )
    add_json(health, "one JSON object, as /readyz answers it")
    stats = add_command(
        commands,
        "stats",
        "tell how much is stored",
        "imgkeep stats",
        statuses=((0, "printed"), (1, "the database cannot be used"), USAGE, *INTERRUPTED),
        store=True,
    )
    add_json(stats, "one JSON object")


def _add_saving(commands: Commands) -> None:
    saving = add_command(
        commands,
        "save",
        "store images before a visitor asks for them, and print their permanent URLs",
        "imgkeep save 'https://example.com/picture.png?X-Amz-Expires=3600&X-Amz-Signature=0a0b'",
        "imgkeep save -f links.txt --server http://127.0.0.1:8080",
        statuses=((0, "all are stored"), (1, "some are not"), USAGE, *INTERRUPTED),
        store=True,
    )
    saving.add_argument("urls", nargs="*", metavar="URL", help="- reads one a line from standard input")
    complete_names_of(
        saving.add_argument("-f", "--file", type=Path, metavar="FILE", help="with one URL a line"), "file"
    )
    add_server(saving)
    add_json(saving)
    adopting = add_command(
        commands,
        "import",
        "store a folder of images with their names",
        "imgkeep import public/generated-images --mount generated-images",
        statuses=((0, "all images are stored"), (1, "some are not"), USAGE, *INTERRUPTED),
        store=True,
    )
    folder = adopting.add_argument("folder", type=Path, metavar="DIR", help="images are found at any depth")
    complete_names_of(folder, "folder")
    adopting.add_argument("--mount", required=True, help="old names answer under /MOUNT/NAME, see [[legacy]]")
    add_json(adopting, "one JSON object")
    exporting = add_command(
        commands,
        "export",
        "print source, permanent URL, digest and time of all images",
        "imgkeep export > images.csv",
        statuses=((0, "printed"), (1, "the database cannot be used"), USAGE, *INTERRUPTED),
        store=True,
    )
    form = exporting.add_mutually_exclusive_group()
    form.add_argument("--format", choices=["csv", "jsonl"], default="csv", help="(default: %(default)s)")
    form.add_argument("--json", action="store_const", dest="format", const="jsonl", help="the same as --format jsonl")


def _add_changes(commands: Commands) -> None:
    statuses = ((0, "done for all names"), (1, "not done for some"), USAGE, *INTERRUPTED)
    removing = add_command(
        commands,
        "remove",
        "remove images, so that they are neither shown nor fetched again",
        "imgkeep remove 'https://example.com/picture.png'",
        statuses=statuses,
        store=True,
    )
    removing.add_argument("names", nargs="+", metavar="KEY|URL", help="- reads one a line from standard input")
    removing.add_argument("--digest", action="store_true", help="the names are digests")
    removing.add_argument(
        "--force", action="store_true", help="also images that are not stored, so that they never are"
    )
    restoring = add_command(
        commands,
        "restore",
        "undo removals",
        "imgkeep restore 'https://example.com/picture.png'",
        statuses=statuses,
        store=True,
    )
    restoring.add_argument("names", nargs="+", metavar="KEY|DIGEST|URL", help="- reads one a line from standard input")
    refetching = add_command(
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
        add_server(command)
        add_json(command)


def _add_rewrite(commands: Commands) -> None:
    rewriting = add_command(
        commands,
        "rewrite",
        "let links to images in HTML and Markdown lead through imgkeep",
        "imgkeep rewrite page.html > new.html",
        "imgkeep rewrite --in-place --save --base https://img.example.com site",
        "imgkeep rewrite --in-place --undo --base https://img.example.com site",
        statuses=(
            (0, "all documents are as they should be"),
            (1, "some cannot be rewritten or some images not stored; with --diff: something would change"),
            USAGE,
            *INTERRUPTED,
        ),
        store=True,
    )
    names = rewriting.add_argument(
        "names", nargs="+", metavar="FILE|DIR", help="- reads one document from standard input"
    )
    complete_names_of(names, "file")
    rewriting.add_argument("--format", choices=["html", "markdown"], help="of a file whose name does not tell")
    which = rewriting.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="all links (default: temporary ones)")
    which.add_argument("--hosts", action="append", metavar="GLOB", help="links of these hosts; may be given often")
    which.add_argument("--undo", action="store_true", help="put the source URLs back that links of imgkeep hold")
    rewriting.add_argument("--url", help="the page's own, or the folder's, for relative links")
    rewriting.add_argument("--base", metavar="URL", help="what new links begin with; wins over server.public_url")
    _add_picture_options(rewriting)
    way = rewriting.add_mutually_exclusive_group()
    way.add_argument("--in-place", action="store_true", help="replace files (default: print one document)")
    way.add_argument("--diff", action="store_true", help="print what would change; exit status 1 if something would")
    rewriting.add_argument(
        "--save", action="store_true", help="store the images first; links of those that are not stored stay"
    )
    add_server(rewriting, "a running imgkeep that tells what it would refuse and, with --save, stores the images")
    add_json(rewriting, "with --in-place: one JSON object a file")


def _add_picture_options(rewriting: argparse.ArgumentParser) -> None:
    group = rewriting.add_argument_group("derived pictures (docs/derived.md)")
    group.add_argument(
        "--pictures",
        action="append",
        metavar="[PATTERN ]OPTIONS",
        help="options in the links of <img>, as 'preset=thumb'; with a pattern, as '*.example.com/photos/* w=640', "
        "for those of these hosts and paths; may be given often, and the first that matches counts",
    )
    group.add_argument("--widths", metavar="auto|LIST", help="a srcset for each <img> without one, as 320,640,1280")
    group.add_argument("--sizes", help="sizes of these; without, an <img> needs a width, or a stored image")
    group.add_argument("--lazy", action="store_true", help='loading="lazy" for each <img> without loading')
    group.add_argument("--dimensions", action="store_true", help="width and height for each <img> of a stored image")


def _add_upkeep(commands: Commands) -> None:
    verify = add_command(
        commands,
        "verify",
        "read all that is stored again, and quarantine damaged files",
        "imgkeep verify",
        statuses=((0, "all is good"), (1, "an object is damaged, missing or unreadable"), USAGE, *INTERRUPTED),
        store=True,
    )
    add_json(verify)
    reindex = add_command(
        commands,
        "reindex",
        "fill the image index from the records",
        "imgkeep reindex",
        statuses=((0, "filled"), (1, "the store or the database cannot be used"), USAGE, *INTERRUPTED),
        store=True,
    )
    add_json(reindex, "one JSON object")
    forget = add_command(
        commands,
        "forget",
        "drop the images that wait for the bucket on a node that does not come back",
        "imgkeep forget node3",
        statuses=((0, "dropped"), (1, "the node is live, or the database cannot be used"), USAGE, *INTERRUPTED),
    )
    forget.add_argument("node", metavar="NODE", help="its cluster.name")
    add_json(forget, "one JSON object")
    migration = add_command(
        commands,
        "migrate",
        "copy all that is stored from one store to another",
        "imgkeep migrate file:data 's3://bucket/images?region=eu-west-1'",
        statuses=((0, "all is copied"), (1, "something is not"), USAGE, *INTERRUPTED),
    )
    stores = "file:PATH, s3://, gs://, az:// or cloudinary:, as in store.url"
    migration.add_argument("source", metavar="FROM", help=stores)
    migration.add_argument("target", metavar="TO", help="likewise; objects and records that it has already stay")
    add_json(migration, "one JSON object")


def _add_secrets(commands: Commands) -> None:
    sign = add_command(
        commands,
        "sign",
        "print signed /img URLs",
        "imgkeep sign --options 'w=300&q=80' --ttl-s 3600 'https://example.com/picture.png'",
        statuses=((0, "all are signed"), (1, "imgkeep cannot read some"), USAGE, *INTERRUPTED),
    )
    sign.add_argument(
        "urls", nargs="+", metavar="URL", help="a link, or the path of a stored image; - reads one a line from stdin"
    )
    sign.add_argument("--options", metavar="OPTIONS", help="options of a derived picture, as 'w=300&q=80'")
    sign.add_argument("--ttl-s", type=read_count, metavar="SECONDS", help="how long they hold (default: for ever)")
    add_json(sign)
    token = add_command(
        commands,
        "token",
        "print a new secret, or the token or login link of this machine",
        "imgkeep token",
        "imgkeep token --login",
        statuses=((0, "printed"), USAGE),
        store=True,
    )
    which = token.add_mutually_exclusive_group()
    which.add_argument("--local", action="store_true", help="print the token for the API of this machine")
    which.add_argument("--login", action="store_true", help="print a link that logs a browser of this machine in")
    add_json(token, "one JSON object")
