"""The program: argv, environment, configuration file, logging and exit status; the only reader of these."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import socket
import sys
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from proxy import __version__, app
from proxy.catalog import CatalogTooNew
from proxy.cli import folders, look, migrate, remove, save, signing, stored, upkeep
from proxy.cli.health import health
from proxy.cli.pages import STANDARD_INPUT, find_pages
from proxy.cli.rewrite import Rewriting
from proxy.config import ENVIRONMENT_PREFIX, Config, ConfigError, check_mount, load, read_config_file, read_store_url
from proxy.core.errors import InvalidRequest, StorageError
from proxy.core.model import Place
from proxy.core.store_url import Bucket, Folder
from proxy.parts import Parts, open_migration, open_parts, permanent_url
from proxy.preflight import check_machine, insist_on_owner, insist_on_owner_of, insist_on_store
from proxy.storage.local_token import TokenUnusableError
from proxy.supervisor import Briefing, Supervisor
from proxy.telemetry import describe_crash, logging_to
from proxy.web.login import make_link
from proxy.works import REAL, make_linking, open_works

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence

    from proxy.cli.pages import Page
    from proxy.parts import RemoteParts
    from proxy.service.rewrite import Which
    from proxy.works import Works

CONFIG_FILE = "config.toml"
WORKER = "worker"
DONE, SOME_FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 (some failed), 2 (usage or configuration)."""
    arguments = _parser().parse_args(argv)
    os.umask(0o077)  # records may hold links that still open something
    level = os.environ.get(f"{ENVIRONMENT_PREFIX}LOG__LEVEL", "").lower()  # noqa: TID251 - the one reader
    try:
        is_worker = arguments.command == WORKER
        if is_worker:
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a terminal sends these to all; the supervisor decides
        # A worker goes by what its supervisor has read.
        briefing = _read_briefing() if is_worker else None
        config = _load(arguments.config) if briefing is None else briefing.config
        level = config.log.level
        # To standard error: what a command prints is its answer, and no log record must get in between.
        with logging_to(sys.stderr, config.log):
            if arguments.command == "serve" and config.server.workers > 1:
                status = _supervise(arguments, config)
            else:
                status = _run(_command(arguments, config) if briefing is None else _work_as(arguments, briefing))
        sys.stdout.flush()  # here, because at the interpreter's end nobody could handle a broken pipe
    except BrokenPipeError:
        # Whoever read our answer has enough; the interpreter must not complain about it while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except KeyboardInterrupt:
        return SOME_FAILED
    except Exception as error:  # noqa: BLE001 - the last resort among them
        return _complain_of(error, in_full=level == "debug")
    return status


def _supervise(arguments: argparse.Namespace, config: Config) -> int:
    """Run several processes that serve on one port."""
    # Workers run what we run, whatever else is called `proxy` where they are started.
    here = str(Path(__file__).parents[1])
    environment = dict(os.environ)  # noqa: TID251 - to be handed on
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
    supervisor = Supervisor(
        config,
        command=(sys.executable, "-P", "-m", "proxy", WORKER),
        environment=environment,
        reload=lambda: _load(arguments.config),
        opened=partial(app.tell_workers_opening, config),
    )
    return supervisor.run()


async def _command(arguments: argparse.Namespace, config: Config) -> int:  # noqa: PLR0911 - one for each kind
    match arguments.command:
        case "serve":
            _raise_file_limit()
            await app.serve(config)
            return DONE
        case "inspect" | "sign" | "token":
            return _tell(arguments, config)
        case "migrate":
            source, target = _read_place("FROM", arguments.source), _read_place("TO", arguments.target)
            if source == target:
                raise ConfigError("TO: is the same store as FROM")
            if isinstance(target, Folder):
                await asyncio.to_thread(insist_on_owner_of, Path(target.path))
            async with open_migration(config, source, target, clock=REAL.clock) as migration:
                return await migrate.migrate(migration, as_json=arguments.json, out=sys.stdout, err=sys.stderr)
        case "rewrite":
            return await _rewrite(arguments, config)
        case "save" | "remove" | "restore" | "refetch" if arguments.server:
            return await _ask_server(arguments, config)
        case "save" | "import" | "remove" | "restore" | "refetch":
            helps = arguments.command != "import"
            await asyncio.to_thread(partial(insist_on_owner, config, server_helps=helps))
            async with open_works(config) as works:
                return await _work(arguments, config, works)
        case "health":
            return await asyncio.to_thread(partial(health, config.server, out=sys.stdout, err=sys.stderr))
        case _:
            return await _maintain(arguments, config)


def _read_briefing() -> Briefing:
    try:
        return msgspec.json.decode(sys.stdin.buffer.read(), type=Briefing)
    except msgspec.DecodeError:
        raise ConfigError("the supervisor is of another version: restart instead of reloading") from None


async def _work_as(arguments: argparse.Namespace, briefing: Briefing) -> int:
    """Serve as the worker that the supervisor has started."""
    _raise_file_limit()
    place = msgspec.convert({**msgspec.json.decode(arguments.place), "secret": briefing.secret}, Place)
    listening = [socket.socket(fileno=int(number)) for number in arguments.listen.split(",")]
    await app.work(briefing.config, place, listening, socket.socket(fileno=arguments.control))
    return DONE


async def _ask_server(arguments: argparse.Namespace, config: Config) -> int:
    """Have a running server do it."""
    if arguments.command == "save":
        links, server = _lines(arguments), _server(arguments, config)
        return await save.save(links, server, as_json=arguments.json, out=sys.stdout, err=sys.stderr)
    return await _change(arguments, remove.Server(*_find_server(arguments.server, config)))


async def _rewrite(arguments: argparse.Namespace, config: Config) -> int:
    """Rewrite files; a store is opened only where something has to be known of it or put into it."""
    pages = await asyncio.to_thread(_find_pages, arguments)
    target: save.Target | None = None
    which: Which = "all" if arguments.all else tuple(arguments.hosts) if arguments.hosts else "temporary"
    async with AsyncExitStack() as stack:
        parts = None
        if arguments.save and arguments.server:
            target = _server(arguments, config)
        elif arguments.save:
            await asyncio.to_thread(partial(insist_on_owner, config, server_helps=True))
            works = await stack.enter_async_context(open_works(config))
            parts, target = works.parts, _store(config, works)
        elif config.delivery.mode == "redirect" and not config.delivery.base_url:
            # The links of the bucket itself, which stay as they are, only the bucket's client can tell.
            parts = await stack.enter_async_context(open_parts(config, clock=REAL.clock, reading=True))
        linking = make_linking(config, app.make_inspector(config), parts)
        try:
            linker = linking.linker(which, config.server.public_url.rstrip("/"))
        except InvalidRequest as error:
            raise ConfigError(f"--hosts: {error}") from None
        rewriting = Rewriting(pages, linker, out=sys.stdout.buffer, text=sys.stdout, err=sys.stderr)
        status = DONE if target is None else await rewriting.save(target)
        if arguments.in_place:
            return status | await rewriting.replace(as_json=arguments.json)
        return status | await (rewriting.diff() if arguments.diff else rewriting.print())


def _find_pages(arguments: argparse.Namespace) -> list[Page]:
    """Return the documents that are named. Blocks."""
    names, prints = arguments.names, not (arguments.in_place or arguments.diff)
    for wrong, message in (
        (arguments.diff and arguments.save, "--save: --diff does nothing but show"),
        (arguments.server and not arguments.save, "--server: needs --save"),
        (arguments.json and not arguments.in_place, "--json: needs --in-place, without which documents are printed"),
        (arguments.in_place and STANDARD_INPUT in names, "--in-place: standard input has no place"),
        (
            prints and (len(names) > 1 or Path(names[0]).is_dir()),
            "rewrite: several documents cannot be printed as one; see --in-place and --diff",
        ),
    ):
        if wrong:
            raise ConfigError(message)
    return find_pages(names, arguments.format, arguments.url, sys.stdin.buffer)


def _store(config: Config, works: Works) -> save.Store:
    describe = partial(works.keeper.describe, base=config.server.public_url.rstrip("/"))
    return save.Store(works.saver, identify=works.keeper.identify, describe=describe, clock=REAL.clock)


def _server(arguments: argparse.Namespace, config: Config) -> save.Server:
    return save.Server(*_find_server(arguments.server, config))


def _find_server(url: str, config: Config) -> tuple[str, str | None]:
    """Return where a server is that `--server` names, and what its API takes."""
    return _pin_address(url, config.server.hosts[0]), _token_for(url, config)


def _pin_address(url: str, host: str) -> str:
    """
    Return a URL with the address at which we listen in the place of `localhost`. That name has two addresses on most
    machines, and at the one that we do not use another user may listen, and be shown the token.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname != "localhost":  # https: the certificate is for the name
            return url
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return url
    any_address = {"": "127.0.0.1", "localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what it may be
    address = any_address.get(host, host)
    return parts._replace(netloc=f"[{address}]{port}" if ":" in address else f"{address}{port}").geturl()


def _token_for(url: str, config: Config) -> str | None:
    """Return what the API of a server takes. The token of this machine goes to this machine only."""
    if not config.security.api_tokens and not _is_here(url, config):
        return None
    try:
        return app.read_local_token(config)
    except TokenUnusableError as error:
        raise ConfigError(f"--server: {error}; run this where imgkeep runs, with its configuration") from None


def _is_here(url: str, config: Config) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host in {"localhost", *config.server.hosts} or ip_address(host).is_loopback
    except ValueError:
        return False


async def _work(arguments: argparse.Namespace, config: Config, works: Works) -> int:
    """Run what works on images without a server; what goes on in the background is the server's."""
    describe = partial(works.keeper.describe, base=config.server.public_url.rstrip("/"))
    match arguments.command:
        case "save":
            links, target = _lines(arguments), _store(config, works)
            return await save.save(links, target, as_json=arguments.json, out=sys.stdout, err=sys.stderr)
        case "import":
            check_mount("--mount", arguments.mount)
            if arguments.mount not in {legacy.mount for legacy in config.legacy}:
                sys.stderr.write("imgkeep: old names answer once [[legacy]] names this mount in the configuration\n")
            if not arguments.folder.is_dir():
                raise ConfigError(f"{arguments.folder}: is not a folder")
            return await folders.adopt(
                arguments.folder,
                arguments.mount,
                works.saver,
                as_json=arguments.json,
                out=sys.stdout,
                err=sys.stderr,
            )
        case _:
            images = remove.Store(works.remover, works.refetcher, describe)
            return await _change(arguments, images)


async def _change(arguments: argparse.Namespace, target: remove.Target) -> int:
    """Remove, restore or fetch again what is named."""
    names = list(_urls(arguments.names))
    tell = partial(remove.each, names, out=sys.stdout, err=sys.stderr)
    match arguments.command:
        case "remove":
            return await tell(partial(target.remove, force=arguments.force), by_digest=arguments.digest)
        case "restore":
            return await tell(partial(remove.restore_any, target))
        case _:
            if arguments.url is not None and len(names) != 1:
                raise ConfigError("--url: is the link of one key")
            return await tell(partial(target.refetch, url=arguments.url))


def _tell(arguments: argparse.Namespace, config: Config) -> int:
    """Run what needs neither a store nor the network."""
    match arguments.command:
        case "inspect":
            inspector = app.make_inspector(config)
            return look.inspect(_urls(arguments.urls), inspector, as_json=arguments.json, out=sys.stdout)
        case "token":
            return _token(arguments, config)
        case _:
            if not config.security.signing_keys:
                raise ConfigError("security.signing_keys: there is none to sign with; `imgkeep token` makes one")
            return signing.sign(
                _urls(arguments.urls),
                key=config.security.signing_keys[0],
                base=config.server.public_url,
                now=REAL.clock(),
                ttl_s=arguments.ttl_s,
                as_json=arguments.json,
                out=sys.stdout,
                err=sys.stderr,
            )


def _token(arguments: argparse.Namespace, config: Config) -> int:
    if not arguments.local and not arguments.login:
        return signing.token(out=sys.stdout)
    server = config.server
    if arguments.login and (config.security.api_tokens or server.is_open or not server.port):
        raise ConfigError("--login: is for a server on a loopback address and a port of its own, without api_tokens")
    try:
        token = app.read_local_token(config)
    except TokenUnusableError as error:
        raise ConfigError(f"{error}; `imgkeep serve` makes it") from None
    host = "127.0.0.1" if server.hosts[0] == "localhost" else server.hosts[0]
    sys.stdout.write(f"{make_link(token, host, server.port, REAL.clock()) if arguments.login else token}\n")
    return DONE


async def _maintain(arguments: argparse.Namespace, config: Config) -> int:
    """Run what works on a store as a whole. What only reads makes nothing, and what writes is the store's owner's."""
    reading = arguments.command in {"list", "stats", "export"}
    if arguments.command == "check":
        await check_machine(config)
        if not arguments.live:
            return await look.check({}, out=sys.stdout)
    if reading:
        await asyncio.to_thread(insist_on_store, config)
    else:
        await asyncio.to_thread(partial(insist_on_owner, config, server_helps=False))
    async with open_parts(config, clock=REAL.clock, reading=reading) as parts:
        return await _maintain_parts(arguments, config, parts)


async def _maintain_parts(arguments: argparse.Namespace, config: Config, parts: Parts) -> int:  # noqa: PLR0911 - as above
    catalog = parts.catalog
    if arguments.command in {"list", "stats", "export"}:
        _warn_of_gaps(parts)
    match arguments.command:
        case "check":
            if parts.remote is None:
                return await look.check({"store": parts.disk, "catalog": catalog}, out=sys.stdout)
            if isinstance(sys.stdout, TextIOWrapper):
                sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has ticks
            async with aclosing(_steps(parts.remote)) as steps:
                return await look.check(
                    {"fallback": parts.disk, "catalog": catalog},
                    steps,
                    place=parts.remote.bucket.client.place,
                    out=sys.stdout,
                )
        case "verify":
            return await upkeep.verify(parts.archives, as_json=arguments.json, out=sys.stdout)
        case "reindex":
            return await upkeep.reindex(parts.archives, catalog, out=sys.stdout)
        case "export":
            base = config.server.public_url.rstrip("/")
            url_of = partial(permanent_url, parts.remote, base)
            as_json = arguments.format == "jsonl"
            return await folders.export(catalog, url_of=url_of, as_json=as_json, out=sys.stdout)
        case "list":
            return await stored.list_images(catalog, limit=arguments.limit, as_json=arguments.json, out=sys.stdout)
        case _:
            complete, now = catalog.complete, REAL.clock()
            return await stored.stats(catalog, complete=complete, now=now, as_json=arguments.json, out=sys.stdout)


def _warn_of_gaps(parts: Parts) -> None:
    if not parts.catalog.complete:
        sys.stderr.write("imgkeep: the catalog is not complete; `imgkeep reindex` fills it from the records\n")


async def _steps(remote: RemoteParts) -> AsyncGenerator[tuple[str, str | None, str | None]]:
    from proxy.storage.s3.checkup import check_up  # noqa: PLC0415 - what it needs takes a third of a second to import

    async with aclosing(check_up(remote.bucket, public_url=remote.public_url)) as steps:
        async for step in steps:
            yield step.name, step.error, step.remedy


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imgkeep", description="Makes temporary image links permanent.")
    parser.add_argument("--version", action="version", version=f"imgkeep {__version__}")
    parser.add_argument("--config", metavar="FILE", help=f"default: $IMGKEEP_CONFIG, or {CONFIG_FILE} if there is one")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve images until SIGTERM")
    worker = commands.add_parser(WORKER)  # not in the help: `serve` starts it
    worker.add_argument("--place", required=True)
    worker.add_argument("--listen", required=True)
    worker.add_argument("--control", required=True, type=int)
    commands.add_parser("health", help="tell whether the server of this configuration answers; exit status 0 or 1")
    check = commands.add_parser("check", help="validate the configuration")
    check.add_argument("--live", action="store_true", help="try all that every configured store must be able to do")
    inspect = commands.add_parser("inspect", help="tell what URLs name and whether they may be fetched; no network")
    inspect.add_argument("urls", nargs="+", metavar="URL", help="- reads one a line from standard input")
    sign = commands.add_parser("sign", help="print signed /img URLs")
    sign.add_argument("urls", nargs="+", metavar="URL", help="- reads one a line from standard input")
    sign.add_argument("--ttl-s", type=_count, metavar="SECONDS", help="how long they hold (default: for ever)")
    saving = commands.add_parser("save", help="keep images before anybody looks, and print their permanent URLs")
    saving.add_argument("urls", nargs="*", metavar="URL", help="- reads one a line from standard input")
    saving.add_argument("-f", "--file", type=Path, metavar="FILE", help="with one URL a line")
    saving.add_argument("--server", metavar="URL", help="a running imgkeep (default: straight into the store)")
    _add_rewrite(commands)
    adopting = commands.add_parser("import", help="adopt a folder of images with their names")
    adopting.add_argument("folder", type=Path, metavar="DIR")
    adopting.add_argument("--mount", required=True, help="old names answer under /MOUNT/NAME, see [[legacy]]")
    exporting = commands.add_parser("export", help="print source, permanent URL, digest and time of all images")
    exporting.add_argument("--format", choices=["csv", "jsonl"], default="csv")
    _add_changes(commands)
    token = commands.add_parser("token", help="print a new secret, or what opens the API of this machine")
    which = token.add_mutually_exclusive_group()
    which.add_argument("--local", action="store_true", help="print the token that the API of this machine takes")
    which.add_argument("--login", action="store_true", help="print a link by which a browser here gets into the API")
    verify = commands.add_parser("verify", help="read all that is stored again; set aside what is damaged")
    commands.add_parser("reindex", help="fill the catalog from the records")
    images = commands.add_parser("list", help="list images, newest first")
    images.add_argument("--limit", type=_count, default=100, help="how many; 0: all (default: %(default)s)")
    stats = commands.add_parser("stats", help="tell how much is stored")
    migration = commands.add_parser("migrate", help="copy all that is stored from one store to another")
    migration.add_argument("source", metavar="FROM", help="file:PATH or s3://BUCKET/PREFIX, as in store.url")
    migration.add_argument("target", metavar="TO", help="likewise; what it has already stays")
    for command in (inspect, saving, adopting, sign, verify, images, stats, migration):
        command.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _add_changes(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    removing = commands.add_parser("remove", help="remove pictures for good")
    removing.add_argument("names", nargs="+", metavar="KEY|URL", help="- reads one a line from standard input")
    removing.add_argument("--digest", action="store_true", help="the names are digests")
    removing.add_argument("--force", action="store_true", help="also what is not stored, so that it never is")
    restoring = commands.add_parser("restore", help="undo removals")
    restoring.add_argument("names", nargs="+", metavar="KEY|DIGEST|URL", help="- reads one a line from standard input")
    refetching = commands.add_parser("refetch", help="fetch stored images again, and replace those that differ")
    refetching.add_argument("names", nargs="+", metavar="KEY|URL", help="- reads one a line from standard input")
    refetching.add_argument("--url", metavar="URL", help="the link to fetch by, where one key is named")
    for command in (removing, restoring, refetching):
        command.add_argument("--server", metavar="URL", help="a running imgkeep (default: straight into the store)")


def _add_rewrite(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rewriting = commands.add_parser("rewrite", help="have links to images in HTML and Markdown lead through imgkeep")
    rewriting.add_argument("names", nargs="+", metavar="FILE|DIR", help="- reads one document from standard input")
    rewriting.add_argument("--format", choices=["html", "markdown"], help="of a file whose name does not tell")
    which = rewriting.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="all links (default: those that die)")
    which.add_argument("--hosts", action="append", metavar="GLOB", help="links of these hosts; may be given often")
    rewriting.add_argument("--url", help="the page's own, or the folder's, for relative links")
    way = rewriting.add_mutually_exclusive_group()
    way.add_argument("--in-place", action="store_true", help="replace files (default: print one document)")
    way.add_argument("--diff", action="store_true", help="print what would change; exit status 1 if something would")
    rewriting.add_argument("--save", action="store_true", help="keep the images first, as `imgkeep save` does")
    rewriting.add_argument("--server", metavar="URL", help="a running imgkeep that saves")
    rewriting.add_argument("--json", action="store_true", help="with --in-place: one JSON object a file")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def _load(path: str | None) -> Config:
    """Read the configuration: a file that was named has to be there, the default one need not."""
    named = path or os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")  # noqa: TID251 - the one reader
    file: dict[str, Any] = {}
    try:
        file = read_config_file(named or CONFIG_FILE)
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{named}: there is no such file") from None
    return load(file, os.environ)  # noqa: TID251 - the one reader


def _read_place(argument: str, url: str) -> Folder | Bucket:
    """Read the URL of a store; `AWS_REGION` counts as it does for `store.url`."""
    place = read_store_url(argument, url)
    region = os.environ.get("AWS_REGION")  # noqa: TID251 - the one reader
    if isinstance(place, Bucket) and place.region is None and region:
        return replace(place, region=region)
    return place


def _urls(arguments: Sequence[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            # Bytes, because a line that is no UTF-8 must not take the others with it.
            yield from (line.rstrip(b"\r\n").decode("utf-8", "replace") for line in sys.stdin.buffer)
        else:
            yield os.fsencode(argument).decode("utf-8", "replace")


def _lines(arguments: argparse.Namespace) -> list[str]:
    """Return the links that are named, and those in the file that is."""
    links = list(_urls(arguments.urls))
    if arguments.file is not None:
        try:
            links += arguments.file.read_bytes().decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise ConfigError(f"{arguments.file}: {error.strerror}") from None
    if not links:
        raise ConfigError("save: name URLs, or a file with -f")
    return links


def _run(command: Coroutine[None, None, int]) -> int:
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415 - it does not exist everywhere

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(command)


def _raise_file_limit() -> None:
    """Use as many file descriptors as the system allows: a client and the file it reads need one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _complain_of(error: Exception, *, in_full: bool) -> int:
    """Say what went wrong, and return the exit status. An error that no code of ours expected is one line too."""
    match error:
        case ConfigError():
            sys.stderr.writelines(f"imgkeep: {message}\n" for message in error.messages)
            return USAGE
        case CatalogTooNew():
            return _complain(error.in_full, USAGE)  # to start again mends nothing
        case StorageError():
            return _complain(error.in_full, SOME_FAILED)
        case OSError():
            name = f": {error.filename}" if error.filename else ""
            return _complain(f"{error.strerror or error}{name}", SOME_FAILED)
        case _:
            return _complain(describe_crash(error, in_full=in_full), SOME_FAILED)


def _complain(message: str, status: int) -> int:
    sys.stderr.write(f"imgkeep: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
