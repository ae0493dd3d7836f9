"""
One provider rule: the table that people write, and the checked and compiled form for the engine.

Every message of an error names the rule and the field.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from imgkeep.core.identity.expiry import FORMS, later
from imgkeep.core.identity.jwt import read_jwt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from imgkeep.core.identity.expiry import Expiry

ANY_NAME: Final = "*"
"""Placeholder in `signed_by` for a parameter of any name."""

Group = tuple[tuple[str, "Shape"], ...]
Text = Annotated[str, msgspec.Meta(min_length=1)]

_GLOB: Final = re.compile(r"(?:(?:[a-z0-9*_-]+\.)*[a-z0-9_-]+\.)?[a-z0-9_-]+", re.ASCII)
_PATH_GLOB: Final = re.compile(r"[/*][^?#\[\]]*")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_LIFETIME: Final = re.compile(r"\+([0-9]{1,9})", re.ASCII)


class TokenClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The claims of the token in parameter `of` that name the image: those in `keep`, or all but those in `drop`."""

    of: Text
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    def keeps(self, name: str) -> bool:
        return name in self.keep if self.keep else name not in self.drop


class RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    A rule as people write it: one field for each name of the table (docs/identity.md). Only msgspec makes one.
    """

    name: Text
    like: str = ""
    source: str = ""
    date: dt.date | None = None
    hosts: tuple[Text, ...] = ()
    shared_hosts: tuple[Text, ...] = ()
    known_at: tuple[Text, ...] = ()
    paths: tuple[Text, ...] = ()
    place: str = ""
    becomes: str = ""
    signed_by: dict[str, str] | list[dict[str, str]] = {}
    any_case: bool = False
    stays: bool = False
    permission: bool | None = None
    enforced: bool | None = None
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    companions: dict[str, str] = {}
    claims: TokenClaims | None = None
    expires: tuple[Text, ...] = ()
    nested: str = ""
    temporary: bool | None = None
    alias: bool = False
    gone: tuple[Text, ...] = ()
    examples: tuple[Text, ...] = ()
    counterexamples: tuple[Text, ...] = ()


NOT_INHERITED: Final = frozenset(
    {"name", "like", "source", "date", "hosts", "shared_hosts", "known_at", "gone", "examples", "counterexamples"}
)
"""Fields that `like` does not copy: they say whose rule it is and where it applies."""


class Shape:
    """A pattern that a decoded value must match as a whole."""

    __slots__ = ("_fullmatch", "_is_jwt")

    def __init__(self, pattern: re.Pattern[str], *, is_jwt: bool = False) -> None:
        self._fullmatch = pattern.fullmatch
        self._is_jwt = is_jwt

    def fits(self, value: str) -> bool:
        return self._fullmatch(value) is not None and (not self._is_jwt or read_jwt(value) is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Location:
    """
    The paths on its hosts to which a rule applies.

    Attributes:
        literal: A text in every path that `paths` matches; the engine searches for it before it tries the pattern.
        paths: Pattern for the whole path.
        place: Pattern for host and path as a whole; `becomes`, `expires` and `nested` use its groups.
    """

    literal: str
    paths: re.Pattern[str] | None
    place: re.Pattern[str] | None


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """
    The names in a query that a rule reads.

    Attributes:
        names: Every link to which the rule applies has one of these names; empty: the rule requires none.
        needs: Names that the link must have, for any group.
        keep: Names among these that stay in the identity.
        drop: Names that the identity leaves out when the rule applies, besides those of the matching group.
        companions: More names to leave out, each if it occurs once in the link with a value of this shape.
    """

    names: frozenset[str]
    needs: frozenset[str]
    keep: frozenset[str]
    drop: frozenset[str]
    companions: Mapping[str, Shape]


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """
    A compiled rule.

    Attributes:
        table: The table that people wrote.
        order: Its position among the provider rules.
        names_provider: Whether its name is a provider's, not a scheme's.
        location: The paths on its hosts to which it applies.
        groups: Members of a signature and their shapes; a link must have all members of one group.
        any_value: Shape that a value under any name must have.
        parameters: The names in a query that it reads.
        expires: Functions that read the expiry, each with its fields; `<x>` is a group of `place`.
        grants: Whether the identity leaves out a permission: a signature, or a path or `drop` with `permission`.
        known_at: Pattern for the hosts that are known to sign like this. A stranger can write a signature of any shape,
            but cannot choose which server is behind these hosts.
    """

    table: RuleTable
    order: int
    names_provider: bool
    location: Location
    groups: tuple[Group, ...]
    any_value: Shape | None
    parameters: Parameters
    expires: tuple[tuple[Callable[..., Expiry | None], tuple[str, ...]], ...]
    grants: bool
    known_at: re.Pattern[str] | None

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the globs of all hosts to which the rule applies; none: any host."""
        return self.table.hosts + self.table.shared_hosts


def read_shapes(patterns: Mapping[str, str]) -> dict[str, Shape]:
    """
    Compile shapes by name.

    Raises:
        ValueError: A shape is no regular expression.
    """
    return {
        name: Shape(_compiled(pattern, f"shapes: {name}"), is_jwt=name == "jwt") for name, pattern in patterns.items()
    }


def read_rule(table: Mapping[str, object], order: int, shapes: Mapping[str, Shape], *, is_scheme: bool = False) -> Rule:
    """
    Check and compile a rule.

    Raises:
        ValueError: The rule is invalid; the message names the rule and the field.
    """
    label = f"{'scheme' if is_scheme else 'provider'} {table.get('name', f'number {order + 1}')!r}"
    try:
        read = msgspec.convert(table, RuleTable)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at ")
        field = re.sub(r"^\$\.?|\[(\.\.\.|\d+)\]", "", path.strip("`"))
        raise ValueError(f"{label}: {field}{': ' if field else ''}{what}") from None
    try:
        return _compile(read, order, shapes, is_scheme=is_scheme)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def inherit_scheme(table: Mapping[str, object], schemes: Iterable[Rule]) -> Mapping[str, object]:
    """
    Return the table with missing fields copied from the scheme that its `like` names.

    Raises:
        ValueError: There is no such scheme; the message names the provider and the field.
    """
    like = table.get("like", "")
    if like == "":
        return table
    found = next((rule.table for rule in schemes if rule.name == like), None)
    if found is None:
        raise ValueError(
            f"provider {table.get('name')!r}: like: there is no scheme {like!r}, but "
            + ", ".join(repr(rule.name) for rule in schemes)
        )
    fields = {name: value for name, value in msgspec.to_builtins(found).items() if name not in NOT_INHERITED}
    return {**fields, **table}


def _compile(table: RuleTable, order: int, shapes: Mapping[str, Shape], *, is_scheme: bool) -> Rule:
    if not is_scheme and not table.hosts + table.shared_hosts:
        raise ValueError("hosts: a provider needs at least one")
    for glob in table.hosts + table.shared_hosts + table.known_at:
        if _GLOB.fullmatch(glob) is None:
            raise ValueError(f"hosts: {glob!r} is no name in lower case, or has a `*` in its last two labels")
    for glob in table.paths:
        if _PATH_GLOB.fullmatch(glob) is None:
            raise ValueError(f"paths: {glob!r} does not begin with `/` or `*`, or holds one of ?#[]")
    for pattern in table.gone:
        host, slash, path = pattern.partition("/")
        if _GLOB.fullmatch(host) is None or _PATH_GLOB.fullmatch(slash + path) is None or path in {"", "*"}:
            raise ValueError(
                f"gone: {pattern!r} is no host and path, as img.example.com/removed*.png, without the query"
            )
    if table.alias and not (table.becomes and table.permission is False):
        raise ValueError("alias: goes with becomes and permission = false")
    place = _compiled(table.place, "place") if table.place else None
    known = frozenset(place.groupindex) if place else frozenset[str]()
    _check_places(table, known)
    _check_permission(table)
    groups = _read_groups(table, shapes)
    any_value = next((shape for group in groups for name, shape in group if name == ANY_NAME), None)
    groups = () if any_value else groups
    return Rule(
        table=table,
        order=order,
        names_provider=not is_scheme,
        location=Location(
            literal=max(table.paths[0].split("*"), key=len) if len(table.paths) == 1 else "",
            paths=re.compile("|".join(map(fnmatch.translate, table.paths))) if table.paths else None,
            place=place,
        ),
        groups=groups,
        any_value=any_value,
        parameters=_read_parameters(table, groups, shapes),
        expires=tuple(_read_expires(text, known) for text in _spellings(table.expires, any_case=table.any_case)),
        grants=_grants(table),
        known_at=re.compile("|".join(map(fnmatch.translate, table.known_at))) if table.known_at else None,
    )


def _read_parameters(table: RuleTable, groups: tuple[Group, ...], shapes: Mapping[str, Shape]) -> Parameters:
    members = [frozenset(name for name, _ in group) for group in groups]
    return Parameters(
        names=frozenset(group[0][0] for group in groups) or frozenset(table.keep[:1]),
        needs=frozenset(table.keep).union(frozenset[str].intersection(*members) if members else ()),
        keep=frozenset(table.keep),
        drop=frozenset(_spellings(table.drop, any_case=table.any_case)) - set(table.keep),
        companions={
            name: shape
            for written, shape in ((name, _read_shape(text, shapes)) for name, text in table.companions.items())
            for name in dict.fromkeys(_spellings((written,), any_case=table.any_case))
            if name not in table.keep
        },
    )


def _grants(table: RuleTable) -> bool:
    if table.signed_by:
        return not table.stays
    # Without `permission`, a path that `becomes` replaces may have contained a signature.
    return bool(table.becomes) if table.permission is None else table.permission


def _check_places(table: RuleTable, known: frozenset[str]) -> None:
    """Check that `place` has the groups that other fields use, and that `signed_by` has the parameter of `claims`."""
    for name in _PLACEHOLDER.findall(table.becomes):
        if name not in known:
            raise ValueError(f"becomes: {{{name}}} is not a group of place")
    if table.becomes and not _PLACEHOLDER.search(table.becomes):
        raise ValueError("becomes: holds no group of place, so all links would be one image")
    if table.becomes and set(_PLACEHOLDER.sub("", table.becomes)) & {"{", "}"}:
        raise ValueError("becomes: has a brace too many")
    nested_group = table.nested[1:-1] if table.nested.startswith("<") else None
    if nested_group is not None and (nested_group not in known or f"{{{nested_group}}}" not in table.becomes):
        raise ValueError(f"nested: {table.nested} is not a group of place that becomes holds")
    if table.nested and nested_group is None and table.nested not in table.keep:
        raise ValueError(f"nested: {table.nested} has to be in keep")
    if table.claims and not any(table.claims.of in group for group in _group_tables(table)):
        raise ValueError("claims: of has to be a parameter of signed_by")


def _check_permission(table: RuleTable) -> None:
    """Check that the fields that belong to a signature or a permission have one."""
    for field in ("companions", "stays"):
        if getattr(table, field) and not table.signed_by:
            raise ValueError(f"{field}: there is no signed_by that it could go with")
    if table.permission is not None and (table.signed_by or not (table.becomes or table.drop)):
        raise ValueError("permission: goes with becomes or drop; with signed_by it is so anyway")
    if table.enforced is not None and not (_grants(table) or table.nested):
        raise ValueError("enforced: the rule leaves out no signature, and nothing with permission = true")
    if table.known_at and (table.hosts + table.shared_hosts or not table.enforced):
        raise ValueError("known_at: goes with enforced = true, and without hosts of the rule's own")


def _group_tables(table: RuleTable) -> list[dict[str, str]]:
    tables = table.signed_by if isinstance(table.signed_by, list) else [table.signed_by]
    return [group for group in tables if group]


def _read_groups(table: RuleTable, shapes: Mapping[str, Shape]) -> tuple[Group, ...]:
    groups = []
    for group in _group_tables(table):
        if ANY_NAME in group and (len(group) > 1 or not table.stays):
            raise ValueError("signed_by: `*` stands alone, with stays = true")
        members = [(name, _read_shape(text, shapes)) for name, text in group.items()]
        groups.append(tuple(members))
        if table.any_case:
            groups.append(tuple((name.lower(), shape) for name, shape in members))
    return tuple(groups)


def _read_shape(text: str, shapes: Mapping[str, Shape]) -> Shape:
    if text.startswith("="):
        return Shape(re.compile(re.escape(text[1:])))
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        return Shape(_compiled(text[1:-1], "signed_by"))
    if text not in shapes:
        raise ValueError(f"signed_by: there is no shape {text!r}; one of your own is =text or /regular expression/")
    return shapes[text]


def _read_expires(text: str, known: frozenset[str]) -> tuple[Callable[..., Expiry | None], tuple[str, ...]]:
    form, *fields = text.split()
    lifetime = _LIFETIME.fullmatch(fields[-1]) if fields else None
    if lifetime is not None:
        fields.pop()
        if not fields:
            raise ValueError(f"expires: {lifetime[0]} is a lifetime, and there is no field before it")
    if form not in FORMS:
        raise ValueError(f"expires: there is no form {form!r}, but {', '.join(FORMS)}")
    count, read = FORMS[form]
    if len(fields) != count:
        raise ValueError(f"expires: {form} is read from {count} field{'s' * (count > 1)}, not {len(fields)}")
    for field in fields:
        if field.startswith("<") and field[1:-1] not in known:
            raise ValueError(f"expires: {field} is not a group of place")
    return (read if lifetime is None else later(read, int(lifetime[1]))), tuple(fields)


def _spellings(names: tuple[str, ...], *, any_case: bool) -> tuple[str, ...]:
    return (*names, *(name.lower() for name in names)) if any_case else names


def _compiled(pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.ASCII | re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{field}: {error}") from None
