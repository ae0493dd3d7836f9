"""A command with its configuration, and what several commands derive from these: links, a client, a token."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from imgkeep.config import ConfigError, absolute, data_folder
from imgkeep.listening import format_address, reachable_hosts
from imgkeep.storage.local.machine_token import TokenUnusableError, read_token

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from imgkeep.cli.client import Client
    from imgkeep.config import Config


@dataclass(frozen=True, slots=True)
class Invocation:
    """
    A command with its configuration.

    Attributes:
        arguments: The parsed command line.
        config: The configuration of this machine.
        environment: The variables of the process, with the settings that flags stand for.
        reload: Reads the configuration once more.
        token: The token for the API of `--server`, if one was given.
    """

    arguments: argparse.Namespace
    config: Config
    environment: Mapping[str, str]
    reload: Callable[[], Config]
    token: str | None = None

    @property
    def base(self) -> str:
        """The prefix of permanent URLs; empty: they are paths."""
        return self.config.server.public_url.rstrip("/")


def make_client(invocation: Invocation) -> Client:
    """
    Return a client for the server that `--server` names, or else for the server of this configuration.

    Raises:
        ConfigError: The URL names no server, or there is no token for its API.
    """
    from imgkeep.cli.client import Client, check_server_url, pin_address  # noqa: PLC0415 - only `--server` needs aiohttp

    config = invocation.config
    if invocation.arguments.server:
        check_server_url(invocation.arguments.server)
    url = invocation.arguments.server or _local_server_url(config)
    return Client(pin_address(url, config.server.hosts[0]), invocation.token or _token_for(url, config))


def _local_server_url(config: Config) -> str:
    if not config.server.port:
        raise ConfigError("server.port: is 0, so the server chose its port itself; name it with --server")
    return f"http://{format_address(reachable_hosts(config.server)[0], config.server.port)}"


def read_local_token(config: Config) -> str:
    """
    Return a token that the API takes: the first of `security.api_tokens`, or that of this machine. Blocks.

    Raises:
        TokenUnusableError: There is none.
    """
    tokens = config.security.api_tokens
    return tokens[0] if tokens else read_token(data_folder(config))


def _token_for(url: str, config: Config) -> str | None:
    """Return a token for the API of a server. The token of this machine goes to this machine only."""
    if not config.security.api_tokens and not _is_this_machine(url, config):
        return None
    try:
        return read_local_token(config)
    except TokenUnusableError as error:
        raise ConfigError(
            f"--server: {error} in {absolute(data_folder(config))}; run this where imgkeep runs, with its "
            "configuration, or give --token"
        ) from None


def _is_this_machine(url: str, config: Config) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host in {"localhost", *config.server.hosts} or ip_address(host).is_loopback
    except ValueError:
        return False


def read_urls(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the links that are named; `-` stands for the lines of standard input. Blocks."""
    for argument in arguments:
        if argument == "-":
            # Bytes, so that a line that is not UTF-8 does not lose the others.
            yield from (line.rstrip(b"\r\n").decode("utf-8", "replace") for line in sys.stdin.buffer)
        else:
            yield os.fsencode(argument).decode("utf-8", "replace")
