"""
What each command does, put together from a configuration: opens what it works with, and hands it to `cli/`.

Rules:
- Standard input, files of links and folders of pages are read before an event loop runs: Ctrl-C then ends the reading.
- A command opens no more than it needs: reading links and making secrets takes neither a store nor a database.
"""

from __future__ import annotations

import asyncio
import os
import sys
import webbrowser
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from io import TextIOWrapper
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from proxy import app
from proxy.cli import demo, folders, look, migrate, remove, save, signing, stored, upkeep
from proxy.cli.client import Client, pin_address
from proxy.cli.completion import completion
from proxy.cli.pages import STANDARD_INPUT, find_pages
from proxy.cli.parser import make_parser
from proxy.cli.rewrite import Rewriting, warn_of_base
from proxy.config import ConfigError, check_mount, load, read_store_url
from proxy.core.errors import InvalidRequest, SourceRejected
from proxy.core.rewrite import SourceLinks
from proxy.core.source import read_base
from proxy.core.store_url import Bucket, Folder
from proxy.parts import Parts, open_migration, open_parts
from proxy.storage.local_token import TokenUnusableError
from proxy.web.login import make_link
from proxy.works import REAL, make_linking, open_works

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence

    from proxy.cli.pages import Page
    from proxy.config import Config
    from proxy.core.rewrite import Linker
    from proxy.parts import RemoteParts
    from proxy.ports import Watched
    from proxy.service.rewrite import Which
    from proxy.works import Works

    Command = Coroutine[Any, Any, int]

DONE = 0


@dataclass(frozen=True, slots=True)
class Call:
    """
    A command as it was called.

    Attributes:
        environment: Of the process, with what flags stand for.
        token: Of the API of `--server`, where one was given.
    """

    arguments: argparse.Namespace
    config: Config
    environment: Mapping[str, str]
    token: str | None = None

    @property
    def base(self) -> str:
        return self.config.server.public_url.rstrip("/")


def prepare(call: Call) -> int | Command:  # noqa: C901, PLR0911, PLR0912 - one for each kind
    """
    Run a command that needs neither a store nor the network, and return its exit status; or read what another one is to
    work on, and return the rest of it.
    """
    arguments = call.arguments
    match arguments.command:
        case "inspect" if arguments.server:
            return look.inspect_there(
                list(_urls(arguments.urls)), _client(call), as_json=arguments.json, out=sys.stdout
            )
        case "demo":
            return _demo(call)
        case "completion":
            return completion(make_parser(), arguments.shell, out=sys.stdout)
        case "inspect" | "sign" | "token":
            return _tell(call)
        case "migrate":
            source, target = (_read_place(name, getattr(arguments, name), call) for name in ("source", "target"))
            if source == target:
                raise ConfigError("TO: is the same store as FROM")
            return _migrate(call, source, target)
        case "rewrite":
            return _rewrite(call, _find_pages(arguments))
        case "save":
            return _save(call, _lines(arguments))
        case "remove" | "restore" | "refetch":
            return _change(call, list(_urls(arguments.names)))
        case "import" | "export":
            return _exchange(call)
        case "list":
            return _list(call)
        case "check" if not arguments.live:
            return look.check({}, as_json=arguments.json, out=sys.stdout)
        case _:
            return _maintain(call)


async def _migrate(call: Call, source: Folder | Bucket, target: Folder | Bucket) -> int:
    async with open_migration(call.config, source, target, clock=REAL.clock) as migration:
        return await migrate.migrate(migration, as_json=call.arguments.json, out=sys.stdout, err=sys.stderr)


async def _save(call: Call, links: Sequence[str]) -> int:
    keep = partial(save.save, links, as_json=call.arguments.json, out=sys.stdout, err=sys.stderr)
    if call.arguments.server:
        return await keep(save.Server(_client(call)))
    async with open_works(call.config) as works:
        return await keep(_store(call, works))


async def _change(call: Call, names: Sequence[str]) -> int:
    """Remove, restore or fetch again what is named."""
    if call.arguments.server:
        return await _change_at(call, names, remove.Server(_client(call)))
    async with open_works(call.config) as works:
        describe = partial(works.keeper.describe, base=call.base)
        return await _change_at(
            call, names, remove.Store(works.remover, works.refetcher, describe, works.keeper.identify)
        )


async def _change_at(call: Call, names: Sequence[str], target: remove.Target) -> int:
    arguments = call.arguments
    tell = partial(remove.each, names, as_json=arguments.json, out=sys.stdout, err=sys.stderr)
    match arguments.command:
        case "remove":
            return await tell(partial(target.remove, force=arguments.force), by_digest=arguments.digest)
        case "restore":
            return await tell(partial(remove.restore_any, target))
        case _:
            if arguments.url is not None and len(names) != 1:
                raise ConfigError("--url: is the link of one key")
            return await tell(partial(target.refetch, url=arguments.url))


async def _exchange(call: Call) -> int:
    """Take a folder of images in, or tell other programs what is stored."""
    arguments, config = call.arguments, call.config
    if arguments.command == "import":
        check_mount("--mount", arguments.mount)
        if arguments.mount not in {legacy.mount for legacy in config.legacy}:
            sys.stderr.write("imgkeep: old names answer once [[legacy]] names this mount in the configuration\n")
        if not arguments.folder.is_dir():
            raise ConfigError(f"{arguments.folder}: is not a folder")
        async with open_works(config) as works:
            return await folders.adopt(
                arguments.folder,
                arguments.mount,
                works.saver,
                as_json=arguments.json,
                out=sys.stdout,
                err=sys.stderr,
            )
    async with open_works(config) as works:
        _warn_of_gaps(works.parts)
        describe = partial(works.keeper.describe, base=call.base)
        return await folders.export(
            works.parts.catalog,
            url_of=lambda record: str(describe(record)["url"]),
            as_json=arguments.format == "jsonl",
            out=sys.stdout,
        )


async def _list(call: Call) -> int:
    arguments = call.arguments
    show = partial(stored.list_images, as_json=arguments.json, out=sys.stdout)
    if arguments.server:
        return await show(stored.images_of(_client(call), limit=arguments.limit))
    async with open_works(call.config) as works:
        _warn_of_gaps(works.parts)
        describe = partial(works.keeper.describe, base=call.base)
        return await show(stored.images_in(works.parts.catalog, describe, limit=arguments.limit))


async def _rewrite(call: Call, pages: Sequence[Page]) -> int:
    """Rewrite files; a store is opened only where something has to be known of it or put into it."""
    arguments, config = call.arguments, call.config
    base = call.base if arguments.base is None else _read_base(arguments.base)
    async with AsyncExitStack() as stack:
        target: save.Target | None = None
        parts = None
        if arguments.save and arguments.server:
            target = save.Server(_client(call))
        elif arguments.save:
            works = await stack.enter_async_context(open_works(config))
            parts, target = works.parts, _store(call, works)
        elif config.delivery.mode == "redirect" and not config.delivery.base_url and not arguments.undo:
            # The links of the bucket itself, which stay as they are, only the bucket's client can tell.
            parts = await stack.enter_async_context(open_parts(config, clock=REAL.clock))
        linker: Linker = SourceLinks(base) if arguments.undo else _linker(call, base, parts)
        out, err = sys.stdout, sys.stderr
        rewriting = Rewriting(pages, linker, undoes=arguments.undo, out=out.buffer, text=out, err=err)
        if arguments.in_place and not arguments.undo:
            warn_of_base(base, err=err)
        status = DONE if target is None else await rewriting.save(target)
        if arguments.in_place:
            return status | await rewriting.replace(as_json=arguments.json)
        return status | await (rewriting.diff() if arguments.diff else rewriting.print())


def _linker(call: Call, base: str, parts: Parts | None) -> Linker:
    arguments = call.arguments
    which: Which = "all" if arguments.all else tuple(arguments.hosts) if arguments.hosts else "temporary"
    try:
        return make_linking(call.config, app.make_inspector(call.config), parts).linker(which, base)
    except InvalidRequest as error:
        raise ConfigError(f"--hosts: {error}") from None


def _read_base(url: str) -> str:
    try:
        read_base(url)
    except SourceRejected as error:
        raise ConfigError(f"--base: {error}".replace("the source URL", "it")) from None
    return url.rstrip("/")


def _find_pages(arguments: argparse.Namespace) -> list[Page]:
    """Return the documents that are named. Blocks."""
    names, prints = arguments.names, not (arguments.in_place or arguments.diff)
    for wrong, message in (
        (arguments.diff and arguments.save, "--save: --diff does nothing but show"),
        (arguments.undo and arguments.save, "--save: --undo stores nothing"),
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


def _store(call: Call, works: Works) -> save.Store:
    describe = partial(works.keeper.describe, base=call.base)
    return save.Store(works.saver, identify=works.keeper.identify, describe=describe, clock=REAL.clock)


def _client(call: Call) -> Client:
    """Return the server that `--server` names, with what its API takes."""
    url, config = call.arguments.server, call.config
    return Client(pin_address(url, config.server.host), call.token or _token_for(url, config))


def _token_for(url: str, config: Config) -> str | None:
    """Return what the API of a server takes. The token of this machine goes to this machine only."""
    if not config.security.api_tokens and not _is_here(url, config):
        return None
    try:
        return app.read_local_token(config)
    except TokenUnusableError as error:
        raise ConfigError(
            f"--server: {error}; run this where imgkeep runs, with its configuration, or give --token"
        ) from None


def _is_here(url: str, config: Config) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host in {"localhost", config.server.host} or ip_address(host).is_loopback
    except ValueError:
        return False


def _tell(call: Call) -> int:
    """Run what needs neither a store nor the network."""
    arguments, config = call.arguments, call.config
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
    show = partial(signing.show, as_json=arguments.json, out=sys.stdout)
    if not arguments.local and not arguments.login:
        return show("token", signing.make_token())
    server = config.server
    if arguments.login and (config.security.api_tokens or server.is_open or not server.port):
        raise ConfigError("--login: is for a server on a loopback address and a port of its own, without api_tokens")
    try:
        token = app.read_local_token(config)
    except TokenUnusableError as error:
        raise ConfigError(f"{error}; `imgkeep serve` makes it") from None
    if arguments.local:
        return show("token", token)
    host = "127.0.0.1" if server.host == "localhost" else server.host
    return show("url", make_link(token, host, server.port, REAL.clock()))


async def _maintain(call: Call) -> int:
    """Look after what is stored, or at all parts."""
    arguments, as_json = call.arguments, call.arguments.json
    async with open_parts(call.config, clock=REAL.clock) as parts:
        catalog = parts.catalog
        match arguments.command:
            case "check":
                return await _check_live(parts, as_json=as_json)
            case "verify":
                return await upkeep.verify(parts.archives, as_json=as_json, out=sys.stdout, err=sys.stderr)
            case "reindex":
                return await upkeep.reindex(parts.archives, catalog, as_json=as_json, out=sys.stdout)
            case _:
                _warn_of_gaps(parts)
                complete, now = catalog.complete, REAL.clock()
                return await stored.stats(catalog, complete=complete, now=now, as_json=as_json, out=sys.stdout)


async def _check_live(parts: Parts, *, as_json: bool) -> int:
    if parts.remote is None:
        return await look.check({"store": parts.disk, "catalog": parts.catalog}, as_json=as_json, out=sys.stdout)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has ticks
    async with aclosing(_steps(parts.remote)) as steps:
        local: dict[str, Watched] = {"fallback": parts.disk, "catalog": parts.catalog}
        return await look.check(local, steps, as_json=as_json, out=sys.stdout)


def _warn_of_gaps(parts: Parts) -> None:
    if not parts.catalog.complete:
        sys.stderr.write("imgkeep: the catalog is not complete; `imgkeep reindex` fills it from the records\n")


async def _steps(remote: RemoteParts) -> AsyncGenerator[tuple[str, str | None, str | None]]:
    from proxy.storage.s3.checkup import check_up  # noqa: PLC0415 - what it needs takes a third of a second to import

    async with aclosing(check_up(remote.bucket, public_url=remote.public_url)) as steps:
        async for step in steps:
            yield step.name, step.error, step.remedy


def _read_place(name: str, url: str, call: Call) -> Folder | Bucket:
    """Read the URL of a store; `AWS_REGION` counts as it does for `store.url`."""
    place = read_store_url("FROM" if name == "source" else "TO", url)
    region = call.environment.get("AWS_REGION")
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


async def _demo(call: Call) -> int:
    """Serve the page of the demonstration, its origin and an imgkeep of its own until SIGTERM or Ctrl-C."""
    arguments = call.arguments
    origin = demo.Origin(round(arguments.life * 1000), lambda: round(REAL.clock().timestamp() * 1000))
    async with AsyncExitStack() as stack:
        folder = arguments.data or stack.enter_context(TemporaryDirectory(prefix="imgkeep-demo-"))
        page = web.AppRunner(origin.app(), access_log=None)
        port = await _listen(stack, page, arguments.port)
        seams = replace(REAL, open_socket=demo.only_to(port, REAL.open_socket))
        kept = app.make_runner(app.build(load(demo.settings(folder), {}), seams))
        origin.imgkeep = f"http://{demo.HOST}:{await _listen(stack, kept, 0)}"
        url = f"http://{demo.HOST}:{port}/"
        demo.tell(url, origin.imgkeep, arguments.life, out=sys.stdout, err=sys.stderr)
        if arguments.open:
            await asyncio.to_thread(webbrowser.open, url)
        await demo.until_signal()
    return DONE


async def _listen(stack: AsyncExitStack, runner: web.AppRunner, port: int) -> int:
    """Have an application served on loopback, and return its port."""
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.TCPSite(runner, demo.HOST, port).start()
    return int(runner.addresses[0][1])
