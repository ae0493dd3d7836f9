"""The log record of a start: the addresses, the place of the images, and the permissions of clients."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep import __version__
from imgkeep.bootstrap.platform import SYSTEM
from imgkeep.config import absolute, data_folder
from imgkeep.listening import format_address
from imgkeep.observability.logs import show
from imgkeep.storage.local.machine_token import NAME, TokenUnusableError, read_token
from imgkeep.web.login_tickets import LogInLink, make_log_in_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.config import Config

log = logging.getLogger(__name__)

_IMAGES_FOR: Final = {
    "off": "all clients",
    "misses": "all clients; new ones for signed URLs",
    "always": "signed URLs",
}


def tell_opening(config: Config, addresses: Sequence[tuple[str, int]], local_token: str | None) -> None:
    """
    Log one record: the addresses, the place of the images, and the permissions of clients. On a terminal, print a
    banner too.
    """
    hosts_allowed = config.hosts_allowed(config.read_provider_rules())
    api_for = f"the token in {absolute(data_folder(config) / NAME)}" if local_token else "no client"
    facts: dict[str, object] = {
        "address": ",".join(format_address(host, port) for host, port in addresses),
        "store": config.store.url,
        "sources": "any public host" if "*" in hosts_allowed else f"{len(hosts_allowed)} host patterns",
        "images_for": _IMAGES_FOR[config.security.signature],
        "api_for": "clients with a token" if config.security.api_tokens else api_for,
    }
    if config.store.exclusive:
        facts["exclusive"] = True
    if config.server.workers > 1:
        facts["workers"] = config.server.workers
    log.info("listening", extra=facts)
    link = None
    if local_token and not config.server.is_open:
        link = make_log_in_link(local_token, *addresses[0], SYSTEM.clock())
        log.info(
            "open this link in a browser within the hour: it logs in and shows the newest images",
            extra={"link": LogInLink(link)},
        )
    open_to = {
        "fetches": f"{facts['sources']}, for {facts['images_for']}",
        "API": f"for {facts['api_for']}",
        "open to": "every client that reaches this machine" if config.server.is_open else "this machine only",
    }
    if config.log.format == "text" and sys.stderr.isatty():
        from imgkeep.bootstrap.banner import make_banner  # noqa: PLC0415 - rich takes long to import, and services have no terminal

        show(make_banner(sys.stderr, config, addresses, version=__version__, open_to=open_to, log_in=link))


def tell_workers_opening(config: Config, addresses: Sequence[tuple[str, int]]) -> None:
    """Do the same for several workers, of which the first has made the token. Blocks."""
    local_token = None
    if not config.security.api_tokens:
        with suppress(TokenUnusableError):  # each worker has said why
            local_token = read_token(data_folder(config))
    tell_opening(config, addresses, local_token)
