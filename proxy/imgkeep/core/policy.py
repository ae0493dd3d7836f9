"""
The decision whether imgkeep may fetch a source: by its URL alone, and again for every address it connects to.

Rules:
- `judge` runs before any network access, `judge_address` for every resolved address and every socket, on every redirect
  hop. `judge_address` has the final say; `judge` never allows a URL that `judge_address` refuses.
- A reason is short, constant and fit for clients: it names a setting or a kind, never the host.
- Deny wins over allow. The host lists apply to IP literals, too, and to addresses in `fetch.allow_networks`.
- `sources.deny` applies to all URLs that a link names: its host, its canonical host, and the links inside it.
- With `networks` an operator may allow a local name or another port, which only the addresses can show: then `judge`
  lets names pass, and `judge_address` refuses every address outside these networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from imgkeep.core.host_patterns import Patterns
from imgkeep.core.ip_ranges import read_literal, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imgkeep.core.ip_ranges import Address, Network
    from imgkeep.core.records import Source

PORTS: Final = (80, 443, 8080, 8443)
"""The default of `fetch.allow_ports`."""

LOCAL_SUFFIXES: Final = frozenset({
    "localhost", "test", "invalid",  # RFC 6761
    "local",  # RFC 6762; Kubernetes' cluster.local lives here as well
    "intranet", "internal", "private", "corp", "home", "lan",  # RFC 6762, G; ICANN reserved .internal for this
    "mail",  # with .corp and .home withheld by ICANN for ever, because they are in use inside
    "arpa",  # RFC 3172: infrastructure, nothing is published there; holds home.arpa (RFC 8375)
    "onion",  # RFC 7686
    "alt", "i2p", "exit", "bit",  # RFC 9476 and the like: no names of the DNS
    "svc",  # what pods may write for svc.cluster.local
    "localdomain", "localdomain4", "localdomain6",  # /etc/hosts of many distributions
    "openstacklocal", "novalocal", "consul", "docker", "intra", "domain", "workgroup",  # defaults of common software
})  # fmt: skip
"""Last labels of local names. `example` is not among them: RFC 2606 reserves it, so no network uses it inside."""


def _names_nothing(_: Source) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Policy:
    """
    The operator's settings for sources.

    Attributes:
        hosts_allowed: Patterns of `sources.allow`; None: any host; empty: none.
        hosts_denied: Patterns of `sources.deny`.
        ports: `fetch.allow_ports`.
        networks: `fetch.allow_networks`: allowed under any name and port.
        names: Returns the other URLs that a source names, as in `SourceInfo.places`.

    Raises:
        ValueError: A pattern can match nothing; the message quotes it, and the caller adds the name of the setting.
    """

    hosts_allowed: tuple[str, ...] | None
    hosts_denied: tuple[str, ...]
    ports: frozenset[int]
    networks: tuple[Network, ...]
    names: Callable[[Source], tuple[str, ...]] = field(default=_names_nothing, repr=False, compare=False)
    _allowed: Patterns = field(init=False, repr=False, compare=False)
    _denied: Patterns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Compiled once: the patterns of some hundred providers take long to compile.
        allowed = ("*",) if self.hosts_allowed is None else self.hosts_allowed
        object.__setattr__(self, "_allowed", Patterns(allowed, denying=False))
        object.__setattr__(self, "_denied", Patterns(self.hosts_denied, denying=True))

    def denies(self, host: str) -> bool:
        """Return whether `sources.deny` refuses the whole of `host` (as in `Source.host`)."""
        return self._denied.match_host(host)

    def host_refusal(self, host: str) -> str | None:
        """Return why the lists refuse `host` (as in `Source.host`), whatever the path; None where they do not."""
        if self._denied.match_host(host):
            return "host is in sources.deny"
        return None if self._allowed.match_host(host) else "host is not in sources.allow"

    def denial(self, source: Source, places: Iterable[str] | None = None) -> str | None:
        """
        Return why imgkeep neither serves nor fetches `source`: `sources.deny` refuses it, or a URL that it names.

        Args:
            source: The link.
            places: Its `SourceInfo.places`, if known.
        """
        if not self.hosts_denied:
            return None
        return self._denial(_place(source), *(self.names(source) if places is None else places))

    def denies_record(self, host: str, identity: str) -> bool:
        """Return whether `sources.deny` refuses the source of a stored image: `host` and `identity` as in `Record`."""
        if not self.hosts_denied:
            return False
        place = identity.partition("//")[2].partition("#")[0].partition("?")[0]
        named, _, path = place.partition("/")
        if named.count(":") == 1:  # the lists name no ports
            named = named.partition(":")[0]
        return self._denial(f"{host}/{path}", f"{named}/{path}") is not None

    def refusal(self, source: Source) -> str | None:
        """Return why the lists refuse `source`; None where they do not."""
        reason = self.denial(source)
        if reason is not None:
            return reason
        host, _, path = _place(source).partition("/")
        if self._allowed.match(host, f"/{path}") is not None:
            return None
        return f"{'path' if self._allowed.knows(host) else 'host'} is not in sources.allow"

    def _denial(self, *places: str) -> str | None:
        for place in places:
            host, _, path = place.partition("/")
            matched = self._denied.match(host, f"/{path}")
            address = None if matched else read_literal(host)
            if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
                matched = self._denied.match(str(address.ipv4_mapped), f"/{path}")
            if matched is not None:
                return f"{matched} is in sources.deny"
        return None


def _place(source: Source) -> str:
    return source.host + source.target.partition("?")[0]


def judge(source: Source, policy: Policy) -> str | None:
    """Return why imgkeep may not fetch `source`, by its URL alone; None: its addresses decide."""
    reason = policy.refusal(source)
    if reason is not None:
        return reason
    address = read_literal(source.host)
    if address is not None:
        return judge_address(source.host, address, source.port, policy)
    return None if policy.networks else _url_refusal(source.host, source.port, policy)


def judge_address(host: str, address: Address, port: int, policy: Policy) -> str | None:
    """
    Return why imgkeep may not connect to `address` for `host`; None: it may.

    Args:
        host: As in `Source.host`: the name before its resolution, or an IP literal.
        address: An address of this name, or the peer of the socket.
        port: The port of the connection.
        policy: The operator's policy.
    """
    reason = refusal(address, policy.networks)
    if reason is not None:
        return reason
    if any(address in network for network in policy.networks):
        return None
    return _url_refusal(host, port, policy)


def is_local_name(host: str) -> bool:
    """Return whether `host` has a different meaning in each network: a single label, or under a local suffix."""
    name = host.lower().removesuffix(".")
    if read_literal(name) is not None:
        return False
    _, dot, suffix = name.rpartition(".")
    return not dot or suffix in LOCAL_SUFFIXES


def _url_refusal(host: str, port: int, policy: Policy) -> str | None:
    if is_local_name(host):
        return "host is a local name"
    return None if port in policy.ports else "port is not in fetch.allow_ports"
