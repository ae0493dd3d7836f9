"""Patterns of hosts and paths, and what a path may be to a server."""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgkeep.core import host_patterns as patterns
from imgkeep.core.host_patterns import Patterns, read_path
from imgkeep.core.policy import Policy, judge
from imgkeep.core.source_url import read_source
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable

RAW = "raw.githubusercontent.com"


def allows(pattern: str, url: str) -> bool:
    return judge(read_source(url), Policy((pattern,), (), frozenset({443}), ())) is None


def denies(pattern: str, url: str) -> bool:
    return judge(read_source(url), Policy(None, (pattern,), frozenset({443}), ())) is not None


BUCKETS = [
    (f"{RAW}/acme/*", f"https://{RAW}/acme/repo/main/a.png", True),
    (f"{RAW}/acme/*", f"https://{RAW}/acme/repo/main/a.png?x=/evil/", True),
    (f"{RAW}/acme/*", f"https://{RAW}/%61cme/repo/a.png", True),
    (f"{RAW}/acme/*", f"https://{RAW}/acme/repo/%C3%A9%20b.png", True),
    (f"{RAW}/acme/*", f"https://{RAW}/acme/a/../b.png", True),
    (f"{RAW}/acme/*", f"https://{RAW}/acme//a.png", True),
    (f"{RAW}/acme/*", f"https://{RAW}/acme", False),
    (f"{RAW}/acme/*", f"https://{RAW}/acme2/repo/a.png", False),
    (f"{RAW}/acme/*", f"https://{RAW}/evil/acme/a.png", False),
    (f"{RAW}/acme/*", f"https://{RAW}/evil/a.png?/acme/", False),
    (f"{RAW}/acme/*", f"https://{RAW}/evil/a.png#/acme/", False),
    (f"{RAW}/acme/*", "https://other.example/acme/a.png", False),
    (f"{RAW}/acme/*", f"https://x.{RAW}/acme/a.png", False),
    ("storage.googleapis.com/acme-bucket/*", "https://storage.googleapis.com/acme-bucket/a%2Fb.png", True),
    (
        "firebasestorage.googleapis.com/v0/b/acme.appspot.com/*",
        "https://firebasestorage.googleapis.com/v0/b/acme.appspot.com/o/a%2Fb.png?alt=media",
        True,
    ),
    ("cdn.discordapp.com/attachments/123/*", "https://cdn.discordapp.com/attachments/123/4/a.png?ex=1", True),
    ("cdn.discordapp.com/attachments/123/*", "https://cdn.discordapp.com/attachments/1234/4/a.png", False),
    ("*.example.com/acme/*", "https://a.b.example.com/acme/a.png", True),
    ("*.example.com/acme/*", "https://example.com/acme/a.png", False),
    ("example.com/a?.png", "https://example.com/ab.png", True),
    ("example.com/[ab].png", "https://example.com/b.png", True),
    ("example.com/[ab].png", "https://example.com/c.png", False),
    ("example.com/my pics/ü*", "https://example.com/my%20pics/%C3%BC.png", True),
    ("example.com/a%2Fb/*", "https://example.com/a%2fb/c.png", True),
    ("EXAMPLE.com./acme/*", "https://example.com/acme/a.png", True),
    ("[2606:4700:0::1]/acme/*", "https://[2606:4700::1]/acme/a.png", True),
    ("2606:4700:*/acme/*", "https://[2606:4700::1]/acme/a.png", True),
    ("bücher.example/acme/*", "https://xn--bcher-kva.example/acme/a.png", True),
    ("example.com/acme/*", "https://example.com/ACME/a.png", False),
    ("example.com/acme/*", "https://example.com:443/acme/a.png", True),
]


@table(("pattern", "url", "matches"), BUCKETS)
def test_pattern_with_a_path_allows_the_paths_below(pattern: str, url: str, *, matches: bool) -> None:
    assert allows(pattern, url) is matches


ESCAPES = [
    "/acme/../evil/a.png", "/acme/%2e%2e/evil/a.png", "/acme/%2E./evil/a.png", "/acme/..%2fevil/a.png",
    "/acme%2f..%2fevil/a.png", "/acme/%2e%2e%2fevil/a.png", "/acme/..%5cevil/a.png", "/acme\\..\\evil/a.png",
    "/acme/x/../../evil/a.png", "/acme//../evil/a.png", "/acme/./../evil/a.png", "/acme/..;/evil/a.png",
    "/acme/..;x=1/evil/a.png", "/acme/%252e%252e/evil/a.png", "/acme/%252e%252e%252fevil/a.png",
    "/acme/%25252e%25252e/evil/a.png", "/acme/%2525252525252e%2525252525252e/evil/a.png",
    "/acme/a/..%2f..%2fevil/a.png",
    "/acme/..", "/acme/%2e%2e", "/./acme/../evil/a.png", "/acme/x%2f..%2f../evil/a.png",
]  # fmt: skip
"""Paths that some server takes for one outside of /acme/."""


@table("path", ESCAPES)
def test_no_spelling_leaves_the_allowed_paths(path: str) -> None:
    assert not allows(f"{RAW}/acme/*", f"https://{RAW}{path}")


SPELLINGS = [
    "/evil/a.png", "//evil/a.png", "/./evil/a.png", "/x/../evil/a.png", "/%65vil/a.png", "/EVIL/a.png", "/evil%2fa.png",
    "/%2fevil/a.png", "/x/%2e%2e/evil/a.png", "/x/..%2Fevil/a.png", "/x%5C..%5Cevil%5Ca.png", "/x\\..\\evil\\a.png",
    "/%2565vil/a.png", "/x/..;/evil/a.png", "/evil//a.png", "/evil/../evil/a.png", "/evil/x/%252e%252e/a.png",
    "/%2525252525252565vil/a.png",
]  # fmt: skip
"""Paths that some server takes for one under /evil/."""


@table("path", SPELLINGS)
def test_no_spelling_evades_a_denial(path: str) -> None:
    assert denies(f"{RAW}/evil/*", f"https://{RAW}{path}")


def test_denied_path_leaves_the_rest_of_the_host() -> None:
    for path in ("/acme/a.png", "/acme/%2e/a.png", "/evil", "/acme/evil/a.png", "/acme/a%2Fb.png"):
        assert not denies(f"{RAW}/evil/*", f"https://{RAW}{path}")
    assert not denies(f"{RAW}/evil/*", "https://example.com/evil/a.png")


def test_reason_names_host_or_path() -> None:
    policy = Policy(("a.example", "b.example/x/*"), ("a.example/no/*", "c.example"), frozenset({443}), ())
    reasons = {
        "https://a.example/yes/1.png": None,
        "https://a.example/no/1.png": "path is in sources.deny",
        "https://b.example/x/1.png": None,
        "https://b.example/y/1.png": "path is not in sources.allow",
        "https://c.example/1.png": "host is in sources.deny",
        "https://d.example/1.png": "host is not in sources.allow",
    }
    assert {url: judge(read_source(url), policy) for url in reasons} == reasons
    assert policy.host_refusal("b.example") == "host is not in sources.allow"
    assert policy.host_refusal("c.example") == "host is in sources.deny"


@table(
    ("pattern", "message"),
    [
        ("example.com/", "is the root alone"),
        ("example.com/a#b", "can match no path"),
        ("example.com/a\x00b", "can match no path"),
        ("example.com/../a/*", "dot segment"),
        ("example.com/%2e%2E/a/*", "dot segment"),
        ("https://example.com/a/*", "can match no host"),
        ("/a/*", "can match no host"),
        ("example.com:8080", "can match no host"),
        ("example.com:8080/a/*", "can match no host"),
        ("*.example.com:443", "can match no host"),
        ("[2001:db8::1]:443", "can match no host"),
        ("[::g]", "can match no host"),
        ("user@example.com", "can match no host"),
    ],
)
def test_pattern_that_can_match_nothing_is_an_error(pattern: str, message: str) -> None:
    for denying in (True, False):
        with pytest.raises(ValueError, match=message) as caught:
            Patterns((pattern,), denying=denying)
        assert repr(pattern) in str(caught.value)


@table(
    ("pattern", "url"),
    [
        ("bad.example.", "https://bad.example/a"),
        ("bad.example", "https://bad.example./a"),
        ("bad.example", "https://BAD.Example/a"),
        ("BAD.example", "https://bad.example/a"),
        ("bücher.example", "https://xn--bcher-kva.example/a"),
        ("xn--bcher-kva.example", "https://BÜCHER.example/a"),
        ("XN--BCHER-KVA.example", "https://bu\u0308cher.example/a"),
        ("bücher。example", "https://bücher.example/a"),
        ("bad.example", "https://bad。example/a"),
        ("bad.example", "https://\uff42\uff41\uff44.example/a"),
        ("2606:4700:0:0::1111", "https://[2606:4700::1111]/a"),
        ("[2606:4700:0000::1111]", "https://[2606:4700::1111]/a"),
        ("2606:4700::1111", "https://[2606:4700:0:0:0:0:0:1111]/a"),
        ("2606:4700::ABCD", "https://[2606:4700::abcd]/a"),
        ("::ffff:808:808", "https://[::ffff:8.8.8.8]/a"),
        ("::FFFF:8.8.8.8", "https://[::ffff:808:808]/a"),
        ("8.8.8.8", "https://[::ffff:8.8.8.8]/a"),
        ("8.8.*", "https://[::ffff:808:808]/a"),
        ("[2606:4700::1111]/x/*", "https://[2606:4700::1111]/x/a"),
    ],
)
def test_host_is_denied_in_every_spelling(pattern: str, url: str) -> None:
    source = read_source(url)
    assert Policy(None, (pattern,), frozenset({443}), ()).denial(source) is not None


SEGMENTS = st.sampled_from(
    ["acme", "evil", "..", ".", "", "%2e%2e", "..%2f", "%5c..", "..;", "a%2fb", "%252e%252e", "x"]
)


def _as_a_server(path: str, steps: list[str]) -> str:
    """Read a path as servers and proxies do, one after the other."""
    decode: Callable[[re.Match[str]], str] = lambda escape: chr(int(escape[1], 16))  # noqa: E731
    for step in steps:
        if step == "decode":
            path = re.sub("%([0-9A-Fa-f]{2})", decode, path)
        elif step == "slashes":
            path = re.sub("/+", "/", path.replace("\\", "/"))
        else:
            kept: list[str] = []
            for segment in path.split("/")[1:]:
                name = segment.split(";")[0]
                if name == "..":
                    del kept[-1:]
                elif name != ".":
                    kept.append(segment)
            path = "/" + "/".join(kept)
    return path


@given(
    st.lists(SEGMENTS, min_size=1, max_size=6),
    st.lists(st.sampled_from(["decode", "slashes", "dots"]), max_size=2),
)
@example(["acme", "..%2f", "evil"], ["decode", "dots"])
def test_allowed_path_is_inside_for_every_server(segments: list[str], steps: list[str]) -> None:
    path = "/" + "/".join([*segments, "a.png"])
    if allows("h.example/acme/*", f"https://h.example{path}"):
        # A server may decode before or after; what it opens in the end is what counts.
        opened = _as_a_server(path, [*steps, "slashes", "dots"])
        assert opened.startswith("/acme/"), opened


@given(st.lists(SEGMENTS, max_size=6), st.text(string.printable, max_size=9))
def test_any_path_has_readings(segments: list[str], text: str) -> None:
    readings = read_path("/" + "/".join([*segments, text]))
    assert readings is None or readings[0]


def test_path_is_decoded_a_bounded_number_of_times() -> None:
    path = "/acme/%" + "25" * 2000 + "2e%2e/evil"
    assert read_path(path) is None
    assert not allows("h.example/acme/*", f"https://h.example{path}")
    assert denies("h.example/acme/*", f"https://h.example{path}")


def test_hundreds_of_patterns_are_looked_at_once_for_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    class Counted(patterns.Globs):
        def match(self, host: str) -> bool:
            looked.append(host)
            return super().match(host)

    monkeypatch.setattr(patterns, "Globs", Counted)
    many = Patterns(
        (*(f"{RAW}/account-{n}/*" for n in range(500)), *(f"*.h{n}.example/a/*" for n in range(300))), denying=False
    )
    for n in range(100):
        assert many.match(RAW, f"/account-{n}/a.png") == "path"
        assert many.match(RAW, f"/stranger-{n}/a.png") is None
    # For each question the list of whole hosts; once for all, each host glob that has paths. A host is looked up.
    assert len(looked) == 200 + 300


@pytest.mark.parametrize("glob", ["ü_b.test", "-ü-.test", "☃.test"])
def test_pattern_may_be_any_international_name(glob: str) -> None:
    assert Patterns((glob,), denying=True).match_host(read_source(f"https://{glob}/").host)


def test_character_that_becomes_a_wild_card_is_none() -> None:
    with pytest.raises(ValueError, match="can match no host"):
        Patterns(("\uff0a.test",), denying=True)
