"""
Reads a link by provider rules: which image it names, whether it expires, and when.

A rule drops parameters by exact name, and only if the link has everything that the rule requires. All other parameters
stay. Where several rules apply, the engine drops the names of all of them, and the earliest expiry counts.

A parameter that a link gives twice is no member of a signature: the engine cannot know which one the origin reads.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from json import JSONEncoder
from typing import TYPE_CHECKING, Final, NamedTuple

from imgkeep.core.identity.canonical import (
    canonical_escapes,
    decoded,
    read_fields,
    read_hosts,
    read_loose,
    read_nested,
    read_place,
    write_port,
    write_query,
)
from imgkeep.core.identity.expiry import UNKNOWN_END
from imgkeep.core.identity.jwt import read_jwt
from imgkeep.core.records import Key, SourceInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from imgkeep.core.identity.canonical import Field
    from imgkeep.core.identity.expiry import Expiry
    from imgkeep.core.identity.providers import ProviderRules
    from imgkeep.core.identity.rule import Group, Rule, TokenClaims
    from imgkeep.core.records import Source

NESTED_MAX: Final = 2
"""Maximum depth of proxies of proxies that the engine reads; in the identity a deeper link is a plain text."""

NAMED_DEPTH_MAX: Final = 8
"""Maximum depth of links inside links that the engine reads for `places`; from a deeper one it takes possible hosts."""

LINKS_READ_MAX: Final = 8
"""Maximum number of links in one repeated parameter; from the others the engine takes all possible hosts."""

_write_claims: Final = JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Reading:
    """
    The findings of the rules in one link, gathered rule by rule.

    Attributes:
        rules: Rules that apply, in order.
        host: As in `Source.host`.
        place: Canonical host and path, without port.
        fields: The parameters.
        names: Names of the parameters.
        values: Values of the parameters that occur once, as they stand in the link.
        dropped: Names that the identity leaves out.
        becomes: Host and path that replace those of the link in the identity; None: they stay.
        alias: Whether `becomes` is the same server under another name, so that the rules for that host apply too.
        claims: Canonical JSON of the token claims that count, after `#`; this link's first, then the nested one's.
        ends: Expiry of each signature.
        named: Host and path of the links inside this one.
        provider, scheme: The first recognised ones.
        temporary: Value of the first rule that states it.
        enforced: Whether the host answers an invalid permission with an error, by the rules for this host; None: these
            rules leave out no permission.
        enforced_anywhere: The same by the rules for any host.
    """

    __slots__ = (
        "alias", "becomes", "claims", "dropped", "ends", "enforced", "enforced_anywhere", "fields", "host", "named",
        "names", "path", "place", "port", "provider", "rules", "scheme", "temporary", "values",
    )  # fmt: skip

    def __init__(self, source: Source) -> None:
        path, _, query = source.target.partition("?")
        self.path = canonical_escapes(path)
        self.host = source.host
        self.place = source.host + self.path
        self.port = write_port(source)
        self.fields: list[Field] = read_fields(query) if query else []
        self.values: dict[str, str] = {name: value for name, _, value in self.fields}
        self.names = self.values.keys()
        if len(self.values) != len(self.fields):
            counts = Counter(name for name, _, _ in self.fields)
            self.values = {name: value for name, value in self.values.items() if counts[name] == 1}
        self.rules: list[Rule] = []
        self.dropped: set[str] = set()
        self.becomes: str | None = None
        self.alias = False
        self.claims = ""
        self.ends: list[Expiry] = []
        self.named: list[str] = []
        self.provider: str | None = None
        self.scheme: str | None = None
        self.temporary: bool | None = None
        self.enforced: bool | None = None
        self.enforced_anywhere: bool | None = None

    def counted_fields(self) -> list[Field]:
        """Return the parameters that count."""
        dropped = self.dropped
        return [field for field in self.fields if field[0] not in dropped] if dropped else self.fields

    @property
    def places(self) -> tuple[str, ...]:
        """Return the other URLs that the link names, as in `SourceInfo.places`."""
        folded = () if self.becomes is None else (self.becomes,)
        return tuple(dict.fromkeys((*folded, *self.named))) if folded or self.named else ()

    @property
    def checked(self) -> bool | None:
        """
        Return whether the service checks the permission that the identity leaves out; None: it leaves out none.

        A rule for the host counts more than a rule for a scheme that any host may use.
        """
        return self.enforced_anywhere if self.enforced is None else self.enforced

    @property
    def text(self) -> str:
        """Return the identity, without the claims."""
        place = self.place if self.becomes is None else self.becomes
        if self.port:
            host, slash, path = place.partition("/")
            place = f"{host}{self.port}{slash}{path}"
        return f"//{place}{write_query(self.counted_fields())}" if self.fields else f"//{place}"


def identify(source: Source, now: datetime, provider_rules: ProviderRules, *, exact: bool = False) -> SourceInfo:
    """
    Return the image that a source names, whether the link expires, and when.

    Args:
        source: Result of `read_source`.
        now: Present time, aware; the limit of ten years counts from here.
        provider_rules: Rules to read the link by.
        exact: The whole URL is the identity; the rest stays the same.
    """
    reading = read(source, provider_rules)
    identity = source.url if exact else reading.text + reading.claims
    moments = [end.at for end in reading.ends if end.at is not None]
    temporary = any(end.expires_soon(now) for end in reading.ends) or (reading.temporary is True and not moments)
    return SourceInfo(
        identity,
        Key(sha256(identity.encode()).hexdigest()),
        reading.provider,
        temporary,
        min(moments) if moments else None,
        reading.scheme,
        enforced=exact or reading.checked is not False,
        permission=not exact and reading.checked is not None,
        places=reading.places,
        enforced_by_host=not exact and reading.enforced is True,
    )


def read(source: Source, provider_rules: ProviderRules, depth: int = 0) -> Reading:
    """Apply the rules to a source; `depth` is the number of links around it."""
    reading = Reading(source)
    named = provider_rules.find_by_names(reading.names) if reading.fields else ()
    for rule in named:
        if not rule.table.stays:
            _try(rule, reading, provider_rules, depth)
    for rule in provider_rules.find_by_host(source.host):
        _try(rule, reading, provider_rules, depth)
    if reading.alias:
        _try_alias(reading, provider_rules, depth)
    for rule in named:
        if rule.table.stays:  # it only gives an expiry, so the rules for the host come first and name the scheme
            _try(rule, reading, provider_rules, depth)
    if reading.fields:
        for rule in provider_rules.any_value:
            _try_values(rule, reading)
    return reading


def _try_alias(reading: Reading, provider_rules: ProviderRules, depth: int) -> None:
    """Apply the rules for the host of which this one is an alias."""
    assert reading.becomes is not None
    host, _, path = reading.becomes.partition("/")
    own = reading.host, reading.path, reading.place
    reading.host, reading.path, reading.place = host, f"/{path}", reading.becomes
    for rule in provider_rules.find_by_host(host):
        if rule.hosts and rule not in reading.rules:
            _try(rule, reading, provider_rules, depth)
    reading.host, reading.path, reading.place = own


def _try(rule: Rule, reading: Reading, provider_rules: ProviderRules, depth: int) -> None:
    """Apply a rule if the link has everything that the rule requires."""
    values = reading.values
    if not _may_apply(rule, reading):
        return
    group = _find_group(rule.groups, values) if rule.groups else ()
    if group is None:
        return
    places: dict[str, str] = {}
    if rule.location.place is not None:
        match = rule.location.place.fullmatch(reading.place)
        if match is None:
            return
        places = match.groupdict(default="")
    _note(rule, group, reading)
    if rule.expires or group:
        _read_ends(rule, values, places, reading)
    if rule.table.claims is not None:
        _note_claims(rule.table.claims, values, reading)
    if rule.table.nested and depth < NAMED_DEPTH_MAX:
        found = _look_into(rule, places, reading, lambda source: read(source, provider_rules, depth + 1))
        _look_through(rule, places, reading, found if depth < NESTED_MAX else None)
    elif rule.table.nested:
        reading.named += read_hosts("&".join([reading.path, *reading.values.values()]))
    if rule.table.becomes and reading.becomes is None:
        reading.becomes, reading.alias = rule.table.becomes.format_map(places), rule.table.alias


def _may_apply(rule: Rule, reading: Reading) -> bool:
    if not rule.parameters.needs.issubset(reading.names):
        return False
    if rule.location.paths is not None and (
        rule.location.literal not in reading.path or rule.location.paths.match(reading.path) is None
    ):
        return False
    if rule.table.nested:
        _note_links(rule.table.nested, reading)
    return rule.parameters.needs.issubset(reading.values)


def _find_group(groups: tuple[Group, ...], values: Mapping[str, str]) -> Group | None:
    for group in groups:
        if _is_there(group, values):
            return group
    return None


def _is_there(group: Group, values: Mapping[str, str]) -> bool:
    for name, shape in group:
        value = values.get(name)
        if value is None or not shape.fits(decoded(value) if "%" in value else value):
            return False
    return True


def _note(rule: Rule, group: Group, reading: Reading) -> None:
    reading.rules.append(rule)
    reading.dropped.update(rule.parameters.drop)
    if not rule.table.stays:
        reading.dropped.update([name for name, _ in group if name not in rule.parameters.keep])
    if rule.parameters.companions:
        dropped = reading.dropped
        for name, value in reading.values.items():
            shape = None if name in dropped else rule.parameters.companions.get(name)
            if shape is not None and shape.fits(decoded(value) if "%" in value else value):
                dropped.add(name)
    if rule.names_provider and reading.provider is None:
        reading.provider = rule.name
    if reading.temporary is None:
        reading.temporary = rule.table.temporary
    if rule.grants and (group or rule.location.place or not rule.parameters.drop.isdisjoint(reading.values)):
        known = bool(rule.hosts) or (rule.known_at is not None and rule.known_at.match(reading.host) is not None)
        _note_enforced(reading, enforced=bool(rule.table.enforced), known=known)


def _note_enforced(reading: Reading, *, enforced: bool, known: bool) -> None:
    if known:
        reading.enforced = enforced and reading.enforced is not False
    else:
        reading.enforced_anywhere = enforced and reading.enforced_anywhere is not False


def _read_ends(rule: Rule, values: Mapping[str, str], places: Mapping[str, str], reading: Reading) -> None:
    ends = []
    for read_end, names in rule.expires:
        texts = []
        for name in names:
            text = (places[name[1:-1]] or None) if name[0] == "<" else values.get(name)
            if text is None:
                break
            texts.append(decoded(text) if "%" in text else text)
        else:
            end = read_end(*texts)
            if end is not None:
                ends.append(end)
    _note_ends(rule, ends, reading)


def _note_ends(rule: Rule, ends: list[Expiry], reading: Reading) -> None:
    if len(ends) > 1:
        ends = [min(named)] if (named := [end for end in ends if end.at is not None]) else ends[:1]
    if ends:
        reading.ends += ends
    elif rule.groups:
        reading.ends.append(UNKNOWN_END)
    else:
        return
    if reading.scheme is None:
        reading.scheme = rule.name


def _try_values(rule: Rule, reading: Reading) -> None:
    """Apply a rule for values under any name to the parameters that no other rule has dropped."""
    for name, _, value in reading.counted_fields():
        assert rule.any_value is not None
        if name in reading.values and rule.any_value.fits(value):
            if rule not in reading.rules:
                reading.rules.append(rule)
            ends = [end for read_end, _ in rule.expires if (end := read_end(value)) is not None]
            _note_ends(rule, ends, reading)


def _note_claims(claims: TokenClaims, values: Mapping[str, str], reading: Reading) -> None:
    payload = read_jwt(decoded(values.get(claims.of, ""))) or {}
    counted = {name: value for name, value in payload.items() if claims.keeps(name)}
    if counted:
        reading.claims += "#" + _write_claims(counted)


class _Inner(NamedTuple):
    """A link inside a link: its reading, and the function that writes a URL in its place."""

    reading: Reading
    write: Callable[[str], str]


def _look_into(
    rule: Rule, places: Mapping[str, str], reading: Reading, read_inner: Callable[[Source], Reading]
) -> _Inner | None:
    """Read the link inside this one, and note all other URLs that this one names."""
    in_place = rule.table.nested.startswith("<")
    text = places[rule.table.nested[1:-1]] if in_place else reading.values[rule.table.nested]
    found = read_nested(text)
    if in_place and (place := read_place(text)) is not None:
        reading.named.append(place)
    source = read_loose(text) if found is None else found[0]
    if source is None:
        return None
    inner = read_inner(source)
    reading.named += [inner.place, *inner.places]
    return None if found is None else _Inner(inner, found[1])


def _note_links(nested: str, reading: Reading) -> None:
    """
    Note all URLs that a proxy may fetch for this link: in each occurrence of the parameter with the link, and in the
    other parameters, because some proxies take a default image there.
    """
    texts = [value for name, _, value in reading.fields if name == nested]
    for text in texts[:LINKS_READ_MAX]:
        place = read_place(text)
        if place is not None:
            reading.named.append(place)
    if len(reading.fields) > min(len(texts), LINKS_READ_MAX):
        reading.named += read_hosts("&".join([value for _, _, value in reading.fields]))


def _look_through(rule: Rule, places: dict[str, str], reading: Reading, found: _Inner | None) -> None:
    """Replace the link inside this one by its canonical form, and take over its findings."""
    if found is None:
        return
    nested = rule.table.nested
    inner = found.reading
    text = found.write(f"https:{inner.text}")
    if nested.startswith("<"):
        places[nested[1:-1]] = text
    else:
        reading.fields = [(nested, "=", text) if field[0] == nested else field for field in reading.fields]
    reading.claims += inner.claims and f"#{inner.claims}"
    reading.ends += inner.ends
    reading.provider = reading.provider or inner.provider
    reading.scheme = reading.scheme or inner.scheme
    reading.temporary = inner.temporary if reading.temporary is None else reading.temporary
    if inner.checked is not None:
        # A proxy may answer with an image of its own when the origin refuses the inner link. For any other proxy the
        # finding about the inner link holds, which may come from the shape of its signature alone.
        enforced = inner.checked and bool(rule.table.enforced)
        _note_enforced(reading, enforced=enforced, known=bool(rule.hosts) and inner.enforced is not None)
