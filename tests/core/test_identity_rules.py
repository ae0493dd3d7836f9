"""Forms of expiry, links inside links, tokens, and rules that cannot be honoured."""

from __future__ import annotations

import base64
import json
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imgkeep.core.errors import InvalidSource, SourceForbidden
from imgkeep.core.identity import BUILT_IN, identify_url, places_of, read_provider_rules
from imgkeep.core.identity.engine import NAMED_DEPTH_MAX
from imgkeep.core.identity.expiry import FORMS, NEVER, UNKNOWN_END, Expiry
from imgkeep.core.identity.jwt import read_json, read_jwt
from imgkeep.core.identity.rule import read_shapes
from imgkeep.core.source_url import read_source
from tests.support.tables import table

NOW = datetime(2026, 1, 10, 12, 30, tzinfo=UTC)
END = datetime(2026, 1, 10, 13, tzinfo=UTC)
AT = Expiry(END, never=False)
GOOD = {"name": "Acme", "hosts": ["img.acme.example"]}
SIG = "x" * 20


def encoded(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def jwt(claims: object, header: object = None) -> str:
    return ".".join([encoded({"alg": "none"} if header is None else header), encoded(claims), "c2ln"])


def policy(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode().translate(str.maketrans("+=/", "-_~"))


def condition(end: object) -> dict[str, Any]:
    return {"Condition": {"DateLessThan": {"AWS:EpochTime": end}, "DateGreaterThan": {"AWS:EpochTime": 1}}}


ENDS: list[tuple[str, tuple[str, ...], Expiry | None]] = [
    ("epoch", ("1768050000",), AT),
    ("epoch", ("999999999",), Expiry(datetime(2001, 9, 9, 1, 46, 39, tzinfo=UTC), never=False)),
    ("epoch", ("16447017600",), Expiry(datetime(2491, 3, 9, tzinfo=UTC), never=False)),
    ("epoch", ("2147483647",), Expiry(datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC), never=True)),
    ("epoch", ("4294967295",), Expiry(datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC), never=True)),
    ("epoch", ("4294967040",), Expiry(datetime(2106, 2, 7, 6, 24, tzinfo=UTC), never=True)),
    ("epoch", ("",), NEVER),
    ("epoch", ("-1",), NEVER),
    ("epoch", ("12345678",), None),
    ("epoch", ("176805000000",), None),
    ("epoch", ("\u0661" * 10,), None),
    ("epoch-ms", ("1768050000000",), AT),
    ("epoch-ms", ("1768050000",), None),
    ("epoch-ms", ("",), NEVER),
    ("epoch-hex", ("69624d50",), AT),
    ("epoch-hex", ("69624D50",), AT),
    ("epoch-hex", ("7fffffff",), Expiry(datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC), never=True)),
    ("epoch-hex", ("1f600",), None),
    ("iso", ("2026-01-10T13:00:00Z",), AT),
    ("iso", ("2026-01-10T13:00Z",), AT),
    ("iso", ("2026-01-10T13:00:00.0000000Z",), AT),
    ("iso", ("2026-01-10T14:00:00+01:00",), AT),
    ("iso", ("2026-01-10T13:00:00",), AT),
    ("iso", ("2026-01-10",), Expiry(datetime(2026, 1, 10, tzinfo=UTC), never=False)),
    ("iso", ("2026-02-30",), None),
    ("iso", ("0001-01-01T00:00:00+01:00",), None),
    ("iso", ("soon",), None),
    ("iso", ("",), NEVER),
    ("start-seconds", ("20260110T120000Z", "3600"), AT),
    ("start-seconds", ("20261310T120000Z", "3600"), None),
    ("start-seconds", ("20260110T120000Z", "soon"), None),
    ("start-seconds", ("99991231T120000Z", "9999999999"), None),
    ("start-seconds", ("2026-01-10", "3600"), None),
    ("interval", ("1768046400;1768050000",), AT),
    ("interval", ("1768050000",), None),
    ("leading-epoch", ("1768050000-rand-0-md5",), AT),
    ("leading-epoch", ("1768050000_hmac",), AT),
    ("leading-epoch", ("1768050000",), None),
    ("edge-auth", ("st=1~exp=1768050000~acl=/*~hmac=ab",), AT),
    ("edge-auth", ("exp=1768050000~hmac=ab",), AT),
    ("edge-auth", ("xexp=1768050000~hmac=ab",), None),
    ("jwt", (jwt({"exp": 1768050000}),), AT),
    ("jwt", (jwt({"exp": "1768050000"}),), AT),
    ("jwt", (jwt({"exp": 1768050000.0}),), AT),
    ("jwt", (jwt({"exp": 1768050000000}),), AT),
    ("jwt", (jwt({"exp": True}),), None),
    ("jwt", (jwt({"exp": [1]}),), None),
    ("jwt", (jwt({"exp": None}),), NEVER),
    ("jwt", (jwt({}),), NEVER),
    ("jwt", (f"v1.{encoded({'exp': '1768050000'})}.c2ln",), AT),
    ("jwt", ("v1e.abc.c2ln",), None),
    ("policy", (policy({"Statement": [condition(1768050000)]}),), AT),
    ("policy", (policy({"Statement": condition(1768050000)}),), AT),
    ("policy", (policy({"Statement": []}),), None),
    ("policy", (policy({"Statement": [{}]}),), None),
    ("policy", (policy([1]),), None),
    ("policy", ("e",), None),
    ("bce-auth", ("bce-auth-v1/ak/2026-01-10T12:00:00Z/3600/host/ab",), AT),
    ("bce-auth", ("bce-auth-v1/ak/2026-01-10T12:00:00Z/-1//ab",), NEVER),
    ("bce-auth", ("bce-auth-v1/ak/soon/3600/host/ab",), None),
    ("bce-auth", ("bce-auth-v1/ak",), None),
    ("packed-interval", ("q-ak=A&q-sign-time=1768046400;1768050000&q=1",), AT),
    ("packed-interval", ("q-sign-time=1768046400%3B1768050000",), AT),
    ("packed-interval", ("q-ak=A",), None),
    ("rails", (encoded({"_rails": {"exp": "2026-01-10T13:00:00.000Z"}}),), AT),
    ("rails", (encoded({"_rails": {"exp": None}}),), NEVER),
    ("rails", (encoded("[1]"),), NEVER),
    ("rails", ("BAhpCg",), NEVER),
]


@table(("form", "values", "end"), ENDS, ids=[f"{n}-{form}" for n, (form, _, _) in enumerate(ENDS)])
def test_every_form_of_expiry_is_read(form: str, values: tuple[str, ...], end: Expiry | None) -> None:
    count, read = FORMS[form]
    assert len(values) == count
    assert read(*values) == end


def test_every_form_has_a_case() -> None:
    assert {form for form, _, _ in ENDS} == set(FORMS)


def test_link_dies_unless_it_says_never_or_ten_years() -> None:
    assert UNKNOWN_END.expires_soon(NOW)
    assert AT.expires_soon(NOW)
    assert AT.expires_soon(datetime(2030, 1, 1, tzinfo=UTC))
    assert not NEVER.expires_soon(NOW)
    assert not Expiry(datetime(2037, 1, 1, tzinfo=UTC), never=False).expires_soon(NOW)
    assert not Expiry(datetime(2026, 2, 1, tzinfo=UTC), never=True).expires_soon(NOW)


@pytest.mark.parametrize(
    "text",
    ["a.b", f"{encoded([1])}.{encoded({})}.x", jwt({}, {}), jwt([1]), jwt("[" * 100), "\u00e9.\u00e9.\u00e9", "e.e.e"],
)
def test_malformed_token_is_none(text: str) -> None:
    assert read_jwt(text) is None


@pytest.mark.parametrize(
    "data", [None, b"", b"\xff", b'"\xff"', b'"\\ud800"', b"{" * 70, b"[" * 5000, b"1e999", b"nan"]
)
def test_invalid_json_is_none(data: bytes | None) -> None:
    assert read_json(data) is None


SIGV4 = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20260110T120000Z&X-Amz-Expires=3600&X-Amz-Signature={'ab' * 32}"
SIGV4_INSIDE = SIGV4.replace("=", "%3D").replace("&", "%26")


@table(
    ("url", "identity", "end"),
    [
        pytest.param(
            f"https://wsrv.nl/?w=3&url=https%3A%2F%2Fimg.example.com%2Fa.png%3F{SIGV4_INSIDE}",
            "//wsrv.nl/?url=https://img.example.com/a.png&w=3",
            END,
            id="signed",
        ),
        pytest.param(
            "https://wsrv.nl/?url=example.com/a.png", "//wsrv.nl/?url=example.com/a.png", None, id="no scheme"
        ),
        pytest.param("https://wsrv.nl/?url=/%7ea.png", "//wsrv.nl/?url=/~a.png", None, id="path"),
        pytest.param("https://wsrv.nl/?url=https://u@h/a", "//wsrv.nl/?url=https://u@h/a", None, id="refused"),
        pytest.param(
            "https://wsrv.nl/?url=https://h/%25ff%ff", "//wsrv.nl/?url=https://h/%25ff%FF", None, id="not text"
        ),
        pytest.param("https://wsrv.nl/?url=https://h/a+b", "//wsrv.nl/?url=https://h/a+b", None, id="plus or space"),
        pytest.param("https://wsrv.nl/?url=https://h/a%2Bb", "//wsrv.nl/?url=https://h/a%2Bb", None, id="plus"),
        pytest.param("https://wsrv.nl/?url=a&url=b", "//wsrv.nl/?url=a&url=b", None, id="twice"),
        pytest.param(
            f"https://wsrv.nl/?url={encoded('http://H.example/%7ea')}",
            f"//wsrv.nl/?url={encoded('https://h.example/~a')}",
            None,
            id="base64",
        ),
        pytest.param(
            f"https://qr.example/?data=https://img.example.com/a.png%3F{SIGV4_INSIDE}",
            f"//qr.example/?data=https://img.example.com/a.png%3F{SIGV4_INSIDE}",
            None,
            id="content",
        ),
        pytest.param(
            f"https://api.together.ai/imgproxy/{'h' * 43}/exp:1768050000/w:1/plain/http%3A%2F%2FH.example%2Fa.png@jpg",
            "//api.together.ai/imgproxy/w:1/plain/https://h.example/a.png@jpg",
            END,
            id="imgproxy plain",
        ),
        pytest.param(
            f"https://api.together.ai/imgproxy/{'h' * 43}/{encoded('http://h.example/a')}/x",
            f"//api.together.ai/imgproxy/{encoded('http://h.example/a')}/x",
            None,
            id="imgproxy, not base64 of a link",
        ),
    ],
)
def test_link_inside_a_known_proxy_is_canonical(url: str, identity: str, end: datetime | None) -> None:
    info = identify_url(url, NOW)
    assert (info.identity, info.expires_at) == (identity, end)


@table(
    ("url", "places"),
    [
        ("https://img.example.com/a.png?url=https://b.example/", set()),
        ("https://b-1.s3.eu-west-1.amazonaws.com/a.png", {"b-1.s3.amazonaws.com/a.png"}),
        ("https://s3.amazonaws.com/b-1/a.png", {"b-1.s3.amazonaws.com/a.png"}),
        ("https://wsrv.nl/?url=b.example", {"b.example/"}),
        ("https://wsrv.nl/?url=/a/b", set()),
        ("https://wsrv.nl/?url=", set()),
        ("https://wsrv.nl/?url=https://@/", set()),
        ("https://wsrv.nl/?url=https://[::1]:80/a", {"::1/a"}),
        ("https://wsrv.nl/?url=https://[::g.x]/a", {"::g.x/a"}),
        ("https://wsrv.nl/?url=https://b%5f.example/a", {"b_.example/a"}),
        ("https://wsrv.nl/?url=https://b_%21.example/a", {"b_!.example/a"}),
        ("https://wsrv.nl/?url=a.example/&w=1&default=https:%2F%2Fb.example%2Fc", {"a.example/", "b.example/"}),
        ("https://wsrv.nl/?url=a.example&url=b.example", {"a.example/", "b.example/"}),
        ("https://app.example/_next/image?url=a.example&url=b.example", {"a.example/", "b.example/"}),
        (
            "https://wsrv.nl/?url=https://b-1.s3.eu-west-1.amazonaws.com/a",
            {"b-1.s3.eu-west-1.amazonaws.com/a", "b-1.s3.amazonaws.com/a"},
        ),
        (
            f"https://api.together.ai/imgproxy/{'h' * 43}/w:1/plain/http%3A%2F%2FH.example%2Fa.png@jpg",
            {"api.together.ai/imgproxy/w:1/plain/https://h.example/a.png@jpg", "h.example/a.png"},
        ),
        (
            "https://wsrv.nl/?url=a.example&d=https://B%C3%9CCHER.example/a",
            {"a.example/", "bücher.example/", "xn--bcher-kva.example/"},
        ),
        (
            "https://wsrv.nl/?url=a.example&d=//b%C3%9C_%E2%82%AC%E2%80%8D.example",
            {"a.example/", "bü_€\u200d.example/"},
        ),
        ("https://wsrv.nl/?url=wsrv.nl/?url=b.example/a", {"wsrv.nl/", "b.example/a"}),
    ],
)
def test_link_names_places_besides_itself(url: str, places: set[str]) -> None:
    assert set(places_of(read_source(url))) == places
    assert set(identify_url(url, NOW, exact=True).places) == places


def test_links_inside_links_are_noted_to_a_depth() -> None:
    url = "https://b.example/a"
    for depth in range(1, 30):
        url = f"https://wsrv.nl/?url={url}"
        assert ("b.example/a" in places_of(read_source(url))) is (depth <= NAMED_DEPTH_MAX + 1)
        assert {"b.example/a", "b.example/"} & set(places_of(read_source(url))), "deeper ones are not read, but seen"


def test_claims_of_a_link_inside_a_link_count() -> None:
    def proxied(width: int, exp: int) -> str:
        token = jwt({"width": width, "exp": exp})
        return identify_url(f"https://wsrv.nl/?url=https://image.mux.com/x/thumbnail.png%3Ftoken={token}", NOW).identity

    assert proxied(640, 1768050000) == proxied(640, 1770111015)
    assert proxied(640, 1768050000).endswith('##{"width":640}')
    assert proxied(640, 1768050000) != proxied(320, 1768050000)


def test_parameter_that_is_given_twice_signs_nothing() -> None:
    url = f"https://img.example.com/a.png?{SIGV4}&X-Amz-Signature={'cd' * 32}"
    info = identify_url(url, NOW)
    assert not info.temporary
    assert "X-Amz-Signature" in info.identity


def test_tokens_under_two_names_both_have_their_end() -> None:
    url = f"https://img.example.com/a.png?a={jwt({'exp': 1770111015})}&b={jwt({'exp': 1768050000})}&b2=ey"
    info = identify_url(url, NOW)
    assert info.expires_at == END
    assert info.scheme == "JSON Web Token"
    twice = f"https://img.example.com/a.png?a={jwt({'exp': 1768050000})}&a=1"
    assert not identify_url(twice, NOW).temporary


def test_earliest_end_counts() -> None:
    url = f"https://img.example.com/a.png?{SIGV4}&expires=2147483647&signature={'ab' * 32}"
    info = identify_url(url, NOW)
    assert (info.expires_at, info.temporary) == (END, True)
    assert info.identity == "//img.example.com/a.png"


def test_another_port_stays_where_a_host_is_folded() -> None:
    assert (
        identify_url("https://b-1.s3.eu-west-1.amazonaws.com:8443/a", NOW).identity == "//b-1.s3.amazonaws.com:8443/a"
    )


def test_user_may_know_better() -> None:
    provider_rules = read_provider_rules([{"name": "Own fal", "hosts": ["v3.fal.media"], "temporary": False}])
    info = identify_url("https://v3.fal.media/files/a.png", NOW, provider_rules)
    assert (info.provider, info.temporary) == ("Own fal", False)
    assert identify_url("https://v3.fal.media/files/a.png", NOW).temporary
    assert provider_rules.known_hosts[0] == "v3.fal.media"
    assert repr(provider_rules) == f"<ProviderRules of {len(BUILT_IN.rules) + 1} rules>"


def test_operator_names_a_scheme_for_hosts_of_his_own() -> None:
    url = "https://img.acme.example/a.png?w=300&token=WLkVK3DsagivVz8CoY_ruA&expires=1768050000"
    anywhere = identify_url(url, NOW)
    assert (anywhere.permission, anywhere.temporary, anywhere.expires_at) == (False, True, END)
    provider_rules = read_provider_rules([{**GOOD, "like": "Bunny token"}])
    info = identify_url(url, NOW, provider_rules)
    assert (info.identity, info.provider, info.scheme) == ("//img.acme.example/a.png?w=300", "Acme", "Acme")
    assert (info.expires_at, info.permission, info.enforced) == (END, True, False)
    assert identify_url(url.replace("img.", "other."), NOW, provider_rules).identity == anywhere.identity.replace(
        "img.", "other."
    )
    script = identify_url(url.replace("a.png", "a.php"), NOW, provider_rules)
    assert "token=" in script.identity


@table("scheme", [rule.name for rule in BUILT_IN.rules if not rule.names_provider])
def test_every_scheme_can_be_taken_over(scheme: str) -> None:
    own = read_provider_rules([{**GOOD, "like": scheme}]).rules[0].table
    theirs = next(rule.table for rule in BUILT_IN.rules if rule.name == scheme)
    assert (own.name, own.hosts, own.examples) == ("Acme", ("img.acme.example",), ())
    assert (own.place, own.signed_by, own.drop, own.expires) == (
        theirs.place, theirs.signed_by, theirs.drop, theirs.expires,
    )  # fmt: skip


def test_provider_overrides_what_it_extends() -> None:
    rule = {**GOOD, "like": "CloudFront canned policy", "enforced": True, "drop": ["page"]}
    url = f"https://img.acme.example/a.png?page=3&Expires=1768050000&Key-Pair-Id=K2&Signature={SIG}"
    info = identify_url(url, NOW, read_provider_rules([rule]))
    assert (info.identity, info.enforced) == ("//img.acme.example/a.png", True)


FOLDED: dict[str, object] = {**GOOD, "place": "(?P<host>[^/]+)/[0-9a-f]+(?P<path>/.+)", "becomes": "{host}{path}"}


@table(
    ("rule", "url", "checked"),
    [
        pytest.param(FOLDED, "a/b.png", False, id="a folded path may have held a permission"),
        pytest.param({**FOLDED, "permission": True}, "a/b.png", False, id="unknown is not checked"),
        pytest.param({**FOLDED, "enforced": True}, "a/b.png", True, id="a path whose token is checked"),
        pytest.param({**FOLDED, "permission": False}, "a/b.png", None, id="a path that holds none"),
        pytest.param(FOLDED, "b.png", None, id="a path that the rule does not fold"),
        pytest.param({**GOOD, "drop": ["n"]}, "b.png?n=1", None, id="dropped, and no permission"),
        pytest.param({**GOOD, "drop": ["n"], "permission": True}, "b.png?n=1", False, id="a dropped permission"),
        pytest.param({**GOOD, "drop": ["n"], "permission": True}, "b.png", None, id="a permission that is not there"),
        pytest.param({**GOOD, "signed_by": {"s": "hex32"}}, f"b.png?s={'a' * 32}", False, id="signed"),
        pytest.param(
            {**GOOD, "signed_by": {"s": "hex32"}, "enforced": True}, f"b.png?s={'a' * 32}", True, id="signed, checked"
        ),
        pytest.param({**GOOD, "signed_by": {"s": "hex32"}, "stays": True}, f"b.png?s={'a' * 32}", None, id="it stays"),
    ],
)
def test_rule_separates_permissions_from_content(rule: dict[str, object], url: str, *, checked: bool | None) -> None:
    info = identify_url(f"https://img.acme.example/{url}", NOW, read_provider_rules([rule]))
    assert info.permission is (checked is not None)
    assert info.enforced is (checked is not False)
    if rule.get("stays"):
        assert info.identity.endswith(url)


def test_proxy_that_answers_errors_lets_the_inner_link_vouch() -> None:
    def told(inner: str, **more: object) -> tuple[bool, bool]:
        provider_rules = read_provider_rules([{**GOOD, "keep": ["url"], "nested": "url", **more}])
        info = identify_url(f"https://img.acme.example/?url={inner}", NOW, provider_rules)
        return info.permission, info.enforced

    signed, plain = f"https://b.s3.amazonaws.com/a.png%3F{SIGV4_INSIDE}", "https://b.s3.amazonaws.com/a.png"
    assert told(signed) == (True, False)
    assert told(signed, enforced=True) == (True, True)
    assert told(plain) == told(plain, enforced=True) == (False, True)


def test_host_counts_more_than_a_scheme_of_any_host() -> None:
    signature = f"Expires=1768050000&Key-Pair-Id=K2&Signature={SIG}"
    for enforced in (True, False):
        rule = {**GOOD, "signed_by": {"Key-Pair-Id": "word", "Signature": "signature"}, "enforced": enforced}
        info = identify_url(f"https://img.acme.example/a.png?{signature}", NOW, read_provider_rules([rule]))
        assert info.enforced is enforced
    both = f"{signature}&expires=1768050000&signature={'a' * 64}&{SIGV4}"
    assert not identify_url(f"https://other.example/a.png?{both}", NOW).enforced


def test_rule_may_bring_shapes_of_its_own() -> None:
    rule = {**GOOD, "signed_by": {"k": "=v1", "sig": "/[a-f]{4}/"}}
    provider_rules = read_provider_rules([rule])
    assert (
        identify_url("https://img.acme.example/a?k=v1&sig=abcd", NOW, provider_rules).identity == "//img.acme.example/a"
    )
    assert identify_url("https://img.acme.example/a?k=v2&sig=abcd", NOW, provider_rules).identity.endswith(
        "?k=v2&sig=abcd"
    )


BAD: list[tuple[dict[str, object], str]] = [
    ({"hosts": ["a.example"]}, "provider 'number 1': Object missing required field `name`"),
    ({"name": "Acme"}, "provider 'Acme': hosts: a provider needs at least one"),
    ({**GOOD, "nmae": 1}, "provider 'Acme': Object contains unknown field `nmae`"),
    ({**GOOD, "hosts": "a.example"}, "provider 'Acme': hosts: Expected `array`, got `str`"),
    ({**GOOD, "hosts": [1]}, "provider 'Acme': hosts: Expected `str`, got `int`"),
    (
        {**GOOD, "hosts": ["*.com"]},
        "provider 'Acme': hosts: '*.com' is no name in lower case, or has a `*` in its last",
    ),
    ({**GOOD, "hosts": ["A.example"]}, "hosts: 'A.example'"),
    ({**GOOD, "like": "Bunny"}, "provider 'Acme': like: there is no scheme 'Bunny', but 'AWS Signature Version 4', "),
    ({**GOOD, "like": "Discord"}, "provider 'Acme': like: there is no scheme 'Discord'"),
    ({**GOOD, "like": ["Bunny token"]}, "provider 'Acme': like: there is no scheme ['Bunny token']"),
    ({**GOOD, "paths": ["a"]}, "provider 'Acme': paths: 'a' does not begin with"),
    ({**GOOD, "place": "("}, "provider 'Acme': place: missing ), unterminated subpattern"),
    ({**GOOD, "place": ".*", "becomes": "{x}/"}, "provider 'Acme': becomes: {x} is not a group of place"),
    ({**GOOD, "place": "(?P<x>.*)", "becomes": "a/b"}, "provider 'Acme': becomes: holds no group of place"),
    ({**GOOD, "place": "(?P<x>.*)", "becomes": "{x}/{"}, "provider 'Acme': becomes: has a brace too many"),
    ({**GOOD, "place": "(?P<x>.*)", "becomes": "{x}}/"}, "provider 'Acme': becomes: has a brace too many"),
    ({**GOOD, "place": "a{99999999999}"}, "provider 'Acme': place: the repetition number is too large"),
    ({**GOOD, "companions": {"a": "hex64"}}, "provider 'Acme': companions: there is no signed_by"),
    ({**GOOD, "nested": "<x>"}, "provider 'Acme': nested: <x> is not a group of place that becomes holds"),
    ({**GOOD, "nested": "url"}, "provider 'Acme': nested: url has to be in keep"),
    ({**GOOD, "signed_by": {"t": "shiny"}}, "provider 'Acme': signed_by: there is no shape 'shiny'"),
    ({**GOOD, "signed_by": {"t": "/(/"}}, "provider 'Acme': signed_by: missing )"),
    ({**GOOD, "signed_by": {"*": "jwt"}}, "provider 'Acme': signed_by: `*` stands alone, with stays = true"),
    ({**GOOD, "stays": True}, "provider 'Acme': stays: there is no signed_by"),
    ({**GOOD, "enforced": True}, "provider 'Acme': enforced: the rule leaves out no signature"),
    ({**GOOD, "drop": ["x"], "enforced": False}, "provider 'Acme': enforced: the rule leaves out no signature"),
    ({**GOOD, "known_at": ["*.acme.example"]}, "provider 'Acme': known_at: goes with enforced = true"),
    ({**GOOD, "permission": True}, "provider 'Acme': permission: goes with becomes or drop"),
    (
        {**GOOD, "drop": ["x"], "signed_by": {"t": "hex64"}, "permission": True},
        "provider 'Acme': permission: goes with becomes or drop",
    ),
    ({**GOOD, "claims": {"of": "t"}}, "provider 'Acme': claims: of has to be a parameter of signed_by"),
    ({**GOOD, "claims": {}}, "provider 'Acme': claims: Object missing required field `of`"),
    ({**GOOD, "expires": ["someday x"]}, "provider 'Acme': expires: there is no form 'someday'"),
    ({**GOOD, "expires": ["epoch"]}, "provider 'Acme': expires: epoch is read from 1 field, not 0"),
    ({**GOOD, "expires": ["start-seconds a"]}, "provider 'Acme': expires: start-seconds is read from 2 fields, not 1"),
    ({**GOOD, "expires": ["epoch <x>"]}, "provider 'Acme': expires: <x> is not a group of place"),
    ({**GOOD, "expires": ["epoch +300"]}, "provider 'Acme': expires: +300 is a lifetime, and there is no field before"),
    ({**GOOD, "gone": ["removed.png"]}, "provider 'Acme': gone: 'removed.png' is no host and path"),
    ({**GOOD, "gone": ["img.acme.example"]}, "provider 'Acme': gone: 'img.acme.example' is no host and path"),
    ({**GOOD, "gone": ["img.acme.example/"]}, "provider 'Acme': gone: 'img.acme.example/' is no host and path"),
    ({**GOOD, "gone": ["img.acme.example/*"]}, "provider 'Acme': gone: 'img.acme.example/*' is no host and path"),
    ({**GOOD, "gone": ["https://a.example/b.png"]}, "provider 'Acme': gone: 'https://a.example/b.png' is no host and"),
    ({**GOOD, "gone": ["a.example/b.png?c=1"]}, "provider 'Acme': gone: 'a.example/b.png?c=1' is no host and path"),
    ({**GOOD, "alias": True}, "provider 'Acme': alias: goes with becomes and permission = false"),
    (
        {**GOOD, "alias": True, "place": "(?P<x>.*)", "becomes": "{x}"},
        "provider 'Acme': alias: goes with becomes and permission = false",
    ),
    (
        {**GOOD, "examples": ["https://other.example/"]},
        "provider 'Acme': examples: the rule does not apply to number 1",
    ),
    ({**GOOD, "counterexamples": ["https://img.acme.example/"]}, "counterexamples: the rule applies to number 1"),
    ({**GOOD, "examples": ["ftp://x/"]}, "provider 'Acme': examples: number 1: the source URL is not an absolute"),
]


@table(("table", "message"), BAD, ids=[f"{n}" for n in range(len(BAD))])
def test_invalid_rule_is_refused_by_name_and_field(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^provider '") as caught:
        read_provider_rules([table])
    assert message in str(caught.value)


def test_unreadable_end_counts_as_no_end() -> None:
    signed = (
        "https://bucket.s3.us-west-2.amazonaws.com/a.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20260110%2Fus-west-2%2Fs3%2Faws4_request&X-Amz-Date=20260110T123000Z&X-Amz-Expires={}&X-Amz-SignedHeaders=host&X-Amz-Signature="
        + 64 * "0"
    )
    assert identify_url(signed.format("1800"), NOW).expires_at == END
    info = identify_url(signed.format("9" * 30), NOW)
    assert (info.temporary, info.expires_at) == (True, None)


def test_shape_that_is_no_pattern_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^shapes: odd: "):
        read_shapes({"odd": "("})


def test_identity_refuses_what_read_source_refuses() -> None:
    with pytest.raises(InvalidSource):
        identify_url("javascript:alert(1)", NOW)
    with pytest.raises(SourceForbidden):
        identify_url("https://user@example.com/", NOW)


def test_documented_provider_works() -> None:
    text = Path("docs/identity.md").read_text("utf-8")
    config = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
    provider_rules = read_provider_rules(config["sources"]["providers"])
    table = config["sources"]["providers"][0]
    assert table["examples"]
    assert table["counterexamples"]
    infos = [identify_url(url, NOW, provider_rules) for url in table["examples"]]
    assert len({info.key for info in infos}) == 1
    assert all(info.provider == table["name"] and info.temporary and info.expires_at for info in infos)
    others = {identify_url(url, NOW, provider_rules).key for url in table["counterexamples"]}
    assert not others & {info.key for info in infos}


# --- images in the place of those that are gone


@pytest.mark.parametrize(
    ("url", "gone"),
    [
        ("https://i.imgur.com/removed.png", True),
        ("http://i.imgur.com/removed.png?1", True),
        ("https://I.IMGUR.com:8443/Removed%2epng", True),
        ("https://s.yimg.com/pw/images/en-us/photo_unavailable_l.png", True),
        ("https://i.imgur.com/removed.pngx", False),
        ("https://i.imgur.com/a/removed.png", False),
        ("https://example.com/removed.png", False),
        ("https://example.com/?i.imgur.com/removed.png", False),
    ],
)
def test_placeholder_is_recognised_by_host_and_path(url: str, *, gone: bool) -> None:
    assert BUILT_IN.is_gone(read_source(url)) is gone


def test_configured_placeholders_join_the_built_in_ones() -> None:
    own = read_provider_rules([{**GOOD, "gone": ["static.acme.example/missing*.png", "*.cdn.acme.example/gone/*"]}])
    for url in (
        "https://static.acme.example/missing.png",
        "https://static.acme.example/missing-2.png?size=3",
        "https://a.cdn.acme.example/gone/away.gif",
        "https://i.imgur.com/removed.png",
    ):
        assert own.is_gone(read_source(url)), url
    assert not BUILT_IN.is_gone(read_source("https://static.acme.example/missing.png"))
    assert not own.is_gone(read_source("https://img.acme.example/missing.png"))


# --- buckets of providers, in every spelling

BUCKETS = [
    (rule.name, host.removesuffix(".s3.amazonaws.com"))
    for rule in BUILT_IN.rules
    for host in rule.hosts
    if host.endswith(".s3.amazonaws.com")
]
SPELLINGS = [
    "{}.s3.amazonaws.com",
    "{}.s3.us-west-2.amazonaws.com",
    "{}.s3-us-west-2.amazonaws.com",
    "{}.s3.dualstack.us-west-2.amazonaws.com",
    "{}.s3-accelerate.amazonaws.com",
    "{}.s3-accelerate.dualstack.amazonaws.com",
    "{}.s3-fips.us-east-1.amazonaws.com",
    "{}.s3-fips.dualstack.us-east-1.amazonaws.com",
    "{}.s3-external-1.amazonaws.com",
    "s3.amazonaws.com/{}",
    "s3.us-west-2.amazonaws.com/{}",
    "s3-us-west-2.amazonaws.com/{}",
    "s3.dualstack.us-west-2.amazonaws.com/{}",
    "s3-fips.us-east-1.amazonaws.com/{}",
    "s3-fips.dualstack.us-east-1.amazonaws.com/{}",
    "s3-external-1.amazonaws.com/{}",
]
SIGNED = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20260110T120000Z&X-Amz-Expires=3600&X-Amz-Signature={'0' * 64}"


def test_bucket_rules_exist() -> None:
    assert {name for name, _ in BUCKETS} >= {"Figma", "Notion", "Adobe Firefly"}
    assert all("*" not in bucket for _, bucket in BUCKETS)


@table("spelling", SPELLINGS)
@table(("provider", "bucket"), BUCKETS)
@table("query", ["", f"?{SIGNED}"], ids=["bare", "signed"])
def test_bucket_of_a_provider_is_recognised_in_every_spelling(
    provider: str, bucket: str, spelling: str, query: str
) -> None:
    usual = identify_url(f"https://{bucket}.s3.amazonaws.com/a/b.png{query}", NOW)
    told = identify_url(f"https://{spelling.format(bucket)}/a/b.png{query}", NOW)
    assert told.provider == provider
    for name in ("identity", "key", "temporary", "expires_at", "scheme", "enforced", "permission"):
        assert getattr(told, name) == getattr(usual, name), name
    assert told.expires_at == (END if query else None)


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.us-west-2.amazonaws.com/figma-alpha-api2/a.png",
        "https://figma-alpha-api.s3.evil.s3.us-west-2.amazonaws.com/a.png",
        "https://s3.us-west-2.amazonaws.com/x/figma-alpha-api/a.png",
        "https://s3.us-west-2.amazonaws.com.example.com/figma-alpha-api/a.png",
        "https://figma-alpha-api.s3-fips.us-gov-west-1.amazonaws.com/a.png",
        "https://s3-fips-us-gov-west-1.amazonaws.com/figma-alpha-api/a.png",
        "https://figma-alpha-api.s3.cn-north-1.amazonaws.com.cn/a.png",
        "https://figma-alpha-api.storage.googleapis.com/a.png",
    ],
)
def test_another_bucket_is_no_providers(url: str) -> None:
    assert identify_url(url, NOW).provider != "Figma"


# --- Dify

DIFY_ID = "790e475f-185f-4602-af5d-bcae911e3f30"
DIFY = "timestamp={}&nonce=08ceefc08f3fae29dfff8c7a79a964e1&sign=oaSq6fZSSfpw9rQh1HhuCK83qH5BT9vduz6m2e87HlU%3D"


@table("host", ["dify.example.com", "upload.dify.ai", "10.1.2.3:5001", "ai.example.com/dify"])
@table("place", [f"{DIFY_ID}/file-preview", f"{DIFY_ID}/image-preview", f"tools/{DIFY_ID}.png"])
def test_link_of_dify_is_temporary_and_has_one_key(host: str, place: str) -> None:
    bare = identify_url(f"https://{host}/files/{place}", NOW)
    for more in ("", "&as_attachment=true"):
        told = identify_url(f"https://{host}/files/{place}?{DIFY.format(1768050000)}{more}", NOW)
        assert (told.key, told.temporary, told.scheme) == (bare.key, True, "Dify")
        assert told.expires_at == END + timedelta(seconds=300)
        assert told.enforced_by_host is False or host == "upload.dify.ai"
        assert told.may_have_expired(END + timedelta(seconds=301))


@pytest.mark.parametrize(
    "url",
    [
        f"https://dify.example.com/files/{DIFY_ID}/file-preview?timestamp=1768050000&sign=x",
        f"https://dify.example.com/files/{DIFY_ID}?{DIFY.format(1768050000)}",
        f"https://dify.example.com/files/tools/{DIFY_ID}?{DIFY.format(1768050000)}",
        f"https://dify.example.com/files/7/file-preview?{DIFY.format(1768050000)}",
        f"https://dify.example.com/files/{DIFY_ID}/file-preview?{DIFY.format('now')}",
        f"https://dify.example.com/files/{DIFY_ID}/file-preview?{DIFY.format(1768050000)}&sign=x",
    ],
)
def test_dify_link_needs_all_its_parts(url: str) -> None:
    assert identify_url(url, NOW).scheme != "Dify"
    assert identify_url(url, NOW).identity.partition("?")[2] == "" or "sign" in identify_url(url, NOW).identity


def test_lifetime_is_added_to_a_beginning() -> None:
    table = {**GOOD, "signed_by": {"at": "epoch-or-empty", "sig": "signature"}, "expires": ["epoch at +3600"]}
    provider_rules = read_provider_rules([table])
    for text, end in (("1768046400", END), ("", None)):
        assert identify_url(f"https://img.acme.example/a?at={text}&sig={SIG}", NOW, provider_rules).expires_at == end
    far = {**GOOD, "signed_by": {"at": "iso", "sig": "signature"}, "expires": ["iso at +999999999"]}
    url = f"https://img.acme.example/a?at=9999-01-01&sig={SIG}"
    assert identify_url(url, NOW, read_provider_rules([far])).expires_at is None
    two = {**GOOD, "signed_by": {"at": "iso", "s": "digits"}, "expires": ["start-seconds at s +60"]}
    url = "https://img.acme.example/a?at=2026-01-10&s=7"
    assert identify_url(url, NOW, read_provider_rules([two])).expires_at is None
