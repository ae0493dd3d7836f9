"""The guard's two limiter, each by itself: one must hold where the other is passed by."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.core.policy import Policy
from imgkeep.origin.ssrf_guard import AddressGuard, AddressRefused, OwnAddress, open_socket
from tests.support.network import PUBLIC, Names
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

REFUSED = ("127.0.0.1", "0.0.0.0", "10.0.0.5", "169.254.169.254", "168.63.129.16", "::1", "::", "fe80::1", "fd00::1",
           "::ffff:93.184.215.14", "64:ff9b::5db8:d70e", "ff02::1")  # fmt: skip


class Sockets:
    """Opens nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, info: Any) -> socket.socket:
        self.asked.append(info[4][0])
        return socket.socket(info[0], info[1])


def guard(sockets: Sockets, answers: Sequence[str] = (PUBLIC,), networks: Sequence[str] = ()) -> AddressGuard:
    policy = Policy(
        hosts_allowed=None,
        hosts_denied=(),
        ports=frozenset({80, 443}),
        networks=tuple(ip_network(text) for text in networks),
    )
    return AddressGuard(policy, Names(default=answers), sockets)


def info(address: str, port: int = 80) -> Any:
    family, rest = (socket.AF_INET6, (0, 0)) if ":" in address else (socket.AF_INET, ())
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, *rest))


@table("address", REFUSED)
def test_refused_address_gets_no_socket(address: str) -> None:
    sockets = Sockets()
    with pytest.raises(AddressRefused):
        guard(sockets).connect(info(address))
    assert sockets.asked == []


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700:4700::1111"])
def test_public_address_gets_a_socket(address: str) -> None:
    sockets = Sockets()
    guard(sockets).connect(info(address)).close()
    assert sockets.asked == [address]


@pytest.mark.parametrize("port", [22, 6379, 8080])
def test_refused_port_gets_no_socket(port: int) -> None:
    sockets = Sockets()
    with pytest.raises(AddressRefused):
        guard(sockets).connect(info(PUBLIC, port))
    assert sockets.asked == []


@pytest.mark.parametrize("address", REFUSED)
async def test_name_with_one_refused_address_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused):
        await guard(Sockets(), [PUBLIC, address]).resolve("example.com", 80)


async def test_name_with_public_addresses_passes() -> None:
    results = await guard(Sockets(), [PUBLIC, "2606:4700:4700::1111"]).resolve("example.com", 80)
    assert [result["host"] for result in results] == [PUBLIC, "2606:4700:4700::1111"]


async def test_name_without_addresses_is_refused() -> None:
    with pytest.raises(OSError, match="no address"):
        await guard(Sockets(), []).resolve("example.com", 80)


@pytest.mark.parametrize("name", ["localhost", "printer.local", "db.corp", "redis"])
async def test_local_name_is_refused(name: str) -> None:
    with pytest.raises(AddressRefused):
        await guard(Sockets(), [PUBLIC]).resolve(name, 80)


async def test_local_name_in_an_allowed_network_passes() -> None:
    assert await guard(Sockets(), ["10.1.2.3"], ["10.1.0.0/16"]).resolve("redis", 9000)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1"])
def test_own_address_is_a_loop_on_own_ports_alone(address: str) -> None:
    sockets = Sockets()
    gate = guard(sockets, networks=["0.0.0.0/0", "::/0"])
    gate.own_ports = {8080}
    with pytest.raises(OwnAddress):
        gate.connect(info(address, 8080))
    assert sockets.asked == []
    gate.connect(info(address, 80)).close()
    assert sockets.asked == [address]


async def test_check_of_an_own_address_does_not_block() -> None:
    gate = guard(Sockets(), networks=["192.0.2.0/24"])
    gate.own_ports = {8080}
    # In a task, where a blocking call of ours would be an error.
    opened = await asyncio.create_task(_connect(gate, info("192.0.2.1", 8080)))
    opened.close()


async def _connect(gate: AddressGuard, where: Any) -> socket.socket:
    return gate.connect(where)


def test_real_factory_opens_a_plain_socket() -> None:
    with open_socket(info("127.0.0.1")) as opened:
        assert (opened.family, opened.type) == (socket.AF_INET, socket.SOCK_STREAM)
