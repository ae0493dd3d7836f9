"""A command as it was called, and what every command reads from that: its input, and the server that it works with."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from imgkeep.cli import save
from imgkeep.cli.health import reachable_hosts
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError, absolute, data_folder, read_store_url
from imgkeep.core.store_url import Bucket, Folder
from imgkeep.listening import format_address
from imgkeep.storage.local.machine_token import TokenUnusableError, read_token

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from imgkeep.bootstrap.services import Services
    from imgkeep.cli.client import Client
    from imgkeep.config import Config


@dataclass(frozen=True, slots=True)
class Invocation:
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


def make_client(call: Invocation) -> Client:
    """Return the server that `--server` names, with what its API takes."""
    from imgkeep.cli.client import Client, check_server_url, pin_address  # noqa: PLC0415 - only `--server` needs aiohttp

    config = call.config
    if call.arguments.server:
        check_server_url(call.arguments.server)
    url = call.arguments.server or _local_server_url(config)
    return Client(pin_address(url, config.server.hosts[0]), call.token or _token_for(url, config))


def _local_server_url(config: Config) -> str:
    """Return where the server of this configuration is reached from this machine."""
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
    """Return what the API of a server takes. The token of this machine goes to this machine only."""
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


def make_save_target(call: Invocation, services: Services) -> save.Store:
    describe = partial(services.image_service.describe, base=call.base)
    return save.Store(services.saver, identify=services.image_service.identify, describe=describe, clock=read_clock)


def read_store_argument(name: str, url: str, call: Invocation) -> Folder | Bucket:
    """Read the URL of a store; `AWS_REGION` counts as it does for `store.url`."""
    place = read_store_url("FROM" if name == "source" else "TO", url)
    region = call.environment.get("AWS_REGION")
    if isinstance(place, Bucket) and place.region is None and region:
        return replace(place, region=region)
    return place


def read_urls(arguments: Sequence[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            # Bytes, because a line that is no UTF-8 must not take the others with it.
            yield from (line.rstrip(b"\r\n").decode("utf-8", "replace") for line in sys.stdin.buffer)
        else:
            yield os.fsencode(argument).decode("utf-8", "replace")


def read_lines(arguments: argparse.Namespace) -> list[str]:
    """Return the links that are named, and those in the file that is."""
    links = list(read_urls(arguments.urls))
    if arguments.file is not None:
        try:
            links += arguments.file.read_bytes().decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise ConfigError(f"{arguments.file}: {error.strerror}") from None
    if not links:
        raise ConfigError("save: name URLs, or a file with -f")
    return links
