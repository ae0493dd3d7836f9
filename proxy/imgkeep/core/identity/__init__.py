"""
The identity of a link: the image that it names, and whether and when the link expires.

Rules:
- Two images never share a key: a missed merge costs one fetch, a collision shows a wrong image.
- The identity names the image for ever, so it and the key derived from it are public and versioned.
- Without a rule for its host and without a complete signature, a link is permanent and every parameter counts.
- Knowledge about services is data, `providers.toml`; the engine knows no service.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity import engine
from imgkeep.core.identity.providers import ProviderRules, read_built_in
from imgkeep.core.identity.rule import inherit_scheme, read_rule
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from imgkeep.core.identity.rule import Rule
    from imgkeep.core.records import Source, SourceInfo

__all__ = [
    "BUILT_IN",
    "KEY_VERSION",
    "ProviderRules",
    "identify",
    "identify_url",
    "places_of",
    "read_provider_rules",
    "rules_for",
]

KEY_VERSION: Final = 1
"""
Version of the rules. It goes up when a rule changes an existing identity; each record names the version that made it.
"""

BUILT_IN: Final = read_built_in()
"""Provider rules that come with imgkeep."""


def read_provider_rules(providers: Sequence[Mapping[str, object]], base: ProviderRules = BUILT_IN) -> ProviderRules:
    """
    Return `base` with a user's providers before its own; see docs/identity.md for their form.

    Raises:
        ValueError: A provider is invalid, or contradicts its own examples; the message names provider and field.
    """
    schemes = [rule for rule in base.rules if not rule.names_provider]
    own = [read_rule(inherit_scheme(table, schemes), order, base.shapes) for order, table in enumerate(providers)]
    rules = own + [replace(rule, order=rule.order + len(own)) for rule in base.rules]
    provider_rules = ProviderRules(rules, base.shapes, base.endings)
    for rule in own:
        _check_examples(rule, provider_rules)
    return provider_rules


def _check_examples(rule: Rule, provider_rules: ProviderRules) -> None:
    for field, urls in (("examples", rule.table.examples), ("counterexamples", rule.table.counterexamples)):
        for number, url in enumerate(urls, 1):
            try:
                applies = rule in rules_for(read_source(url), provider_rules)
            except SourceRejected as error:
                raise ValueError(f"provider {rule.name!r}: {field}: number {number}: {error}") from None
            if applies != (field == "examples"):
                verb = "applies" if applies else "does not apply"
                raise ValueError(f"provider {rule.name!r}: {field}: the rule {verb} to number {number}")


def identify(
    source: Source, now: datetime, provider_rules: ProviderRules = BUILT_IN, *, exact: bool = False
) -> SourceInfo:
    """
    Return the image that a source names, whether the link expires, and when.

    Args:
        source: The link.
        now: Present time; the engine treats a link that expires in ten years or later as permanent.
        provider_rules: Rules to read the link by.
        exact: `sources.identity = "exact"`: the whole URL is the identity. Everything else stays the same.
    """
    return engine.identify(source, now, provider_rules, exact=exact)


def identify_url(
    url: str, now: datetime, provider_rules: ProviderRules = BUILT_IN, *, exact: bool = False
) -> SourceInfo:
    """
    Read a URL and identify it.

    Raises:
        SourceRejected: See `read_source`. No text raises anything else.
    """
    return engine.identify(read_source(url), now, provider_rules, exact=exact)


def places_of(source: Source, provider_rules: ProviderRules = BUILT_IN) -> tuple[str, ...]:
    """Return the other URLs that a source names, as in `SourceInfo.places`."""
    return engine.read(source, provider_rules).places


def rules_for(source: Source, provider_rules: ProviderRules = BUILT_IN) -> list[Rule]:
    """Return the rules that apply to a source."""
    return engine.read(source, provider_rules).rules
