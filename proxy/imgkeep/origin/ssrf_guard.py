"""
The guard against requests to addresses of the inside (SSRF): it judges every address where the connection is made.

It has two gates, because one is not enough. The resolver judges all answers of a name together: a name with one
refused address is refused, whichever address the connector would choose. The socket factory judges the very address of
the connect call, so neither a literal (the connector asks no resolver about it) nor an answer that has changed passes.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractResolver

from imgkeep.core.policy import judge_address

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from aiohttp.abc import ResolveResult

    from imgkeep.core.policy import Policy

    AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
    SocketFactory = Callable[[AddrInfo], socket.socket]


class AddressRefused(OSError):
    """The refusal of an address by policy. An `OSError` passes through the connector like any failed connect."""


class OwnAddress(OSError):
    """The refusal of an address and port of this server."""


class AddressGuard(AbstractResolver):
    """
    The two gates, around another resolver and another socket factory.

    Args:
        policy: The policy for addresses.
        resolver: Resolves names.
        open_socket: Opens the socket for an address that passes.
        own_ports: The ports that this server listens on: a connection to one on an address of this machine is a loop.
    """

    def __init__(
        self,
        policy: Policy,
        resolver: AbstractResolver,
        open_socket: SocketFactory,
        own_ports: Container[int] = frozenset(),
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._open_socket = open_socket
        self.own_ports = own_ports

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answers = await self._resolver.resolve(host, port, family)
        if not answers:
            raise OSError(errno.EADDRNOTAVAIL, "the name has no address")
        for answer in answers:
            self._judge(host, answer["host"], port)
        return answers

    async def close(self) -> None:
        await self._resolver.close()

    def connect(self, info: AddrInfo) -> socket.socket:
        """Open the socket for one connect call, or refuse (`TCPConnector(socket_factory=...)`)."""
        address, port = info[4][:2]
        # The first gate has judged the name; here the address counts, as if the URL held it.
        self._judge(str(address), str(address), port)
        if port in self.own_ports and _is_own_address(info):
            raise OwnAddress(errno.ELOOP, "that is this server")
        return self._open_socket(info)

    def _judge(self, host: str, text: str, port: int) -> None:
        try:
            reason = judge_address(host, ipaddress.ip_address(text), port, self._policy)
        except ValueError:
            reason = "not an address"
        if reason is not None:
            raise AddressRefused(errno.EACCES, reason)


def open_socket(info: AddrInfo) -> socket.socket:
    """Open a plain socket for an address."""
    family, kind, protocol = info[:3]
    return socket.socket(family, kind, protocol)


def _is_own_address(info: AddrInfo) -> bool:
    """Tell whether an address belongs to this machine. Sends nothing."""
    address = ipaddress.ip_address(info[4][0])
    if address.is_loopback or address.is_unspecified:
        return True  # all of 127.0.0.0/8, though the kernel answers from 127.0.0.1 alone
    with socket.socket(info[0], socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(info[4])
        except OSError:
            return False
        # To an address of its own the kernel picks that same address as the source.
        return bool(probe.getsockname()[0] == info[4][0])
