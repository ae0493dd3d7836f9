"""
A policy as `GET /api/policy` tells it, and read from there: for programs that rewrite pages and ask what is refused.

Rules:
- The words of `sources.allow` are written out, because a reader may know other providers.
- What is read came over a network: it is bounded, and anything else than a policy is an error.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.policy import LOCAL_SUFFIXES, Policy
from imgkeep.core.source_url import SOURCE_CHARS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.core.records import Source

ITEMS_MAX: Final = 20_000
"""Maximum number of entries in one list that is read: many times what an operator writes."""


def describe_policy(policy: Policy, *, signature: str) -> dict[str, Any]:
    """Return the facts of a policy; `signature` is `security.signature`."""
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
    Return what pages of everyone are told: hosts that would be fetched by links that are not signed.

    What `sources.deny` says is left out, and so is each allowed host that is denied. Of `fetch.allow_networks` is told
    whether there are any: then names and ports may be allowed that are none elsewhere.
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
    Return the policy that facts tell, and whether links have to be signed.

    Args:
        facts: As `describe_policy` gives them.
        names: As in `Policy`.

    Raises:
        ValueError: They are something else.
    """
    policy = Policy(
        hosts_allowed=tuple(_items(facts, "allow", str)),
        hosts_denied=tuple(_items(facts, "deny", str)),
        ports=frozenset(_items(facts, "ports", int)),
        networks=tuple(map(ip_network, _items(facts, "networks", str))),
        names=names,
    )
    return policy, facts.get("signature") != "off"


def _items(facts: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    items = facts.get(name)
    if not isinstance(items, list) or len(items) > ITEMS_MAX or not all(isinstance(item, kind) for item in items):
        raise ValueError(f"{name} is not told")
    return items
