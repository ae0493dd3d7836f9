"""What holds for every link: generated from the rules' own data."""

from __future__ import annotations

import string
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from hypothesis import assume, example, given
from hypothesis import strategies as st

from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity import BUILT_IN, identify_url

if TYPE_CHECKING:
    from imgkeep.core.identity.rule import Rule

NOW = datetime(2026, 1, 10, 12, 30, tzinfo=UTC)
SIGNED = [(rule, url) for rule in BUILT_IN.rules if rule.groups for url in rule.table.examples]
LINKS = [url for rule in BUILT_IN.rules for url in (*rule.table.examples, *rule.table.counterexamples)]

# Names that sign elsewhere, with values that are no signature.
TRAPS = [
    "token",
    "sig",
    "exp",
    "Expires",
    "Signature",
    "e",
    "t",
    "v",
    "s",
    "sign",
    "auth_key",
    "hm",
    "x-oss-process",
    "url",
]
VALUES = st.text(string.ascii_letters + string.digits + "-._~", max_size=9)
FIELDS = st.lists(
    st.tuples(st.sampled_from([*TRAPS, "a", "b", "width"]), st.sampled_from(["=", ""]), VALUES), max_size=6
)


def key(url: str) -> str:
    return identify_url(url, NOW).key


def parts(url: str) -> tuple[str, list[str]]:
    place, _, query = url.partition("?")
    return place, [part for part in query.split("&") if part]


def members(rule: Rule, names: set[str]) -> set[str]:
    """The names of the group that signs; they have to stay where they are."""
    return next({name for name, _ in group} for group in rule.groups if {name for name, _ in group} <= names)


@given(st.sampled_from(SIGNED), st.data())
def test_parameters_of_a_signature_never_change_the_key(signed: tuple[Rule, str], data: st.DataObject) -> None:
    rule, url = signed
    place, fields = parts(url)
    names = {field.partition("=")[0] for field in fields}
    required = members(rule, names)
    loose = sorted(rule.parameters.drop - required)
    others = [field for field in fields if (name := field.partition("=")[0]) not in required and name not in loose]
    signature = [field for field in fields if field.partition("=")[0] in required]
    added = data.draw(st.lists(st.tuples(st.sampled_from(loose), VALUES), max_size=8)) if loose else []
    signature += [f"{name}={value}" for name, value in added]
    for field in data.draw(st.permutations(signature)):
        others.insert(data.draw(st.integers(0, len(others))), field)
    assert key(f"{place}?{'&'.join(others)}") == key(url)


@given(st.sampled_from(SIGNED), st.data())
def test_signature_that_is_not_whole_is_content(signed: tuple[Rule, str], data: st.DataObject) -> None:
    rule, url = signed
    place, fields = parts(url)
    required = members(rule, {field.partition("=")[0] for field in fields})
    gone = data.draw(st.sampled_from(sorted(required - rule.parameters.keep)))
    rest = [field for field in fields if field.partition("=")[0] != gone]
    broken = f"{place}?{'&'.join([*rest, gone + '=!'])}"
    assert key(broken) != key(url)
    assert key(broken) != key(f"{place}?{'&'.join([*rest, gone + '=!!'])}")


@given(st.sampled_from(LINKS), VALUES, VALUES)
def test_any_other_parameter_changes_the_key(url: str, one: str, other: str) -> None:
    assume(one != other)
    joint = "&" if "?" in url else "?"
    assert len({key(url), key(f"{url}{joint}other={one}"), key(f"{url}{joint}other={other}")}) == 3
    assert key(f"{url}{joint}other={one}&other={other}") != key(f"{url}{joint}other={other}&other={one}")


@given(st.sampled_from(LINKS), st.text(string.ascii_letters + string.digits, min_size=1, max_size=4))
def test_another_path_or_host_changes_the_key(url: str, text: str) -> None:
    scheme, _, rest = url.partition("://")
    place, mark, query = rest.partition("?")
    host, _, path = place.partition("/")
    assume(not (place.endswith("5wbmc") and text.startswith("j")))  # a link in Base64, and "#" behind it: a fragment
    assert key(f"{scheme}://{place}{text}{mark}{query}") != key(url)
    assert key(f"{scheme}://{place}/{mark}{query}") != key(url)
    assert key(f"{scheme}://x{text.lower()}-{host}/{path}{mark}{query}") != key(url)
    assert key(f"{scheme}://{host}:8443/{path}{mark}{query}") != key(url)


@given(FIELDS, FIELDS)
def test_every_parameter_counts_on_an_unknown_host(
    ours: list[tuple[str, str, str]], theirs: list[tuple[str, str, str]]
) -> None:
    def written(fields: list[tuple[str, str, str]]) -> list[str]:
        return [name + equals + (value if equals else "") for name, equals, value in fields]

    def canonical(fields: list[tuple[str, str, str]]) -> list[str]:
        ordered = sorted(fields, key=lambda field: field[0]) if all(equals for _, equals, _ in fields) else fields
        return written(ordered)

    one, other = (f"https://img.example.org/a.png?{'&'.join(written(fields))}" for fields in (ours, theirs))
    assert (key(one) == key(other)) is (canonical(ours) == canonical(theirs))
    assert not identify_url(one, NOW).temporary


@given(
    st.sampled_from(
        ["www.example.com", "b.s3.eu-west-1.amazonaws.com", "s3.amazonaws.com/b-1", "app.example.com/_next/image"]
    ),
    st.text(string.printable, max_size=30),
    st.lists(
        st.tuples(st.sampled_from([*TRAPS, "%61", "%3d"]), st.text(string.printable + "é", max_size=20)), max_size=4
    ),
)
def test_canonical_form_is_its_own(place: str, path: str, fields: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={quote(value, safe='/:%+!')}" for name, value in fields)
    try:
        identity = identify_url(f"https://{place}/{quote(path, safe='/%')}?{query}", NOW).identity
    except SourceRejected:
        return
    assert "#" not in identity
    assert identify_url(f"https:{identity}", NOW).identity == identity


@given(st.sampled_from([url for url in LINKS if "?" in url]), st.integers(1, 4))
def test_links_inside_links_are_canonical_to_a_depth(url: str, depth: int) -> None:
    for _ in range(depth):
        url = f"https://app.example.com/_next/image?w=640&url={quote(url, safe='')}&q=75"
    identity = identify_url(url, NOW).identity.partition("#")[0]
    assert identify_url(f"https:{identity}", NOW).identity == identity


@given(st.text())
@example("https://[::ffff:1.2.3.4]:80/\ud800")
@example("https://a.supabase.co/storage/v1/object/sign/a?token=ey.ey.")
def test_any_text_is_identified_or_rejected(text: str) -> None:
    for url in (text, f"https://{text}", f"https://example.com/{text}", f"https://img.example.com/?url={text}"):
        try:
            info = identify_url(url, NOW)
        except SourceRejected:
            continue
        assert len(info.key) == 64
        assert info.expires_at is None or info.expires_at.tzinfo is UTC


@given(st.sampled_from(LINKS), st.binary(min_size=1, max_size=40), st.integers(0, 300))
def test_any_bytes_in_any_link_are_identified_or_rejected(url: str, data: bytes, at: int) -> None:
    text = data.decode("latin-1")
    for broken in (url[:at] + text + url[at:], url[:at] + quote(data) + url[at + 3 :], url[:at]):
        try:
            identify_url(broken, NOW)
        except SourceRejected:
            continue
