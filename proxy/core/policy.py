"""
Judges whether a source may be fetched: by its URL alone, and again for every address that is connected to.

Rules:
- `judge` runs before anything is asked of the network, `judge_address` for every resolved address and every socket, on
  every redirect hop. The second has the final say; the first never allows what the second would not.
- A reason is short, constant and fit for clients: it names a setting or a kind, never the host.
- Deny wins over allow. The host lists hold for literals, too, and for what `fetch.allow_networks` allows.
- With `networks` an operator may mean a local name or another port, which only its addresses tell: so `judge` lets
  names pass there, and `judge_address` refuses whatever is not inside them.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import idna

from proxy.core.address import read_literal, refusal

if TYPE_CHECKING:
    from proxy.core.address import Address, Network
    from proxy.core.model import Source

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

_GLOB: Final = re.compile(r"(?:[a-z0-9_.:*?-]|\[!?[a-z0-9_.:-]+\])+")
_BRACKETED: Final = re.compile(r"\[([^\[\]:]*:[^\[\]]*)\]")
"""An IPv6 address as URLs have it; as one of some characters it could match no host."""


class Globs:
    """Host globs in one pattern: `*` any characters, dots too; `?` one; `[abc]` one of these, `[!abc]` of others."""

    __slots__ = ("_pattern",)

    def __init__(self, globs: tuple[str, ...]) -> None:
        self._pattern = re.compile("|".join(map(_translated, globs)) or "(?!)")

    def match(self, host: str) -> bool:
        return self._pattern.match(host) is not None


def _translated(glob: str) -> str:
    labels = glob.lower().removesuffix(".").split(".")
    try:
        ascii_labels = [
            label if label.isascii() else idna.encode(label, uts46=True, std3_rules=True).decode("ascii")
            for label in labels
        ]
    except UnicodeError:
        raise ValueError(f"{glob!r} can match no host: write international labels whole or as xn--") from None
    text = ".".join(ascii_labels)
    if (address := _BRACKETED.fullmatch(text)) is not None:
        text = address[1]
    if _GLOB.fullmatch(text) is None:
        raise ValueError(f"{glob!r} can match no host: it is neither a name nor an address, with * for any characters")
    return fnmatch.translate(text)


@dataclass(frozen=True, slots=True)
class Policy:
    """
    What the operator lets us fetch.

    Attributes:
        hosts_allowed: globs of `sources.allow`; None: any host; empty: none.
        hosts_denied: globs of `sources.deny`.
        ports: `fetch.allow_ports`.
        networks: `fetch.allow_networks`: allowed whatever they are, under any name and port.

    Raises:
        ValueError: a glob can match no host; the message quotes it and leaves the setting's name to the caller.
    """

    hosts_allowed: tuple[str, ...] | None
    hosts_denied: tuple[str, ...]
    ports: frozenset[int]
    networks: tuple[Network, ...]
    _allowed: Globs = field(init=False, repr=False, compare=False)
    _denied: Globs = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made once: a pattern of some hundred providers is costly to make, or to look up by its globs.
        allowed = ("*",) if self.hosts_allowed is None else self.hosts_allowed
        object.__setattr__(self, "_allowed", Globs(allowed))
        object.__setattr__(self, "_denied", Globs(self.hosts_denied))

    def denies(self, host: str) -> bool:
        """Whether `sources.deny` names `host` (as in `Source.host`): what is kept from there is not shown either."""
        return self._denied.match(host)

    def host_refusal(self, host: str) -> str | None:
        """Why the host lists refuse `host` (as in `Source.host`); None where they do not."""
        if self._denied.match(host):
            return "host is in sources.deny"
        return None if self._allowed.match(host) else "host is not in sources.allow"


def judge(source: Source, policy: Policy) -> str | None:
    """Why `source` may not be fetched, by its URL alone; None where only its addresses can tell."""
    reason = policy.host_refusal(source.host)
    if reason is not None:
        return reason
    address = read_literal(source.host)
    if address is not None:
        return judge_address(source.host, address, source.port, policy)
    return None if policy.networks else _url_refusal(source.host, source.port, policy)


def judge_address(host: str, address: Address, port: int, policy: Policy) -> str | None:
    """
    Why no connection to `address` may be made for `host`; None where one may be made.

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
    """Whether `host` is a name that means something else in every network: a single label, or under a local suffix."""
    name = host.lower().removesuffix(".")
    if read_literal(name) is not None:
        return False
    _, dot, suffix = name.rpartition(".")
    return not dot or suffix in LOCAL_SUFFIXES


def _url_refusal(host: str, port: int, policy: Policy) -> str | None:
    if is_local_name(host):
        return "host is a local name"
    return None if port in policy.ports else "port is not in fetch.allow_ports"
