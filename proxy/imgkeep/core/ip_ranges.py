"""
The IP addresses to which imgkeep may connect, and the networks that count as one client.

Rules:
- IPv4: everything but the special-purpose ranges. IPv6: only allocated global unicast (2000::/3), less the
  special-purpose ranges in it. Sources: the IANA registries iana-ipv4-special-registry and
  iana-ipv6-special-registry (RFC 6890), with additions by hand.
- `ipaddress.is_global` and its peers are no guard: their answer changes with the version of Python, and up to 3.13
  multicast, site-local and several embeddings of 127.0.0.1 are "global".
- imgkeep refuses every IPv6 address that embeds an IPv4 address: no public server of images uses one, and imgkeep
  cannot know where the packet leaves the tunnel.
- The operator's networks are allowed, and mean exactly what they say: 10.1.0.0/16 does not allow ::ffff:10.1.0.1.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# The first that matches gives the reason.
_IPV4_REFUSED: Final = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("100.100.100.200/32", "metadata"),  # Alibaba Cloud
        ("168.63.129.16/32", "metadata"),  # Azure WireServer, which looks public and is in no registry
        ("169.254.169.254/32", "metadata"),  # nearly all clouds
        ("169.254.170.0/24", "metadata"),  # Amazon ECS (.2) and EKS (.23) credentials
        ("192.0.0.192/32", "metadata"),  # Oracle Cloud Classic
        ("0.0.0.0/8", "this network"),  # RFC 791, 3.2; Linux connects 0.0.0.0 to itself
        ("10.0.0.0/8", "private"),  # RFC 1918
        ("100.64.0.0/10", "shared"),  # RFC 6598, carrier-grade NAT
        ("127.0.0.0/8", "loopback"),  # RFC 1122, 3.2.1.3
        ("169.254.0.0/16", "link-local"),  # RFC 3927
        ("172.16.0.0/12", "private"),  # RFC 1918
        ("192.0.0.0/24", "protocol assignments"),  # RFC 6890, 2.1
        ("192.0.2.0/24", "documentation"),  # RFC 5737
        ("192.31.196.0/24", "protocol assignments"),  # RFC 7535, AS112
        ("192.52.193.0/24", "protocol assignments"),  # RFC 7450, AMT
        ("192.88.99.0/24", "transition form"),  # RFC 7526, 6to4 relay anycast
        ("192.168.0.0/16", "private"),  # RFC 1918
        ("192.175.48.0/24", "protocol assignments"),  # RFC 7534, AS112
        ("198.18.0.0/15", "benchmarking"),  # RFC 2544
        ("198.51.100.0/24", "documentation"),  # RFC 5737
        ("203.0.113.0/24", "documentation"),  # RFC 5737
        ("224.0.0.0/4", "multicast"),  # RFC 1112, 4
        ("255.255.255.255/32", "broadcast"),  # RFC 919, 7
        ("240.0.0.0/4", "reserved"),  # RFC 1112, 4
    )
)

# Networks outside 2000::/3 are here for their reason only; imgkeep refuses all others there, too.
_IPV6_REFUSED: Final = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("fd00:ec2::/32", "metadata"),  # Amazon, IMDS (::254) and EKS (::23)
        ("fd20:ce::254/128", "metadata"),  # Google Cloud
        ("::/128", "unspecified"),  # RFC 4291, 2.5.2
        ("::1/128", "loopback"),  # RFC 4291, 2.5.3
        ("::/96", "transition form"),  # RFC 4291, 2.5.5.1, IPv4-compatible
        ("::ffff:0:0/96", "transition form"),  # RFC 4291, 2.5.5.2, IPv4-mapped
        ("::ffff:0:0:0/96", "transition form"),  # RFC 2765, IPv4-translated
        ("64:ff9b::/96", "transition form"),  # RFC 6052, NAT64
        ("64:ff9b:1::/48", "transition form"),  # RFC 8215, NAT64
        ("100::/64", "discard-only"),  # RFC 6666
        ("fc00::/7", "private"),  # RFC 4193, unique local
        ("fe80::/10", "link-local"),  # RFC 4291, 2.5.6
        ("fec0::/10", "site-local"),  # RFC 3879
        ("ff00::/8", "multicast"),  # RFC 4291, 2.7
        ("2001::/32", "transition form"),  # RFC 4380, Teredo
        ("2001::/23", "protocol assignments"),  # RFC 2928; benchmarking, AMT, AS112, ORCHID, DRIP and more
        ("2001:db8::/32", "documentation"),  # RFC 3849
        ("2002::/16", "transition form"),  # RFC 3056, 6to4
        ("2620:4f:8000::/48", "protocol assignments"),  # RFC 7534, AS112
        ("3ffe::/16", "reserved"),  # RFC 3701, the 6bone that was
        ("3fff::/20", "documentation"),  # RFC 9637
    )
)

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")

# RFC 5214, 6.1: the interface identifier is 0000:5efe or 0200:5efe and then an IPv4 address. The two bits of the first
# byte that say "universal" and "group" (RFC 4291, 2.5.1) do not count.
_ISATAP_MASK: Final = 0xFCFF_FFFF
_ISATAP: Final = 0x0000_5EFE


def refusal(address: Address, allowed: Sequence[Network]) -> str | None:
    """
    Return why imgkeep may not connect to `address`, as a short constant fit for clients; None: it may.

    Args:
        address: The address of the next connection.
        allowed: The operator's networks (`fetch.allow_networks`), allowed in any range.
    """
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return "scoped"  # it names an interface of this machine, which a remote name must not choose
    if any(address in network for network in allowed):
        return None
    if isinstance(address, IPv4Address):
        return next((reason for network, reason in _IPV4_REFUSED if address in network), None)
    return next((reason for network, reason in _IPV6_REFUSED if address in network), None) or _unicast_refusal(address)


def _unicast_refusal(address: IPv6Address) -> str | None:
    if address not in _GLOBAL_UNICAST:
        return "not global unicast"
    return "transition form" if int(address) >> 32 & _ISATAP_MASK == _ISATAP else None


@lru_cache(maxsize=1024)  # a page full of images names few hosts
def read_literal(host: str) -> Address | None:
    """Return the address that a host as in `Source.host` is; None for a name."""
    if ":" not in host and not host[-1:].isdigit():
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


def unmap(address: Address) -> Address:
    """Return the IPv4 address that an IPv4-mapped one stands for (RFC 4291, 2.5.5.2), any other as it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


@lru_cache(maxsize=4096)  # a few clients send most requests
def client_networks(address: Address) -> tuple[str, ...]:
    """
    Return the networks that count as one client, the narrowest first: the IPv4 address itself, or the /64 and the /48.

    The last 64 bits of an IPv6 address are its owner's to choose (RFC 4291, 2.5.4), and a site may hold a /48
    (RFC 6177). An IPv4-mapped address is the IPv4 address.
    """
    address = unmap(address)
    if isinstance(address, IPv4Address):
        return (str(address),)
    number = int(address)
    return tuple(f"{IPv6Address(number >> 128 - bits << 128 - bits)}/{bits}" for bits in (64, 48))
