"""
Links in which an opaque token names the image: each shows its own.

A framework or a script hands out `download.php?token=A` and `?token=B`. By their shapes alone, `A` and `B` are
signatures of one link. The attacker asks for a link of his own, or with a token that he made up, and is shown what the
other link brought.
"""

from __future__ import annotations

import base64
import json
import string
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imgkeep.core.identity import BUILT_IN, identify_url, read_provider_rules, rules_for
from imgkeep.core.source_url import read_source
from tests.support.images import make_image
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from imgkeep.core.identity.rule import Rule, Shape
    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

NOW = datetime(2026, 1, 10, 12, 30, tzinfo=UTC)

ANYWHERE: Final = [rule for rule in BUILT_IN.rules if rule.grants and not rule.hosts]
"""Rules by which something that may grant access is left out on every host of the web."""

MARKS: Final[Mapping[str, str]] = {
    "AWS Signature Version 4": "X-Amz-Algorithm=AWS4-",
    "AWS Signature Version 2": "AWSAccessKeyId",
    "CloudFront custom policy": "Key-Pair-Id",
    "CloudFront canned policy": "Key-Pair-Id",
    "Google Cloud Storage V4": "X-Goog-Algorithm=GOOG4-",
    "Google Cloud Storage V2": "GoogleAccessId",
    "Google Cloud CDN": "KeyName",  # with a MAC of 20 or 64 bytes under Signature, and Expires
    "Azure SAS": "sv",  # a date, with se or si, sr or ss, and sig: four members
    "Alibaba OSS V1": "OSSAccessKeyId",
    "Alibaba OSS V4": "x-oss-signature-version=OSS4-HMAC-SHA256",
    "Alibaba OSS V2": "x-oss-signature-version=OSS2",
    "Alibaba CDN type A": "auth_key",  # <end>-<random>-<user>-<md5>, and a path that ends in an image's name
    "Tencent COS": "q-sign-time",
    "Tencent COS packed": "sign=q-sign-algorithm=",
    "Huawei OBS": "AccessKeyId",  # with an HMAC-SHA1 under Signature, and Expires
    "UCloud UFile": "UCloudPublicKey",
    "Volcengine TOS": "X-Tos-Algorithm=TOS4-",
    "Baidu BOS": "authorization=bce-auth-v",
    "Qiniu": "token=<40>:<27>=",  # access key and HMAC-SHA1, and e
    "Cloudflare Images on a custom domain": "/cdn-cgi/imagedelivery/",
    "Akamai EdgeAuth": "exp=...~hmac=...",  # only fields that say who and until when
    "Akamai EdgeAuth in the path": "/hdnts=exp=...~hmac=.../",
    "Fastly token": "<end>_<hmac>",  # and a path that ends in an image's name
    "Bunny token in the path": "/bcdn_token=...&expires=.../",
    "Dify": "nonce",  # 32 hex, with timestamp and an HMAC-SHA256 under sign, on /files/<uuid>/...-preview
    "Laravel signed route": "signature",  # an HMAC of the whole URL beside expires; the path ends in an id or a file
}
"""
The schemes for any host, each with what no application writes by chance.

Before a name is added here: what would an opaque capability of this shape be called by others? If the answer is one of
the scheme's names, bind the scheme to hosts (`hosts`), or let it tell its end only (`stays`).
"""

# --- values as frameworks make them

HEX = string.digits + "abcdef"
URLSAFE = string.ascii_letters + string.digits + "-_"
BASE64 = string.ascii_letters + string.digits + "+/"


def text(alphabet: str, *sizes: int) -> st.SearchStrategy[str]:
    return st.sampled_from(sizes).flatmap(lambda size: st.text(alphabet, min_size=size, max_size=size))


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


ENDS = st.integers(1_768_000_000, 1_799_999_999)
PKS = st.integers(1, 9999)
hexes = text(HEX, 16, 24, 32, 40, 64, 96, 128)
tokens = text(
    URLSAFE, 8, 16, 20, 21, 22, 27, 32, 43, 64, 86
)  # secrets.token_urlsafe, nanoid, SecureRandom.urlsafe_base64
padded = st.one_of(text(BASE64, 27, 43).map(lambda part: part + "="), text(BASE64, 22).map(lambda part: part + "=="))
uuids = st.uuids().map(str)
django_signed = st.builds("{}:{}:{}".format, PKS.map(encoded), text(string.ascii_letters, 6), text(URLSAFE, 27, 43))
rails_signed = st.builds(
    lambda pk, end, mac: f"{encoded({'_rails': {'data': pk, 'exp': end, 'pur': 'blob_id'}})}--{mac}",
    PKS,
    st.sampled_from(["2026-01-10T13:00:00.000Z", None]),
    text(HEX, 40, 64),
)
jwts = st.builds(
    lambda pk, end, mac: f"{encoded({'alg': 'HS256'})}.{encoded({'file': pk, 'exp': end})}.{mac}",
    PKS,
    ENDS,
    text(URLSAFE, 43),
)
fernet = text(URLSAFE, 95).map(lambda part: f"gAAAAA{part}=")
laravel_encrypted = st.builds(
    lambda value, mac: encoded({"iv": "x", "value": value, "mac": mac}), text(BASE64, 24), text(HEX, 64)
)
stamped = st.builds("{}{}{}".format, ENDS, st.sampled_from("_-.:|"), text(HEX, 32, 40, 64))
capabilities = st.one_of(
    hexes, tokens, padded, uuids, django_signed, rails_signed, jwts, fernet, laravel_encrypted, stamped,
    text(string.digits, 6, 9, 10, 16), text(string.ascii_lowercase, 6, 12),
)  # fmt: skip
"""What frameworks and scripts make to be unguessable; it is found in a table, or says itself what it opens."""

ends = st.one_of(
    ENDS.map(str),
    ENDS.map(lambda end: str(end * 1000)),
    ENDS.map("{:x}".format),
    st.just("2026-01-10T13:00:00Z"),
    st.just("2026-01-10"),
)

TOKEN_NAMES: Final = [
    "token", "key", "hash", "sig", "sign", "signed", "md5", "st", "s", "t", "k", "h", "hmac", "mac", "code", "auth",
    "auth_key", "authkey", "access_token", "access", "secret", "ticket", "id", "uid", "uuid", "file", "f", "q", "c",
    "d", "x", "download", "dl", "share", "link", "ref", "nonce", "session", "sid", "sv", "tk", "jwt", "_jwt", "data",
    "payload", "p", "v", "guid", "e", "ex", "hm", "signed_id", "sgid", "signature_key", "x-signature",
    "Authorization", "X-Token", "credential", "otp", "pass",
]  # fmt: skip
END_NAMES: Final = [
    "expires",
    "expire",
    "exp",
    "e",
    "Expires",
    "expires_at",
    "valid_until",
    "until",
    "end",
    "ttl",
    "ext",
    "ts",
]
PATHS: Final = [
    "/download.php", "/get.php", "/index.php", "/download", "/file", "/files/download", "/media/", "/",
    "/api/v1/attachments", "/image.png", "/render.jpg", "/avatar.webp", "/f/picture.aspx", "/private/photo.jpeg",
    "/i/7.gif", "/photos/1", "/d.cgi",
]  # fmt: skip
SCRIPTS: Final = [path for path in PATHS if not path.endswith((".png", ".jpg", ".webp", ".jpeg", ".gif"))]


@dataclass(frozen=True)
class Pair:
    """Two links of one application that open two images."""

    one: str
    other: str


def written(path: str, fields: list[tuple[str, str]]) -> str:
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields)
    return f"https://app.example.com{path}?{query}"


@st.composite
def token_links(draw: st.DrawFn) -> Pair:
    """As a script writes them: a token under a common name, and perhaps an end, an id and a size."""
    name = draw(st.sampled_from(TOKEN_NAMES))
    shape = draw(st.sampled_from([hexes, tokens, padded, uuids, django_signed, rails_signed, jwts, fernet, stamped]))
    one, other = draw(shape), draw(shape)
    assume(one != other)
    shared = draw(st.lists(st.sampled_from(["w", "size", "inline", "lang"]), unique=True, max_size=2))
    end = draw(st.one_of(st.none(), st.sampled_from([each for each in END_NAMES if each != name])))
    # `<end>_<hex>` beside the name of an image is Fastly's; a script has no such name.
    path = draw(st.sampled_from(SCRIPTS if shape is stamped else PATHS))
    fields = [(each, "1") for each in shared] + ([] if end is None else [(end, draw(ends))])
    at = draw(st.integers(0, len(fields)))
    return Pair(*(written(path, [*fields[:at], (name, value), *fields[at:]]) for value in (one, other)))


@given(token_links())
def test_two_tokens_are_two_images(links: Pair) -> None:
    assert identify_url(links.one, NOW).key != identify_url(links.other, NOW).key


@given(
    st.sampled_from([django_signed, rails_signed, jwts, tokens, hexes, uuids, fernet]).flatmap(
        lambda s: st.tuples(s, s)
    )
)
def test_two_tokens_in_the_path_are_two_images(pair: tuple[str, str]) -> None:
    assume(pair[0] != pair[1])
    for path in (
        "/rails/active_storage/blobs/redirect/{}/photo.png",
        "/rails/active_storage/representations/proxy/{}/{}/photo.png",
        "/media/{}/photo.png",
        "/s/{}",
        "/share/{}/",
        "/signed/{}/a.jpg",
    ):
        one, other = (f"https://app.example.com{path.replace('{}', quote(each, safe=''))}" for each in pair)
        assert identify_url(one, NOW).key != identify_url(other, NOW).key


# --- every name of every scheme, with values of every shape

SHAPED: Final = [
    *("word", "b", "bfqt", "r", "AKIAEXAMPLE0000000", "none", "-1", "1768050000;1768053600", "2026-01-10", "https"),
    *("Acme Policy", "HS256-" + "a" * 43, "K2EXAMPLE", "20260110T120000Z", "3600", "host", "aHR0cHM6Ly9hLmV4YW1wbGUv"),
]


ORDINARY: Final = [
    *("7", "word", "b", "2026-01-10", "1768050000", "1768050001", "1768050000000", "69624d50", "69624d51"),
    *(c * size for size in (16, 22, 32, 40, 43, 64, 86, 128) for c in "ab"),
    *(f"1768050000_{c * size}" for size in (32, 40, 64) for c in "ab"),
    *(f"{encoded({'alg': 'HS256'})}.{encoded({'file': pk})}.c2ln" for pk in (1, 2)),
    *(f"{c * 27}=" for c in "ab"),
]
"""Values that fit many shapes and that an application could make."""


def member_names(rules: list[Rule]) -> list[str]:
    names = {name for rule in rules for group in rule.groups for name, _ in group}
    return sorted(
        names.union(*(rule.parameters.drop for rule in rules), *(rule.parameters.companions for rule in rules))
    )


SCHEME_NAMES: Final = member_names([rule for rule in BUILT_IN.rules if not rule.names_provider])
values = st.one_of(capabilities, ends, st.sampled_from(SHAPED))


GROUPS: Final = [group for rule in BUILT_IN.rules for group in rule.groups]
"""Of every rule, those of providers as well: another application may use the same names for its own."""


@st.composite
def odd_links(draw: st.DrawFn) -> Pair:
    """All names of a signature, and some of others, with values as an application makes them; one value differs."""
    group = dict(draw(st.sampled_from(GROUPS)))
    others = draw(st.lists(st.sampled_from([*SCHEME_NAMES, *TOKEN_NAMES, *END_NAMES]), max_size=3, unique=True))
    names: list[str] = list(draw(st.permutations(list(dict.fromkeys([*group, *others])))))

    def value(name: str) -> str:
        fitting = [each for each in ORDINARY if name in group and group[name].fits(each)]
        chosen = st.one_of(st.sampled_from(fitting), values) if fitting else values
        return draw(chosen)

    changed = draw(st.sampled_from(names))
    ours = [(name, value(name)) for name in names]
    theirs = [(name, value(name) if name == changed else old) for name, old in ours]
    assume(ours != theirs)
    path = draw(st.sampled_from(PATHS))
    return Pair(written(path, ours), written(path, theirs))


@settings(max_examples=400)
@given(odd_links())
def test_only_a_scheme_with_a_mark_makes_two_links_one(links: Pair) -> None:
    if identify_url(links.one, NOW).key == identify_url(links.other, NOW).key:
        applied = {rule.name for url in (links.one, links.other) for rule in rules_for(read_source(url)) if rule.grants}
        assert applied, "merged, and no rule says by what right"
        assert applied <= set(MARKS)


def test_every_scheme_of_any_host_has_a_mark() -> None:
    assert {rule.name for rule in ANYWHERE} == set(MARKS)


@table("group", [pytest.param(group, id=f"{number}-{group[0][0]}") for number, group in enumerate(GROUPS)])
def test_bound_scheme_means_nothing_on_other_hosts(group: tuple[tuple[str, Shape], ...]) -> None:
    """Exhaustive where the property above is drawn: each member in turn has two values that fit it."""
    fitting = {name: [each for each in ORDINARY if shape.fits(each)] for name, shape in group}
    if not all(fitting.values()):
        return  # nothing ordinary fits
    for changed, path in product(fitting, PATHS):
        fields = [(name, found[0]) for name, found in fitting.items()]
        other = [(name, fitting[name][-1] if name == changed else value) for name, value in fields]
        urls = written(path, fields), written(path, other)
        applied = {rule.name for url in urls for rule in rules_for(read_source(url)) if rule.grants}
        merged = urls[0] != urls[1] and identify_url(urls[0], NOW).key == identify_url(urls[1], NOW).key
        assert not merged or (applied and applied <= set(MARKS)), (path, changed)


@table("rule", ANYWHERE, ids=lambda rule: rule.name)
def test_scheme_of_any_host_needs_its_mark(rule: Rule) -> None:
    """Every group needs the mark: a signer's own name, a value that no application makes, three names, or the path."""
    name, _, _value = MARKS[rule.name].partition("=")
    if rule.location.place is not None or rule.location.paths is not None:
        for path in ("/download", "/download.php", "/", "/get"):
            by_place = rule.location.place is None or rule.location.place.fullmatch(f"app.example.com{path}")
            by_path = rule.location.paths is None or rule.location.paths.match(path)
            assert not (by_place and by_path), path
        return
    for group in rule.groups:
        members = dict(group)
        mark = next((member for member in members if member.lower() == name.lower()), None)
        vendor = mark is not None and mark not in {"token", "sign", "authorization"}
        marked = [member for member, shape in members.items() if not any(shape.fits(each) for each in ORDINARY)]
        assert vendor or marked or len(members) >= 3, f"{sorted(members)} could be an application's own"


# --- the schemes that were bound, and what stays of them


@table(
    "query",
    [
        pytest.param("token={}&expires=1768050000", id="Bunny"),
        pytest.param("x-signature={}&x-expires=1768050000", id="ByteDance"),
        pytest.param("token=exp=1768050000~data={}~hmac=08ceefc08f3fae29dfff8c7a79a964e1", id="Akamai, with a payload"),
        pytest.param("token=exp=1768050000~id={}~hmac=08ceefc08f3fae29dfff8c7a79a964e1", id="Akamai, with a session"),
        pytest.param(
            "sign=q-sign-algorithm%3Dsha1%26file%3D{}%26q-signature%3D" + "a" * 40, id="COS, with more inside"
        ),
        pytest.param("AccessKeyId=1&Expires=1768050000&Signature={}", id="OBS, no HMAC-SHA1"),
        pytest.param("KeyName=k&Expires=1768050000&Signature={}", id="Cloud CDN, no MAC"),
        pytest.param(
            "KeyName=k&Expires=1768050000&Signature=5uCiFJ_-hg3YIzJgO4MLWmxZ7nQ&URLPrefix={}", id="Cloud CDN, no prefix"
        ),
    ],
)
@table("path", ["/download.php", "/get", "/image.png", "/photos/1"])
def test_unknown_host_keeps_its_signature_parameters(path: str, query: str) -> None:
    keys = {identify_url(f"https://app.example.com{path}?{query.format(c * 43)}", NOW).key for c in "abc"}
    assert len(keys) == 3


@table("path", ["/download.php", "/download", "/", "/get.aspx", "/media/"])
@table(
    "query",
    [
        "token=1768050000_{}", "auth_key=1768050000-rand-0-{}", "expires=1768050000&signature={}",
        "token={}&expires=1768050000",
    ],
)  # fmt: skip
@table("host", ["app.example.com", "acme.b-cdn.net"])
def test_path_of_a_script_is_no_image(host: str, path: str, query: str) -> None:
    size = 32 if "auth_key" in query else 64 if "signature" in query else 40 if "_{}" in query else 43
    keys = {identify_url(f"https://{host}{path}?{query.format(c * size)}", NOW).key for c in "abc"}
    assert len(keys) == 3


def test_unknown_segment_beside_a_bunny_token_stays() -> None:
    def key(more: str) -> str:
        return identify_url(f"https://cdn.acme.example/bcdn_token={'a' * 43}&expires=1768050000{more}/a.png", NOW).key

    assert len({key(""), key("&id=1"), key("&id=2")}) == 3
    assert key("") == key("&token_path=%2Fmy%2F&limit=5")


def test_link_with_a_token_has_its_end() -> None:
    for query in ("token={}&expires=1768050000", "token=exp=1768050000~data={}~hmac=08ceefc08f3fae29dfff8c7a79a964e1"):
        info = identify_url(f"https://app.example.com/download.php?{query.format('a' * 43)}", NOW)
        assert (info.temporary, info.expires_at) == (True, datetime(2026, 1, 10, 13, tzinfo=UTC))
        assert (info.scheme, info.permission) == ("Token with an end", False)


@given(st.tuples(PKS, ENDS, text(HEX, 64)), st.tuples(PKS, ENDS, text(HEX, 64)))
def test_laravel_route_is_identified_by_path_and_parameters(
    ours: tuple[int, int, str], theirs: tuple[int, int, str]
) -> None:
    """Laravel signs the whole URL with an HMAC, so two links that differ in the signature alone are one image."""
    for route in (
        "https://app.example.com/photos/{}?expires={}&signature={}",
        "https://app.example.com/photos/{}.png?expires={}&signature={}",
        "https://app.example.com/photos/a.png?user={}&expires={}&signature={}",
    ):
        same = identify_url(route.format(*ours), NOW).key == identify_url(route.format(*theirs), NOW).key
        assert same is (ours[0] == theirs[0])


# --- against a running server


@pytest.mark.parametrize(
    "query",
    [
        "token={}&expires=1999999999",
        "token=1999999999_{}",
        "expires=1999999999&signature={}",
        "x-signature={}&x-expires=1999999999",
        "hash={}&e=1999999999",
    ],
)
async def test_stranger_sees_no_image_of_another_token(imgkeep: Imgkeep, origin: FakeOrigin, query: str) -> None:
    size = 64 if "signature={}" in query else 40 if "_{}" in query else 43
    images = {c * size: make_image(seed=number) for number, c in enumerate("ab")}

    async def script(exchange: Exchange) -> None:
        found = next((body for token, body in images.items() if token in exchange.target), None)
        if found is None:
            await exchange.answer(b"no such token", status="403 Forbidden")
        else:
            await exchange.answer(found)

    url = origin.on("/download.php", script)
    for token, body in images.items():
        response = await imgkeep.img(f"{url}?{query.format(token)}")
        assert (response.status, await response.read()) == (200, body)
    invented = await imgkeep.img(f"{url}?{query.format('c' * size)}")
    assert invented.status in {410, 502}  # by whether the link says when it ends
    assert await invented.read() not in images.values()
    assert origin.asked("/download.php") == 3, "each of the three was asked of the origin"


async def test_operator_binds_a_scheme_to_a_host(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    rule: dict[str, Any] = {"name": "Acme", "like": "Bunny token", "hosts": ["127.0.0.1"]}
    imgkeep = await start(sources={"providers": [rule]})
    url = origin.gives("/my/dog.png", body := make_image(seed=3))
    for token in ("a" * 43, "b" * 43):
        response = await imgkeep.img(f"{url}?token={token}&expires=1999999999")
        assert await response.read() == body
    assert origin.asked("/my/dog.png") >= 1
    provider_rules = read_provider_rules([rule])
    keys = {identify_url(f"{url}?token={c * 43}&expires=1999999999", NOW, provider_rules).key for c in "ab"}
    assert len(keys) == 1
