from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from imgkeep.core.errors import SourceRejected
from imgkeep.core.policy import Policy, is_local_name, judge, judge_address
from imgkeep.core.records import Source
from imgkeep.core.source_url import read_source
from tests.support.tables import table

CASES = json.loads((Path(__file__).parents[1] / "cases" / "forbidden_sources.json").read_text("utf-8"))

PORTS = frozenset({80, 443, 8080, 8443})
DEFAULT = Policy(None, (), PORTS, ())
INSIDE = Policy(None, (), PORTS, (ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")))


def hosts(*, allow: tuple[str, ...] | None = None, deny: tuple[str, ...] = ()) -> Policy:
    return Policy(allow, deny, PORTS, ())


def at(host: str, port: int = 443) -> Source:
    return Source("https", host, port, "/a.png")


# --- the common cases


def is_blocked(url: str, answers: list[str] | None) -> bool:
    """What the origin edge does with one hop: the URL, then every address; no answer is no image."""
    try:
        source = read_source(url)
    except SourceRejected:
        return True
    if judge(source, DEFAULT) is not None or answers == []:
        return True
    return any(judge_address(source.host, ip_address(text), source.port, DEFAULT) for text in answers or [])


@table("case", CASES, ids=[f"{number}-{case['cat']}-{case['expect']}" for number, case in enumerate(CASES)])
def test_common_case_is_judged_as_it_says(case: dict[str, Any]) -> None:
    # References relative to the hop before are resolved by the origin edge, which tests them.
    references = case.get("redirects", [])
    absolute = [text for text in references if not text.startswith("/")]
    blocked = is_blocked(case["url"], case.get("dns")) or any(is_blocked(text, None) for text in absolute)
    assert blocked == (case["expect"] == "block" and (not references or bool(absolute)))


# --- hosts


@table(
    ("glob", "host", "matches"),
    [
        ("*", "example.com", True),
        ("*", "1.1.1.1", True),
        ("example.com", "example.com", True),
        ("EXAMPLE.Com.", "example.com", True),
        ("example.com", "a.example.com", False),
        ("example.com", "example.com.evil.example", False),
        ("example.com", "exampleXcom.example", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "evilexample.com", False),
        ("*example.com", "evilexample.com", True),
        ("b*.s3.*.amazonaws.com", "bucket.s3.eu-west-1.amazonaws.com", True),
        ("a?.example.com", "ab.example.com", True),
        ("a[12].example.com", "a2.example.com", True),
        ("a[!12].example.com", "a2.example.com", False),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("*.bücher.example", "a.xn--bcher-kva.example", True),
        ("8.8.*", "8.8.4.4", True),
        ("2606:*", "2606:4700::1111", True),
        ("[2606:*]", "2606:4700::1111", True),
    ],
)
def test_glob_matches_whole_hosts(glob: str, host: str, *, matches: bool) -> None:
    allowed, denied = judge(at(host), hosts(allow=("other.example", glob))), judge(at(host), hosts(deny=(glob,)))
    assert allowed == (None if matches else "host is not in sources.allow")
    assert denied == ("host is in sources.deny" if matches else None)


def test_deny_wins_over_allow() -> None:
    policy = hosts(allow=("*.example.com",), deny=("bad.example.com",))
    assert judge(at("good.example.com"), policy) is None
    assert judge(at("bad.example.com"), policy) == "host is in sources.deny"


def test_list_that_denies_holds_for_all_that_a_link_names() -> None:
    policy = Policy(
        None, ("denied.example", "part.example/no/*"), PORTS, (), names=lambda _: ("x.example/", "denied.example/a")
    )
    assert judge(at("good.example"), policy) == "host is in sources.deny"
    assert policy.denial(at("good.example"), ("x.example/", "part.example/no/a")) == "path is in sources.deny"
    assert policy.denial(at("good.example"), ()) is None
    assert Policy(None, (), PORTS, (), names=lambda _: ("denied.example/a",)).denial(at("good.example")) is None


@table(
    ("host", "identity", "denied"),
    [
        ("denied.example", "//good.example/a.png", True),
        ("good.example", "//denied.example/a.png?b#c", True),
        ("good.example", "//denied.example:8443/a.png", True),
        ("good.example", "https://denied.example/a.png", True),
        ("2001:db8::1", "//2001:db8::1/a.png", True),
        ("good.example", "//good.example/a.png?denied.example", False),
        ("part.example", "//good.example/no/a.png", True),
        ("good.example", "//part.example:81/no/a.png", True),
        ("good.example", "//part.example/yes/a.png", False),
        ("", "ni:///sha-256;abc", False),
    ],
)
def test_stored_image_is_denied_by_its_source(host: str, identity: str, *, denied: bool) -> None:
    policy = Policy(None, ("denied.example", "part.example/no/*", "2001:db8::1"), PORTS, ())
    assert policy.denies_record(host, identity) is denied
    assert not DEFAULT.denies_record(host, identity)


def test_empty_allow_list_allows_nothing() -> None:
    assert judge(at("example.com"), hosts(allow=())) == "host is not in sources.allow"


@pytest.mark.parametrize(
    "glob", ["", "https://example.com", "b*ü.example", "a b.example", "exa%6dple.com", "ü\u200d.example"]
)
def test_glob_that_can_match_no_host_is_an_error(glob: str) -> None:
    with pytest.raises(ValueError, match="can match no host"):
        hosts(deny=(glob,))


def test_policies_are_equal_by_their_settings() -> None:
    assert hosts(allow=("a.example",)) == hosts(allow=("a.example",))
    assert hosts(allow=("a.example",)) != hosts(allow=("b.example",))
    assert len({hosts(), hosts()}) == 1


def test_many_stars_do_not_hang() -> None:
    policy = hosts(deny=("*a" * 30 + "b",))
    assert judge(at("a" * 60 + ".example"), policy) is None


# --- names that are local by nature


@table(
    "host",
    ["localhost", "LOCALHOST.", "foo.localhost", "ip6-localhost", "metadata", "2130706433", "printer.local",
     "kubernetes.default.svc.cluster.local", "localhost.localdomain", "localhost6.localdomain6", "db.internal",
     "metadata.google.internal", "x.intranet", "x.corp", "x.home", "x.lan", "x.private", "router.home.arpa",
     "1.0.0.127.in-addr.arpa", "a.test", "a.invalid", "x.onion", "x.i2p", "x.alt", "x.mail", "x.openstacklocal",
     "web.service.consul", "kubernetes.default.svc", ""],
)  # fmt: skip
def test_name_is_local(host: str) -> None:
    assert is_local_name(host)


@table(
    "host",
    ["example.com", "x.example", "example.example", "localhost.example.com", "local.example", "corp.com", "home.blog",
     "a.locals", "test.org", "10.0.0.1.example.com", "1.1.1.1", "::1", "2606:4700::1111"],
)  # fmt: skip
def test_name_is_ordinary(host: str) -> None:
    assert not is_local_name(host)


# --- judge and judge_address


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("example.com", 443, None),
        ("example.com", 8080, None),
        ("example.com", 25, "port is not in fetch.allow_ports"),
        ("localhost", 80, "host is a local name"),
        ("127.0.0.1", 80, "loopback"),
        ("::1", 80, "loopback"),
        ("::ffff:8.8.8.8", 80, "transition form"),
        ("8.8.8.8", 80, None),
        ("8.8.8.8", 53, "port is not in fetch.allow_ports"),
    ],
)
def test_source_is_judged_by_its_url_alone(host: str, port: int, reason: str | None) -> None:
    assert judge(at(host, port), DEFAULT) == reason


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("minio", 9000, None),
        ("images.internal", 80, None),
        ("example.com", 9000, None),
        ("10.1.2.3", 9000, None),
        ("fd00:1::5", 9000, None),
        ("10.2.0.1", 80, "private"),
        ("8.8.8.8", 9000, "port is not in fetch.allow_ports"),
        ("8.8.8.8", 80, None),
        ("::ffff:10.1.2.3", 80, "transition form"),
    ],
)
def test_networks_make_names_and_ports_undecided(host: str, port: int, reason: str | None) -> None:
    assert judge(at(host, port), INSIDE) == reason


def test_host_lists_hold_inside_the_networks_of_the_operator() -> None:
    policy = Policy(("*.example.com",), ("10.1.0.1",), PORTS, INSIDE.networks)
    assert judge(at("minio"), policy) == "host is not in sources.allow"
    assert judge(at("10.1.0.1"), policy) == "host is in sources.deny"


@table(
    ("host", "address", "port", "policy", "reason"),
    [
        pytest.param("example.com", "93.184.215.14", 443, DEFAULT, None, id="ordinary"),
        pytest.param("example.com", "10.1.2.3", 443, DEFAULT, "private", id="private"),
        pytest.param("example.com", "::ffff:10.1.2.3", 443, INSIDE, "transition form", id="mapped"),
        pytest.param("example.com", "93.184.215.14", 25, DEFAULT, "port is not in fetch.allow_ports", id="port"),
        pytest.param("localhost", "93.184.215.14", 80, DEFAULT, "host is a local name", id="local-outside"),
        pytest.param("minio", "10.1.2.3", 9000, INSIDE, None, id="local-inside-any-port"),
        pytest.param("minio", "93.184.215.14", 80, INSIDE, "host is a local name", id="local-leaves-network"),
        pytest.param("minio", "10.2.0.1", 80, INSIDE, "private", id="local-beside-network"),
        pytest.param("example.com", "10.1.2.3", 22, INSIDE, None, id="name-inside-any-port"),
        pytest.param("example.com", "1.1.1.1", 22, INSIDE, "port is not in fetch.allow_ports", id="port-outside"),
        pytest.param("fd00:1::5", "fd00:1::5", 9000, INSIDE, None, id="literal-inside"),
        pytest.param("example.com", "169.254.169.254", 80, INSIDE, "metadata", id="metadata"),
    ],
)
def test_every_address_has_the_final_say(
    host: str, address: str, port: int, policy: Policy, reason: str | None
) -> None:
    assert judge_address(host, ip_address(address), port, policy) == reason


def test_denied_hosts_are_denied_whatever_is_allowed() -> None:
    policy = Policy(hosts_allowed=("good.example",), hosts_denied=("*.bad.example",), ports=frozenset(), networks=())
    assert [policy.denies(host) for host in ("a.bad.example", "bad.example", "other.example")] == [True, False, False]
