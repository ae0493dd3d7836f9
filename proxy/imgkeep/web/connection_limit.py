"""
How many connections a client may hold: each takes a file descriptor and some kilobytes of memory.

A client is an IPv4 address, or a /64 of IPv6 and, with `WIDE_NETWORK_FACTOR` times as many, its /48. This machine's own programs
and the proxies of `server.trusted_proxies` have no limit: a proxy limits its clients itself (`docs/operations.md`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy
from imgkeep.core.ip_ranges import client_networks, read_literal, unmap
from imgkeep.web.messages import encode_response_head
from imgkeep.web.problems import problem_response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgkeep.core.ip_ranges import Network

WIDE_NETWORK_FACTOR: Final = 4
RETRY_AFTER_S: Final = 10


class ConnectionLimit:
    """
    Counts connections by client.

    Args:
        per_client: `limits.connections`; 0: there is no limit.
        refused: Is told of the limit when it refuses.
    """

    def __init__(self, per_client: int, trusted: Sequence[Network], refused: Callable[[str], None]) -> None:
        self._per_client = per_client
        self._trusted = trusted
        self._refused = refused
        self._held: dict[str, int] = {}

    def enter(self, peer: str) -> tuple[str, ...] | None:
        """Return what the connection counts against, for `leave`; `None`: it is one too many."""
        address = read_literal(peer.partition("%")[0]) if self._per_client else None
        address = None if address is None else unmap(address)  # of a socket that takes both kinds of addresses
        if address is None or address.is_loopback or any(address in network for network in self._trusted):
            return ()
        networks = client_networks(address)
        for place, network in enumerate(networks):
            if self._held.get(network, 0) >= self._per_client * (WIDE_NETWORK_FACTOR if place else 1):
                self._refused("connections")
                return None
        for network in networks:
            self._held[network] = self._held.get(network, 0) + 1
        return networks

    def leave(self, networks: Sequence[str]) -> None:
        """A connection is closed."""
        for network in networks:
            self._held[network] -= 1
            if not self._held[network]:
                del self._held[network]


def refuse_connection(transport: asyncio.Transport) -> None:
    """Answer 503 to a connection that is one too many, whatever it was going to ask, and close it."""
    answer = problem_response(
        Busy("this address has too many connections (limits.connections)", retry_after_s=RETRY_AFTER_S)
    )
    answer.headers["Connection"] = "close"
    transport.write(encode_response_head(answer, b"", head=False) + bytes(answer.body or b""))  # type: ignore[arg-type]  # no part
    transport.set_protocol(asyncio.Protocol())
    transport.close()
