"""
Limit on the connections of a client: each takes a file descriptor and some kilobytes of memory.

A client is an IPv4 address, or a /64 of IPv6 and, with `WIDE_NETWORK_FACTOR` times as many, its /48. This machine's own
programs and the proxies of `server.trusted_proxies` have no limit: a proxy limits its clients itself
(`docs/operations.md`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy
from imgkeep.core.ip_ranges import client_networks, read_literal, unmap
from imgkeep.web.error_to_problem import problem_response
from imgkeep.web.request_response import encode_response_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgkeep.core.ip_ranges import Network

WIDE_NETWORK_FACTOR: Final = 4
"""Factor of the limit for a /48, which may be a company or a carrier with many clients."""
RETRY_AFTER_S: Final = 10
"""Time after which a refused client may come back."""


class ConnectionLimit:
    """
    Counts connections by client.

    Args:
        per_client: `limits.connections`; 0: there is no limit.
        trusted: The networks of `server.trusted_proxies`.
        refused: Is called with the name of the limit for each refusal.
    """

    def __init__(self, per_client: int, trusted: Sequence[Network], refused: Callable[[str], None]) -> None:
        self._per_client = per_client
        self._trusted = trusted
        self._refused = refused
        self._open: dict[str, int] = {}
        """Number of open connections by network."""

    def acquire(self, peer: str) -> tuple[str, ...] | None:
        """Return the networks that a connection counts against, for `release`; `None`: it is one too many."""
        address = read_literal(peer.partition("%")[0]) if self._per_client else None
        address = None if address is None else unmap(address)  # of a socket that takes both kinds of addresses
        if address is None or address.is_loopback or any(address in network for network in self._trusted):
            return ()
        networks = client_networks(address)
        for index, network in enumerate(networks):
            if self._open.get(network, 0) >= self._per_client * (WIDE_NETWORK_FACTOR if index else 1):
                self._refused("connections")
                return None
        for network in networks:
            self._open[network] = self._open.get(network, 0) + 1
        return networks

    def release(self, networks: Sequence[str]) -> None:
        """Count a connection no more, because it is closed."""
        for network in networks:
            self._open[network] -= 1
            if not self._open[network]:
                del self._open[network]


def refuse_connection(transport: asyncio.Transport) -> None:
    """Answer 503 to a connection that is one too many, whatever its request, and close it."""
    response = problem_response(
        Busy("this address has too many connections (limits.connections)", retry_after_s=RETRY_AFTER_S)
    )
    response.headers["Connection"] = "close"
    assert isinstance(response.body, bytes)
    transport.write(encode_response_head(response, b"", head=False) + response.body)
    transport.set_protocol(asyncio.Protocol())
    transport.close()
