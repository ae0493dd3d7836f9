"""
Judges whether a source may be fetched: by its URL alone, and again for every address that is connected to.

Rules:
- `judge` runs before anything is asked of the network, `judge_address` for every resolved address and every socket, on
  every redirect hop. The second has the final say; the first never allows what the second would not.
- A reason is short, constant and fit for clients: it names a setting or a kind, never the host.
- Deny wins over allow. The host lists hold for literals, too, and for what `fetch.allow_networks` allows.
- `sources.deny` holds for all that a link names: its host, what it is folded to, and the links inside it.
- With `networks` an operator may mean a local name or another port, which only its addresses tell: so `judge` lets
  names pass there, and `judge_address` refuses whatever is not inside them.
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
"""Last labels of names that are local by nature. `example` is none: it is nobody's, hence nobody's inside."""


def _names_nothing(_: Source) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Policy:
    """
    What the operator lets us fetch.

    Attributes:
        hosts_allowed: patterns of `sources.allow`; None: any host; empty: none.
        hosts_denied: patterns of `sources.deny`.
        ports: `fetch.allow_ports`.
        networks: `fetch.allow_networks`: allowed whatever they are, under any name and port.
        names: tells what a source names besides itself, as `SourceInfo.places` does.

    Raises:
        ValueError: a pattern can match nothing; the message quotes it and leaves the setting's name to the caller.
    """

    hosts_allowed: tuple[str, ...] | None
    hosts_denied: tuple[str, ...]
    ports: frozenset[int]
    networks: tuple[Network, ...]
    names: Callable[[Source], tuple[str, ...]] = field(default=_names_nothing, repr=False, compare=False)
    _allowed: Patterns = field(init=False, repr=False, compare=False)
    _denied: Patterns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made once: a pattern of some hundred providers is costly to make, or to look up by its globs.
        allowed = ("*",) if self.hosts_allowed is None else self.hosts_allowed
        object.__setattr__(self, "_allowed", Patterns(allowed, denying=False))
        object.__setattr__(self, "_denied", Patterns(self.hosts_denied, denying=True))

    def denies(self, host: str) -> bool:
        """Return whether `sources.deny` names the whole of `host` (as in `Source.host`)."""
        return self._denied.match_host(host)

    def host_refusal(self, host: str) -> str | None:
        """Return why the lists refuse `host` (as in `Source.host`), whatever the path; None where they do not."""
        if self._denied.match_host(host):
            return "host is in sources.deny"
        return None if self._allowed.match_host(host) else "host is not in sources.allow"

    def denial(self, source: Source, places: Iterable[str] | None = None) -> str | None:
        """
        Return why nothing of `source` is shown or fetched: `sources.deny` names it, or something that it names.

        Args:
            source: the link.
            places: `SourceInfo.places` of it, if that is known.
        """
        if not self.hosts_denied:
            return None
        return self._denial(_place(source), *(self.names(source) if places is None else places))

    def denies_record(self, host: str, identity: str) -> bool:
        """Return whether what is stored came from where `sources.deny` holds: `host` and `identity` as in `Record`."""
        if not self.hosts_denied:
            return False
        place = identity.partition("//")[2].partition("#")[0].partition("?")[0]
        named, _, path = place.partition("/")
        if named.count(":") == 1:  # a port is no part of what the lists name
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
    """Return why `source` may not be fetched, by its URL alone; None where only its addresses can tell."""
    reason = policy.refusal(source)
    if reason is not None:
        return reason
    address = read_literal(source.host)
    if address is not None:
        return judge_address(source.host, address, source.port, policy)
    return None if policy.networks else _url_refusal(source.host, source.port, policy)


def judge_address(host: str, address: Address, port: int, policy: Policy) -> str | None:
    """
    Return why no connection to `address` may be made for `host`; None where one may be made.

    Args:
        host: as in `Source.host`, the name that was resolved, or a literal.
        address: one it resolved to, or the peer of the socket.
        port: the one connected to.
        policy: the operator's.
    """
    reason = refusal(address, policy.networks)
    if reason is not None:
        return reason
    if any(address in network for network in policy.networks):
        return None
    return _url_refusal(host, port, policy)


def is_local_name(host: str) -> bool:
    """
    Return whether `host` is a name that means something else in every network: a single label, or under a local suffix.
    """
    name = host.lower().removesuffix(".")
    if read_literal(name) is not None:
        return False
    _, dot, suffix = name.rpartition(".")
    return not dot or suffix in LOCAL_SUFFIXES


def _url_refusal(host: str, port: int, policy: Policy) -> str | None:
    if is_local_name(host):
        return "host is a local name"
    return None if port in policy.ports else "port is not in fetch.allow_ports"
