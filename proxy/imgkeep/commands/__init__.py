"""
What each command does, put together from a configuration: opens what it works with, and hands it to `cli/`.

Rules:
- Standard input, files of links and folders of pages are read before an event loop runs: Ctrl-C then ends the reading.
- A command opens no more than it needs: reading links and making secrets takes neither a store nor a database.
- A command imports no more than it needs: `list` starts in half the time without the server and its HTTP library.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from imgkeep.cli import check as look
from imgkeep.cli import failures
from imgkeep.cli import sign as signing
from imgkeep.cli.completion import completion
from imgkeep.cli.parser import make_parser
from imgkeep.clock import read_clock
from imgkeep.commands.invocation import (
    Invocation,
    make_client,
    read_lines,
    read_local_token,
    read_store_argument,
    read_urls,
)
from imgkeep.config import ConfigError, absolute, data_folder
from imgkeep.images.inspect import make_inspector
from imgkeep.storage.local.machine_token import TokenUnusableError

__all__ = ["Invocation", "prepare"]

# ruff: noqa: PLC0415 - see above

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine

    from imgkeep.config import Config

    Command = Coroutine[Any, Any, int]


def prepare(call: Invocation) -> int | Command:  # noqa: PLR0911 - one for each kind
    """
    Run a command that needs neither a store nor the network, and return its exit status; or read what another one is to
    work on, and return the rest of it.
    """
    arguments = call.arguments
    match arguments.command:
        case "inspect" if arguments.server:
            return look.inspect_on_server(
                list(read_urls(arguments.urls)), make_client(call), as_json=arguments.json, out=sys.stdout
            )
        case "demo":
            from imgkeep.commands.demo import run_demo

            return run_demo(call)
        case "completion":
            return completion(make_parser(), arguments.shell, out=sys.stdout)
        case "inspect" | "sign" | "token":
            return _tell(call)
        case "rewrite":
            from imgkeep.commands.rewrite import read_documents, rewrite

            return rewrite(call, read_documents(arguments))
        case "failures":
            return failures.list_failures(
                make_client(call), limit=arguments.limit, as_json=arguments.json, out=sys.stdout
            )
        case _:
            return _prepare_with_store(call)


def _prepare_with_store(call: Invocation) -> Command:
    """Read what a command is to work on that takes a store, and return the rest of it."""
    from imgkeep.commands import stored as stores

    arguments = call.arguments
    match arguments.command:
        case "migrate":
            source, target = (
                read_store_argument(name, getattr(arguments, name), call) for name in ("source", "target")
            )
            if source == target:
                raise ConfigError("TO: is the same store as FROM")
            return stores.migrate_store(call, source, target)
        case "save":
            return stores.save_links(call, read_lines(arguments))
        case "remove" | "restore" | "refetch":
            return stores.change_records(call, list(read_urls(arguments.names)))
        case "import" | "export":
            return stores.exchange_images(call)
        case "list":
            return stores.list_stored(call)
        case _:
            return stores.maintain(call)


def _tell(call: Invocation) -> int:
    """Run what needs neither a store nor the network."""
    arguments, config = call.arguments, call.config
    match arguments.command:
        case "inspect":
            inspector = make_inspector(config, read_clock)
            return look.inspect(read_urls(arguments.urls), inspector, as_json=arguments.json, out=sys.stdout)
        case "token":
            return _token(arguments, config)
        case _:
            if not config.security.signing_keys:
                raise ConfigError("security.signing_keys: there is none to sign with; `imgkeep token` makes one")
            return signing.sign(
                read_urls(arguments.urls),
                key=config.security.signing_keys[0],
                base=config.server.public_url,
                now=read_clock(),
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
        token = read_local_token(config)
    except TokenUnusableError as error:
        place = absolute(data_folder(config))
        remedy = "run this where imgkeep runs, or name its configuration with --config; `imgkeep serve` makes the file"
        raise ConfigError(f"{error} in {place}; {remedy}") from None
    if arguments.local:
        return show("token", token)
    from imgkeep.web.login_tickets import make_log_in_link

    host = "127.0.0.1" if server.hosts[0] == "localhost" else server.hosts[0]
    return show("url", make_log_in_link(token, host, server.port, read_clock()))
