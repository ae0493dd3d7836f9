"""`rewrite`: which linker, which documents, and where images are saved."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgkeep.bootstrap.preflight import require_owner
from imgkeep.bootstrap.services import make_link_selection, open_services
from imgkeep.bootstrap.storage import open_storage
from imgkeep.cli import save
from imgkeep.cli.documents import STANDARD_INPUT, find_documents
from imgkeep.cli.rewrite import RewriteRun, warn_about_base
from imgkeep.clock import read_clock
from imgkeep.commands.invocation import make_client, make_save_target
from imgkeep.config import ConfigError
from imgkeep.core.errors import InvalidRequest, SourceRejected
from imgkeep.core.rewrite import SourceLinks
from imgkeep.core.source_url import read_base
from imgkeep.images.inspect import make_inspector

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from imgkeep.bootstrap.storage import Storage
    from imgkeep.cli.documents import Document
    from imgkeep.commands.invocation import Invocation
    from imgkeep.config import Config
    from imgkeep.core.rewrite import Linker
    from imgkeep.images.inspect import Inspector
    from imgkeep.page_rewriting import LinkChoice


async def rewrite(call: Invocation, pages: Sequence[Document]) -> int:
    """Rewrite files; a store is opened only where something has to be known of it or put into it."""
    arguments, config = call.arguments, call.config
    base = call.base if arguments.base is None else _read_base(arguments.base)
    async with AsyncExitStack() as stack:
        target: save.Target | None = None
        parts = None
        inspector = make_inspector(config, read_clock)
        if arguments.server:
            server = save.Server(make_client(call))
            inspector = await _as_server(inspector, server, config)
            target = server if arguments.save else None
        elif arguments.save:
            await asyncio.to_thread(partial(require_owner, config, server_helps=True))
            services = await stack.enter_async_context(open_services(config))
            parts, target = services.parts, make_save_target(call, services)
        elif config.delivery.mode == "redirect" and not config.delivery.base_url and not arguments.undo:
            # The links of the bucket itself, which stay as they are, only the bucket's client can tell.
            parts = await stack.enter_async_context(open_storage(config, clock=read_clock, reading=True))
        linker: Linker = SourceLinks(base) if arguments.undo else _linker(call, base, inspector, parts)
        out, err = sys.stdout, sys.stderr
        rewriting = RewriteRun(pages, linker, undoes=arguments.undo, out=out.buffer, text=out, err=err)
        if arguments.in_place and not arguments.undo:
            warn_about_base(base, err=err)
        status = 0 if target is None else await rewriting.save(target)
        if arguments.in_place:
            return status | await rewriting.replace(as_json=arguments.json)
        return status | await (rewriting.diff() if arguments.diff else rewriting.print())


async def _as_server(inspector: Inspector, server: save.Server, config: Config) -> Inspector:
    """Return what reads links by the policy of a running server: what it would refuse stays as it is."""
    policy, needs_key = await server.policy(inspector.policy.names)
    if needs_key and not config.security.signing_keys:
        raise ConfigError("security.signing_keys: the server that --server names takes signed links only")
    return replace(inspector, policy=policy)


def _linker(call: Invocation, base: str, inspector: Inspector, parts: Storage | None) -> Linker:
    arguments = call.arguments
    which: LinkChoice = "all" if arguments.all else tuple(arguments.hosts) if arguments.hosts else "temporary"
    try:
        return make_link_selection(call.config, inspector, parts).linker(which, base)
    except InvalidRequest as error:
        raise ConfigError(f"--hosts: {error}") from None


def _read_base(url: str) -> str:
    try:
        read_base(url)
    except SourceRejected as error:
        raise ConfigError(f"--base: {error}".replace("the source URL", "it")) from None
    return url.rstrip("/")


def read_documents(arguments: argparse.Namespace) -> list[Document]:
    """Return the documents that are named. Blocks."""
    names, prints = arguments.names, not (arguments.in_place or arguments.diff)
    for wrong, message in (
        (arguments.diff and arguments.save, "--save: --diff does nothing but show"),
        (arguments.undo and arguments.save, "--save: --undo stores nothing"),
        (arguments.undo and arguments.server, "--server: --undo asks no server"),
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
