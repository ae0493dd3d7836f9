"""
`rewrite`: links to images in HTML and Markdown lead through imgkeep; printed, as a diff, or in place.

With `--save` the command saves all images before it writes the first file: a run after one that was killed finds the
links as they were.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.cli.documents import STANDARD_INPUT, find_documents
from imgkeep.cli.invocation import make_client
from imgkeep.cli.rewrite_run import RewriteRun
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError
from imgkeep.core.errors import InvalidRequest, SourceRejected
from imgkeep.core.policy import is_local_name
from imgkeep.core.rewrite import PictureSettings, SourceLinks
from imgkeep.core.source_url import read_base, read_source
from imgkeep.images.inspect import make_inspector
from imgkeep.page_rewriting import find_sizes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from imgkeep.bootstrap.storage import Storage
    from imgkeep.cli.dispatch import Command
    from imgkeep.cli.documents import Document
    from imgkeep.cli.invocation import Invocation
    from imgkeep.cli.save import ServerTarget, Target
    from imgkeep.config import Config
    from imgkeep.core.records import PixelSize
    from imgkeep.core.rewrite import Linker
    from imgkeep.images.inspect import Inspector
    from imgkeep.page_rewriting import LinkChoice

# ruff: noqa: PLC0415 - most runs need no store


def run(invocation: Invocation) -> Command:
    return _run(invocation, _read_documents(invocation.arguments))


def _read_documents(arguments: argparse.Namespace) -> list[Document]:
    names, prints = arguments.names, not (arguments.in_place or arguments.diff)
    for wrong, message in (
        (arguments.diff and arguments.save, "--save: --diff does nothing but show"),
        (arguments.undo and arguments.save, "--save: --undo stores nothing"),
        (arguments.undo and arguments.server, "--server: --undo asks no server"),
        (arguments.undo and _has_pictures(arguments), "--undo: takes no options of derived pictures"),
        (
            arguments.dimensions and arguments.server,
            "--dimensions: reads the store of this machine, and --server names another one",
        ),
        (arguments.json and not arguments.in_place, "--json: needs --in-place, without which documents are printed"),
        (arguments.in_place and STANDARD_INPUT in names, "--in-place: standard input has no place"),
        (
            prints and (len(names) > 1 or Path(names[0]).is_dir()),
            "rewrite: several documents cannot be printed as one; see --in-place and --diff",
        ),
    ):
        if wrong:
            raise ConfigError(message)
    return find_documents(names, arguments.format, arguments.url, sys.stdin.buffer)


async def _run(invocation: Invocation, documents: Sequence[Document]) -> int:
    """Rewrite documents. Open a store only to save images into it, or to learn the public URL of its bucket."""
    arguments, config = invocation.arguments, invocation.config
    base = invocation.base if arguments.base is None else _read_base(arguments.base)
    async with AsyncExitStack() as stack:
        target: Target | None = None
        storage: Storage | None = None
        inspector = make_inspector(config, read_clock)
        if arguments.server:
            from imgkeep.cli.save import ServerTarget

            server = ServerTarget(make_client(invocation))
            inspector = await _with_policy_of(server, inspector, config)
            target = server if arguments.save else None
        elif arguments.save:
            target, storage = await _open_target(invocation, stack)
        elif arguments.dimensions or (
            config.delivery.mode == "redirect" and not config.delivery.base_url and not arguments.undo
        ):
            from imgkeep.bootstrap.storage import open_storage

            # Links to the bucket itself stay, and only the client of the bucket knows its public URL. The image index
            # knows the sizes of images.
            storage = await stack.enter_async_context(open_storage(config, clock=read_clock, reading=True))
        sizes: dict[str, PixelSize] = {}
        linker: Linker = SourceLinks(base)
        if not arguments.undo:
            linker = _linker(invocation, base, inspector, storage, sizes)
        rewriting = RewriteRun(
            documents, linker, undoes=arguments.undo, out=sys.stdout.buffer, text=sys.stdout, err=sys.stderr
        )
        if arguments.in_place and not arguments.undo:
            warn_about_base(base, err=sys.stderr)
        status = 0 if target is None else await rewriting.save(target)
        if arguments.dimensions and storage is not None:
            index, facts = storage.database.image_index, storage.database.picture_facts
            sizes |= await find_sizes(await rewriting.links(), inspector, index.find_all, facts.add_to)
        if arguments.in_place:
            return status | await rewriting.replace(as_json=arguments.json)
        return status | await (rewriting.diff() if arguments.diff else rewriting.print())


async def _open_target(invocation: Invocation, stack: AsyncExitStack) -> tuple[Target, Storage]:
    from imgkeep.bootstrap.command_services import open_command_services
    from imgkeep.bootstrap.preflight import require_owner
    from imgkeep.cli.save import make_store_target

    await asyncio.to_thread(partial(require_owner, invocation.config, server_helps=True))
    services = await stack.enter_async_context(open_command_services(invocation.config))
    return make_store_target(invocation, services), services.storage


async def _with_policy_of(server: ServerTarget, inspector: Inspector, config: Config) -> Inspector:
    """Return an inspector with the policy of a running server: links that the server would refuse stay."""
    policy, needs_key = await server.policy(inspector.policy.names)
    if needs_key and not config.security.signing_keys:
        raise ConfigError("security.signing_keys: the server that --server names takes signed links only")
    return replace(inspector, policy=policy)


def _linker(
    invocation: Invocation,
    base: str,
    inspector: Inspector,
    storage: Storage | None,
    sizes: Mapping[str, PixelSize],
) -> Linker:
    from imgkeep.bootstrap.services import make_link_selection

    arguments = invocation.arguments
    which: LinkChoice = "all" if arguments.all else tuple(arguments.hosts) if arguments.hosts else "temporary"
    selection = make_link_selection(invocation.config, inspector, storage)
    try:
        pictures = selection.read_pictures(_read_settings(arguments), sizes.get if arguments.dimensions else None)
    except InvalidRequest as error:
        raise ConfigError(f"--{error}") from None
    try:
        return selection.linker(which, base, pictures)
    except InvalidRequest as error:
        raise ConfigError(f"--hosts: {error}") from None


_WIDTH: Final = re.compile(r"[0-9]{1,5}")


def _has_pictures(arguments: argparse.Namespace) -> bool:
    return bool(arguments.pictures or arguments.widths or arguments.sizes or arguments.lazy or arguments.dimensions)


def _read_settings(arguments: argparse.Namespace) -> PictureSettings:
    rules = {}
    for text in arguments.pictures or ():
        pattern, _, options = text.strip().rpartition(" ")
        rules[pattern.strip() or "*"] = options
    given = arguments.widths
    widths: object = given
    if given is not None and given != "auto":
        widths = [int(width) if _WIDTH.fullmatch(width) else width for width in given.split(",")]
    return PictureSettings(rules, widths, arguments.sizes or "", is_lazy=arguments.lazy)


def _read_base(url: str) -> str:
    try:
        read_base(url)
    except SourceRejected as error:
        raise ConfigError(f"--base: {error}".replace("the source URL", "it")) from None
    return url.rstrip("/")


def warn_about_base(base: str, *, err: TextIO) -> None:
    """Warn if new links do not work everywhere."""
    try:
        host = read_source(base).host if base else ""
        local = is_local_name(host) or ip_address(host).is_loopback
    except ValueError:
        local = False
    remedy = "server.public_url or --base say how readers reach imgkeep"
    if not base:
        err.write(
            "imgkeep: new links are paths like /img?src=..., which work only in pages from the server that imgkeep is "
            f"behind; {remedy}\n"
        )
    elif local:
        err.write(f"imgkeep: new links begin with {base}, which only this machine or network reaches; {remedy}\n")
