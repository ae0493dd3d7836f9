"""
The provider rules, with an index of those that can apply to a link.

The index keeps the number of rules per link small. It finds a rule by its hosts, or by the name of a parameter that the
rule requires. The engine tries the few rules with neither on every link.
"""

from __future__ import annotations

import re
import tomllib
from fnmatch import translate
from functools import cache, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.identity.canonical import canonical_escapes
from imgkeep.core.identity.expired_messages import read_endings
from imgkeep.core.identity.rule import read_rule, read_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from imgkeep.core.identity.expired_messages import ExpiredMessages
    from imgkeep.core.identity.rule import Rule, Shape
    from imgkeep.core.records import Source

HOSTS_REMEMBERED: Final = 4096
"""Maximum number of hosts in the cache of rules by host; a miss costs some thirty microseconds."""


class ProviderRules:
    """
    An immutable ordered set of rules with an index.

    Attributes:
        rules: All rules; the operator's come first.
        shapes: Shapes that `signed_by` may name.
        known_hosts: Globs, as in `sources.allow`, of hosts on which services store what they made for their customers.
            Strangers can neither register a name under these hosts nor upload files to them.
        shared_hosts: Globs of the providers' hosts where strangers can do so.
        endings: Error texts by which services say that a link has expired.
    """

    def __init__(self, rules: Iterable[Rule], shapes: Mapping[str, Shape], endings: ExpiredMessages) -> None:
        self.rules = tuple(rules)
        self.shapes = shapes
        self.endings = endings
        gone = dict.fromkeys(pattern for rule in self.rules for pattern in rule.table.gone)
        self._gone = re.compile("|".join(map(translate, gone)) or "(?!)", re.IGNORECASE)
        self.known_hosts = tuple(
            dict.fromkeys(glob for rule in self.rules if rule.names_provider for glob in rule.table.hosts)
        )
        self.shared_hosts = tuple(
            dict.fromkeys(glob for rule in self.rules if rule.names_provider for glob in rule.table.shared_hosts)
        )
        self.any_value = tuple(rule for rule in self.rules if rule.any_value)
        self._everywhere = [rule for rule in self.rules if not (rule.hosts or rule.parameters.names or rule.any_value)]
        self._by_name: dict[str, list[Rule]] = {}
        for rule in self.rules:
            for name in () if rule.hosts else rule.parameters.names:
                self._by_name.setdefault(name, []).append(rule)
        self._names = frozenset(self._by_name)
        self._by_suffix: dict[str, list[tuple[str, Rule]]] = {}
        for rule in self.rules:
            for glob in rule.hosts:
                self._by_suffix.setdefault(_suffix(glob), []).append((glob, rule))
        self.find_by_host = lru_cache(HOSTS_REMEMBERED)(self._find_by_host)

    def resolve(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Return the patterns of `sources.allow` with the words `known` and `shared` replaced by their hosts."""
        groups = {"known": self.known_hosts, "shared": self.shared_hosts}
        return tuple(host for pattern in patterns for host in groups.get(pattern, (pattern,)))

    def is_gone(self, source: Source) -> bool:
        """Return whether `source` is a provider's placeholder for removed images."""
        path = canonical_escapes(source.target.partition("?")[0])
        return self._gone.match(source.host + path) is not None

    def find_by_names(self, names: Iterable[str]) -> list[Rule]:
        """Return the rules for any host that require one of these parameters."""
        found = self._names.intersection(names)
        if not found:
            return []
        rules = {rule.order: rule for name in found for rule in self._by_name[name]}
        return [rules[order] for order in sorted(rules)]

    def _find_by_host(self, host: str) -> tuple[Rule, ...]:
        """Return the rules to try on every link of `host`."""
        found = {
            rule.order: rule for glob, rule in self._by_suffix.get(_suffix(host), ()) if _compiled(glob).match(host)
        }
        found |= {rule.order: rule for rule in self._everywhere}
        return tuple(found[order] for order in sorted(found))

    def __repr__(self) -> str:
        return f"<ProviderRules of {len(self.rules)} rules>"


@cache  # for all sets of rules: as many entries as the rules have globs
def _compiled(glob: str) -> re.Pattern[str]:
    """Compile the glob of a host with the first link of its domain: compiling all of them takes a fifth of a start."""
    return re.compile(translate(glob))


def _suffix(host: str) -> str:
    return ".".join(host.rsplit(".", 2)[-2:])


def read_tables(tables: Mapping[str, Any]) -> ProviderRules:
    """
    Read provider rules from their parsed file.

    Raises:
        ValueError: A shape or a rule is invalid.
    """
    shapes = read_shapes(tables["shapes"])
    schemes, providers = tables["schemes"], tables["providers"]
    rules = [
        read_rule(table, order, shapes, is_scheme=order < len(schemes))
        for order, table in enumerate(schemes + providers)
    ]
    return ProviderRules(rules, shapes, read_endings(tables["endings"]))


def read_built_in() -> ProviderRules:
    """Read the provider rules that come with imgkeep."""
    return read_tables(tomllib.loads(resources.files(__package__).joinpath("providers.toml").read_text("utf-8")))
