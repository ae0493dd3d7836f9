from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.ip_ranges import client_networks, read_literal, refusal, unmap
from tests.support.tables import table

# A range whose neighbour is refused as well names what that one is.
IPV4_RANGES = [
    ("0.0.0.0", "0.255.255.255", "this network"),
    ("10.0.0.0", "10.255.255.255", "private"),
    ("100.64.0.0", "100.127.255.255", "shared"),
    ("127.0.0.0", "127.255.255.255", "loopback"),
    ("168.63.129.16", "168.63.129.16", "metadata"),
    ("169.254.0.0", "169.254.255.255", "link-local"),
    ("172.16.0.0", "172.31.255.255", "private"),
    ("192.0.0.0", "192.0.0.255", "protocol assignments"),
    ("192.0.2.0", "192.0.2.255", "documentation"),
    ("192.31.196.0", "192.31.196.255", "protocol assignments"),
    ("192.52.193.0", "192.52.193.255", "protocol assignments"),
    ("192.88.99.0", "192.88.99.255", "transition form"),
    ("192.168.0.0", "192.168.255.255", "private"),
    ("192.175.48.0", "192.175.48.255", "protocol assignments"),
    ("198.18.0.0", "198.19.255.255", "benchmarking"),
    ("198.51.100.0", "198.51.100.255", "documentation"),
    ("203.0.113.0", "203.0.113.255", "documentation"),
    ("224.0.0.0", "239.255.255.255", "multicast"),
    ("240.0.0.0", "255.255.255.254", "reserved"),
]

IPV6_RANGES = [
    ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "transition form"),
    ("2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "protocol assignments"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "transition form"),
    ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "protocol assignments"),
    ("3ffe::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
    ("::", "::", "unspecified"),
    ("::1", "::1", "loopback"),
    ("::2", "::ffff:ffff", "transition form"),
    ("::ffff:0:0", "::ffff:ffff:ffff", "transition form"),
    ("::ffff:0:0:0", "::ffff:0:ffff:ffff", "transition form"),
    ("64:ff9b::", "64:ff9b::ffff:ffff", "transition form"),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "transition form"),
    ("100::", "100::ffff:ffff:ffff:ffff", "discard-only"),
    ("4000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private"),
    ("fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site-local"),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
]

ALLOWED_OUTSIDE = [
    "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0",
    "191.255.255.255", "192.0.1.0", "192.0.1.255", "192.0.3.0", "192.31.195.255", "192.31.197.0", "192.52.192.255",
    "192.52.194.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "192.175.47.255",
    "192.175.49.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0",
    "223.255.255.255", "1.1.1.1", "8.8.8.8",
    "2000::", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db9::", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::", "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
    "2620:4f:8001::", "3ffd:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::",
    "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2606:4700:4700::1111", "2a00:1450:4001:831::200e",
]  # fmt: skip


@table(("first", "last", "reason"), [*IPV4_RANGES, *IPV6_RANGES])
def test_special_range_is_refused_from_first_to_last_address(first: str, last: str, reason: str) -> None:
    assert refusal(ip_address(first), ()) == reason
    assert refusal(ip_address(last), ()) == reason


@table("text", ALLOWED_OUTSIDE)
def test_address_beside_the_special_ranges_may_be_connected_to(text: str) -> None:
    assert refusal(ip_address(text), ()) is None


def test_tables_have_the_neighbours_of_every_range() -> None:
    for first, last, _ in [*IPV4_RANGES, *IPV6_RANGES]:
        kind = type(ip_address(first))
        neighbours = {int(ip_address(first)) - 1, int(ip_address(last)) + 1} - {-1, 2 ** kind(0).max_prefixlen}
        assert {str(kind(n)) for n in neighbours if refusal(kind(n), ()) is None} <= set(ALLOWED_OUTSIDE)


@pytest.mark.parametrize(
    "text",
    ["169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "192.0.0.192", "168.63.129.16",
     "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"],
)  # fmt: skip
def test_metadata_services_are_named(text: str) -> None:
    assert refusal(ip_address(text), ()) == "metadata"


def test_broadcast_is_refused() -> None:
    assert refusal(ip_address("255.255.255.255"), ()) == "broadcast"


@table(
    "text",
    ["::8.8.8.8", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::8.8.8.8", "2002:808:808::1",
     "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2a00:1450::5efe:8.8.8.8", "2a00:1450::200:5efe:10.0.0.1",
     "2a00:1450::300:5efe:10.0.0.1", "2a00:1450::100:5efe:10.0.0.1"],
)  # fmt: skip
def test_address_with_an_embedded_ipv4_is_refused(text: str) -> None:
    assert refusal(ip_address(text), ()) == "transition form"


@pytest.mark.parametrize("text", ["2a00:1450::5eff:808:808", "2a00:1450::400:5efe:808:808", "2a00:1450::5efe"])
def test_address_that_only_resembles_isatap_is_allowed(text: str) -> None:
    assert refusal(ip_address(text), ()) is None


@pytest.mark.parametrize("text", ["2606:4700::1111%eth0", "fe80::1%1"])
def test_scope_is_refused_even_inside_an_allowed_network(text: str) -> None:
    assert refusal(ip_address(text), ()) == "scoped"
    assert refusal(ip_address(text), (ip_network("::/0"),)) == "scoped"


@pytest.mark.parametrize(
    ("network", "inside", "outside", "reason"),
    [
        ("10.1.0.0/16", "10.1.2.3", "10.2.0.0", "private"),
        ("10.1.0.0/16", "10.1.255.255", "::ffff:10.1.2.3", "transition form"),
        ("127.0.0.1/32", "127.0.0.1", "127.0.0.2", "loopback"),
        ("::1/128", "::1", "127.0.0.1", "loopback"),
        ("fd00::/8", "fd00::1", "fc00::1", "private"),
        ("0.0.0.0/0", "169.254.169.254", "::1", "loopback"),
    ],
)
def test_network_of_the_operator_is_allowed_and_nothing_else(
    network: str, inside: str, outside: str, reason: str
) -> None:
    allowed = (ip_network("192.0.2.0/24"), ip_network(network))
    assert refusal(ip_address(inside), allowed) is None
    assert refusal(ip_address(outside), allowed) == reason


@given(st.ip_addresses())
def test_whatever_python_calls_special_is_refused(address: IPv4Address | IPv6Address) -> None:
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or not address.is_global
    )
    assert refusal(address, ()) is not None or not special


@pytest.mark.parametrize("host", ["example.com", "a.b1", "1.example", "", "a:b"])
def test_name_is_no_literal(host: str) -> None:
    assert read_literal(host) is None


@pytest.mark.parametrize("host", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_literal_is_the_address_it_spells(host: str) -> None:
    assert read_literal(host) == ip_address(host)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        pytest.param("192.0.2.1", ("192.0.2.1",), id="IPv4"),
        pytest.param("::ffff:192.0.2.1", ("192.0.2.1",), id="IPv4-mapped"),
        pytest.param("2001:db8:1:2:3:4:5:6", ("2001:db8:1:2::/64", "2001:db8:1::/48"), id="IPv6"),
        pytest.param("2001:db8::", ("2001:db8::/64", "2001:db8::/48"), id="first of a network"),
        pytest.param("2001:db8:0:1::1", ("2001:db8:0:1::/64", "2001:db8::/48"), id="second /64 of a /48"),
        pytest.param("fe80::1%eth0", ("fe80::/64", "fe80::/48"), id="scoped"),
    ],
)
def test_networks_of_a_client(text: str, networks: tuple[str, ...]) -> None:
    assert client_networks(ip_address(text)) == networks


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_64_are_one_client(address: IPv6Address, host: int) -> None:
    neighbour = IPv6Address(int(address) >> 64 << 64 | host)
    if unmap(address) == address and unmap(neighbour) == neighbour:
        networks = client_networks(address)
        assert networks == client_networks(neighbour)
        assert all(address in ip_network(network) for network in networks)
