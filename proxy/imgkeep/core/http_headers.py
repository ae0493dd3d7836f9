"""
Reading and writing the header fields that we act on (RFC 9110, 9211, 8586, 7239, 6266).

Rules: a field that is malformed is as good as absent where the RFC says so; nothing raises on any input; ETags keep
their quotes; positions count from zero and ends are exclusive.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.ip_ranges import unmap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from imgkeep.core.ip_ranges import Address, Network

CDN_ID: Final = "imgkeep"
"""Our name in `CDN-Loop` (RFC 8586) and `Via`, the same for every node: loops through other nodes are loops too."""

FORWARDED: Final = "forwarded"
"""RFC 7239."""
FORWARDED_HEADERS: Final = (
    "x-forwarded-for",
    FORWARDED,
    "x-real-ip",  # nginx, Traefik
    "x-client-ip",
    "true-client-ip",  # Akamai
    "cf-connecting-ip",  # Cloudflare
    "fastly-client-ip",
    "fly-client-ip",
    "x-azure-clientip",  # Azure Front Door
    "x-envoy-external-address",
)
"""The fields by which proxies tell the address of their client. All but `Forwarded` are lists of addresses."""
HOPS_MAX: Final = 32
"""Maximum number of trusted proxies between the client and us; more addresses than these are not read."""

RETRY_AFTER_MAX_S: Final = 3600
"""We remember no longer than this what an origin asked for: it may have meant a different client."""

_ETAG: Final = re.compile(r'[\s,]*(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')
# RFC 7239, 6, and what proxies write into other fields: ports may follow, and IPv6 may stand without brackets.
_NODE: Final = re.compile(
    r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15})(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})"
)
_QUOTED: Final = re.compile(r'"([^"\\]*)"')
# RFC 3986, 3.2.2. A name may not be empty in http (RFC 9110, 4.2.1).
_HOST: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|((?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){1,255}))(?::[0-9]{0,5})?"
)
_ORIGIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(.+)")


class Fields(Protocol):
    """Header fields, of which a name may come on several lines; names are compared without case."""

    def getall(self, key: str, default: list[str], /) -> list[str]: ...


def read_host(value: str) -> str | None:
    """Return the name or address in a `Host` (RFC 9112, 3.2), in small letters, without its port; `None`: malformed."""
    match = _HOST.fullmatch(value)
    return (match[1] or match[2]).lower() if match else None


def read_origin(value: str) -> str | None:
    """Return the host of an `Origin` as `read_host` does; `None`: it names none (`null`) or is malformed."""
    match = _ORIGIN.fullmatch(value)
    return read_host(match[1]) if match else None


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Compare weakly, as `If-None-Match` does (RFC 9110, 13.1.2): `*`, lists, `W/`."""
    if if_none_match.strip() == "*":
        return True
    position = 0
    while match := _ETAG.match(if_none_match, position):
        if match[1] == etag:
            return True
        position = match.end()
    return False


def read_retry_after(value: str | None, now: datetime) -> int | None:
    """Read `Retry-After` (RFC 9110, 10.2.3) as seconds from now, 0 to `RETRY_AFTER_MAX_S`; `None` if unreadable."""
    if value is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return min(int(value), RETRY_AFTER_MAX_S)
    try:
        seconds = (parsedate_to_datetime(value) - now).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return int(min(max(seconds, 0), RETRY_AFTER_MAX_S))


def passed_through_us(headers: Fields) -> bool:
    """Return whether a node of ours sent this request: `CDN-Loop` (RFC 8586), or `Via` where something removed that."""
    nodes = [item.split(";")[0].strip() for item in _members(headers, "CDN-Loop")]
    nodes += [word for item in _members(headers, "Via") for word in item.split()[1:2]]
    return any(node.lower() == CDN_ID for node in nodes)


def cache_status(*parameters: str) -> str:
    """Return our member of `Cache-Status` (RFC 9211)."""
    return "; ".join((CDN_ID, *parameters))


def client_address(peer: str, headers: Fields, trusted: Sequence[Network], header: str) -> Address | str:
    """
    Return the address of the client: the peer's or, where a trusted proxy is the peer, the nearest one in `header` that
    is no trusted proxy's.

    `header` is one of `FORWARDED_HEADERS`; the others say nothing, nor does any where `header` is empty or the peer is
    not trusted. A value that is malformed ends the walk: the nearest trusted address counts. A peer without an address
    is returned as it is called.
    """
    try:
        address = _parse_address(peer)
    except ValueError:
        return peer
    chain: list[str] | None = None
    while any(address in network for network in trusted):
        if chain is None:
            lines = ",".join(headers.getall(header, [])) if header else ""
            chain = lines.rsplit(",", HOPS_MAX)
        nearer = _read_node(_forwarded_for(chain.pop()) if header == FORWARDED else chain.pop()) if chain else None
        if nearer is None:
            break
        address = nearer
    return address


def _members(headers: Fields, name: str) -> list[str]:
    """Return the members of a list field, from all its lines (RFC 9110, 5.3)."""
    return ",".join(headers.getall(name, [])).split(",")


def _forwarded_for(element: str) -> str:
    """
    Return the value of `for` in an element of `Forwarded` (RFC 7239, 4); empty if there is not exactly one.

    Commas and semicolons in quotes are not read: no address holds one.
    """
    pairs = (pair.partition("=") for pair in element.split(";"))
    values = [value.strip(" \t") for name, _, value in pairs if name.strip(" \t").lower() == "for"]
    if len(values) != 1:
        return ""
    match = _QUOTED.fullmatch(values[0])
    return values[0] if match is None else match[1]


# A few clients send most requests; the caches store no failure, so no client fills them with nonsense.
@lru_cache(maxsize=4096)
def _parse_address(text: str) -> Address:
    return unmap(ip_address(text))


@lru_cache(maxsize=4096)
def _parse_node(text: str) -> Address:
    match = _NODE.fullmatch(text.strip(" \t"))
    if match is None:
        raise ValueError(text)
    return _parse_address(match[1] or match[2] or match[3])


def _read_node(text: str) -> Address | None:
    """Read an address with or without a port, an IPv6 one with or without brackets; `None`: it is none."""
    try:
        return _parse_node(text)
    except ValueError:
        return None
