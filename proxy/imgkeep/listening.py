"""
Listening sockets, from `server.host` and `server.port`, `server.metrics_address` and `cluster.listen`.

Rules:
- `::` alone accepts IPv4 too (dual stack, RFC 3493, 5.3), whatever the default of the machine is. Beside an IPv4
  address it is IPv6 only, because the two would conflict. An empty host is both.
- A name with several addresses stands for those that this machine has; an address must be one of this machine.
- Every error names the setting, the address and the cause. It is a `ConfigError` if only another setting helps. A port
  in use may be free in a moment, and is an `OSError`.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

from imgkeep.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from imgkeep.config import Config, Server
    from imgkeep.config.schema import Cluster

BACKLOG: Final = 1024
PORT_ATTEMPTS_MAX: Final = 16
"""Maximum number of attempts to find a port that is free at all addresses."""

_MISSING: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors of an address, or of a family of addresses, that the machine does not have."""

_ANY_ADDRESS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - by the setting
"""The address of this machine that reaches a server with an unspecified address."""

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class _SettingNames:
    """Names of the settings of an address, and the hint for another port."""

    host: str
    port: str
    remedy: str


_SERVER: Final = _SettingNames("server.host", "server.port", " (server.port, IMGKEEP_SERVER__PORT)")
_METRICS: Final = _SettingNames("server.metrics_address", "server.metrics_address", "")
_NODES: Final = _SettingNames("cluster.listen", "cluster.listen", " (or of cluster.advertise_url, where it is empty)")


@dataclass(frozen=True, slots=True)
class _Target:
    """An address to listen on. `is_one_of_many`: its name has others."""

    host: str
    family: socket.AddressFamily
    address: SocketAddress
    ipv6_only: bool
    is_one_of_many: bool
    settings: _SettingNames = _SERVER

    def at(self, port: int) -> _Target:
        address: SocketAddress = (self.address[0], port, *self.address[2:])
        return replace(self, address=address)

    def __str__(self) -> str:
        host, port = self.address[:2]
        return format_address(host, port) if port else host


def format_address(host: str, port: int) -> str:
    """Return an address in the form of a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_hosts(server: Server) -> list[str]:
    """Return the addresses at which a program of this machine reaches the server."""
    return [
        each
        for host in server.hosts
        for each in (_ANY_ADDRESS.get(host, host), *(["127.0.0.1"] if host == "::" else []))
    ]


def listen(server: Server) -> list[socket.socket]:
    """
    Return listening sockets, one for each address. Blocks while a name is resolved.

    Raises:
        ConfigError: An address is not of this machine, or this process may not listen there.
        OSError: The port is in use.
    """
    with ExitStack() as stack:
        sockets = [sock for _, sock in _bind_all(_find_targets(server.hosts), server.port, stack)]
        for sock in sockets:
            _start_listening(sock, _SERVER)
        stack.pop_all()
    return sockets


def listen_for_metrics(server: Server, *, shared: bool = False) -> list[socket.socket]:
    """
    Return listening sockets for `server.metrics_address`: none if it is empty. Blocks as `listen`.

    Args:
        server: The settings.
        shared: Share the port with the other workers, each of which has its own sockets.

    Raises: as `listen`.
    """
    return _listen_at(server.metrics_host_and_port, _METRICS, shared=shared)


def listen_for_nodes(cluster: Cluster, *, shared: bool = False) -> list[socket.socket]:
    """Return listening sockets for the other nodes: none if there is one node. Else as `listen_for_metrics`."""
    return _listen_at(cluster.listen_host_and_port, _NODES, shared=shared)


def _listen_at(wanted: tuple[str, int] | None, settings: _SettingNames, *, shared: bool) -> list[socket.socket]:
    if wanted is None:
        return []
    host, port = wanted
    with ExitStack() as stack:
        sockets = [sock for _, sock in _bind_all(_find_targets((host,), settings), port, stack, shared=shared)]
        for sock in sockets:
            _start_listening(sock, settings)
        stack.pop_all()
    return sockets


def listen_for_workers(config: Config, stack: ExitStack) -> list[list[socket.socket]]:
    """
    Return listening sockets for each worker, one for each address; the kernel spreads connections over them.

    Raises: as `listen`.
    """
    server = config.server
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("server.workers: more than 1 needs SO_REUSEPORT, which this system does not have")
    with ExitStack() as probes:
        # Not shared, so that another imgkeep at the same address is an error.
        bound = [
            target.at(sock.getsockname()[1])
            for target, sock in _bind_all(_find_targets(server.hosts), server.port, probes)
        ]
        for sock in listen_for_metrics(server) + listen_for_nodes(config.cluster):  # each worker opens its own later
            probes.enter_context(sock)
    sets: list[list[socket.socket]] = []
    for _ in range(server.workers):
        sets.append([])
        for target in bound:
            sock = stack.enter_context(_bind(target, shared=True))
            _start_listening(sock, _SERVER)
            sets[-1].append(sock)
    return sets


def _start_listening(sock: socket.socket, settings: _SettingNames) -> None:
    try:
        sock.listen(BACKLOG)
    except OSError as error:  # another program took the port in between
        host, port = sock.getsockname()[:2]
        raise _explain(error, host, format_address(host, port), settings) from None


def _find_targets(hosts: Iterable[str], settings: _SettingNames = _SERVER) -> list[_Target]:
    found: dict[tuple[socket.AddressFamily, SocketAddress], str] = {}
    counts: dict[str, int] = {}
    for host in hosts:
        for key in _resolve(host, settings):
            if found.setdefault(key, host) == host:
                counts[host] = counts.get(host, 0) + 1
    has_ipv4 = any(family == socket.AF_INET for family, _ in found)
    return [
        _Target(
            host=host,
            family=family,
            address=address,
            ipv6_only=has_ipv4 or not ip_address(address[0].partition("%")[0]).is_unspecified,
            is_one_of_many=counts[host] > 1,
            settings=settings,
        )
        for (family, address), host in found.items()
    ]


def _resolve(host: str, settings: _SettingNames) -> Iterator[tuple[socket.AddressFamily, SocketAddress]]:
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{settings.host}: '{host}' does not resolve to an address: {cause}") from None
    for family, _, _, _, address in found:
        if family in {socket.AF_INET, socket.AF_INET6}:
            yield family, address  # type: ignore[misc]  # of these families


def _bind_all(
    targets: list[_Target], port: int, stack: ExitStack, *, shared: bool = False
) -> list[tuple[_Target, socket.socket]]:
    """Bind to one port at every address; the stack closes the sockets."""
    for attempt_number in range(PORT_ATTEMPTS_MAX):
        with ExitStack() as attempt:
            bound: list[tuple[_Target, socket.socket]] = []
            missing: ConfigError | None = None
            try:
                for target in targets:
                    chosen = bound[0][1].getsockname()[1] if bound else port
                    try:
                        sock = attempt.enter_context(_bind(target.at(chosen), shared=shared))
                    except _MissingAddressError as error:
                        missing = error
                        continue
                    bound.append((target, sock))
            except OSError:
                if port or attempt_number == PORT_ATTEMPTS_MAX - 1:
                    raise
                continue
            if not bound:
                assert missing is not None
                raise missing
            stack.enter_context(attempt.pop_all())
            return bound
    raise AssertionError("the last attempt returns or raises")


class _MissingAddressError(ConfigError):
    """The error of an address that this machine does not have."""


def _bind(target: _Target, *, shared: bool) -> socket.socket:
    sock = None
    try:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if target.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, target.ipv6_only)
        sock.bind(target.address)
    except OSError as error:
        if sock is not None:
            sock.close()
        explained = _explain(error, target.host, str(target), target.settings)
        if target.is_one_of_many and error.errno in _MISSING:
            raise _MissingAddressError(str(explained)) from None
        raise explained from None
    return sock


def _explain(error: OSError, host: str, address: str, settings: _SettingNames) -> ConfigError | OSError:
    cause = os.strerror(error.errno or errno.EIO)
    if error.errno == errno.EADDRINUSE:
        message = (
            f"{settings.port}: another program listens at {address} already: end it, or choose another "
            f"port{settings.remedy}"
        )
        return OSError(errno.EADDRINUSE, message)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return ConfigError(
            f"{settings.port}: no permission to listen at {address}: choose a port from 1024 on, put a proxy in "
            "front, or give this process CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EAFNOSUPPORT or (error.errno == errno.EADDRNOTAVAIL and host in {"::", "::1"}):
        return ConfigError(
            f"{settings.host}: this machine has no IPv6, so it cannot listen at {address}: use an IPv4 address"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"{settings.host}: {address} is not an address of this machine")
    return ConfigError(f"{settings.host}: cannot listen at {address}: {cause}")
