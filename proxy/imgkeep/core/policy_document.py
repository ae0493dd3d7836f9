"""
The JSON form of a policy in the response to `GET /api/policy`, for programs that rewrite pages.

Rules:
- The document replaces the words of `sources.allow` by their hosts, because its reader may have other provider rules.
- A reader gets the document from a network: it limits the size, and refuses anything but a policy.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.derived.derive_policy import WIDTHS_MAX
from imgkeep.core.derived.options import SIDE_MAX
from imgkeep.core.policy import LOCAL_SUFFIXES, Policy
from imgkeep.core.source_url import SOURCE_CHARS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.core.records import Source

ITEMS_MAX: Final = 20_000
"""Maximum number of entries in one list of a document: many times what an operator writes."""


def describe_policy(policy: Policy, *, signature: str) -> dict[str, Any]:
    """Return the document of a policy; `signature` is `security.signature`."""
    allowed = policy.hosts_allowed
    return {
        "allow": ["*"] if allowed is None or "*" in allowed else list(dict.fromkeys(allowed)),
        "deny": list(policy.hosts_denied),
        "ports": sorted(policy.ports),
        "networks": [str(network) for network in policy.networks],
        "schemes": ["http", "https"],
        "signature": signature,
        "url_chars_max": SOURCE_CHARS_MAX,
    }


def facts_for_pages(policy: Policy, *, signature: str) -> dict[str, Any]:
    """
    Return the public part of a policy, for scripts in any page: the hosts that imgkeep fetches without a signature.

    It leaves out `sources.deny` and each allowed host that `sources.deny` refuses. Of `fetch.allow_networks` it only
    says whether there are any: then the policy may allow local names and other ports.
    """
    allowed = describe_policy(policy, signature=signature)["allow"] if signature == "off" else []
    return {
        "allow": [place for place in allowed if place not in policy.hosts_denied and not policy.denies(place)],
        "ports": sorted(policy.ports),
        "local": sorted(LOCAL_SUFFIXES),
        "inside": bool(policy.networks),
    }


def read_policy(facts: Mapping[str, Any], names: Callable[[Source], tuple[str, ...]]) -> tuple[Policy, bool]:
    """
    Return the policy of a document, and whether links must be signed.

    Args:
        facts: Document as from `describe_policy`.
        names: As in `Policy`.

    Raises:
        ValueError: The document has another form.
    """
    policy = Policy(
        hosts_allowed=tuple(_items(facts, "allow", str)),
        hosts_denied=tuple(_items(facts, "deny", str)),
        ports=frozenset(_items(facts, "ports", int)),
        networks=tuple(map(ip_network, _items(facts, "networks", str))),
        names=names,
    )
    return policy, facts.get("signature") != "off"


def read_ladder(facts: Mapping[str, Any]) -> tuple[int, ...]:
    """Return `derive.widths` of a document; empty: it has none, as that of an imgkeep without derived pictures."""
    widths = facts.get("widths")
    if not isinstance(widths, list) or len(widths) > WIDTHS_MAX:
        return ()
    return tuple(widths) if all(isinstance(width, int) and 1 <= width <= SIDE_MAX for width in widths) else ()


def _items(facts: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    items = facts.get(name)
    if not isinstance(items, list) or len(items) > ITEMS_MAX or not all(isinstance(item, kind) for item in items):
        raise ValueError(f"{name} is missing or no list of at most {ITEMS_MAX} entries")
    return items
