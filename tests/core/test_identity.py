"""The given vectors, and what holds for every rule of the provider rules."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from imgkeep.core.identity import BUILT_IN, identify, identify_url, rules_for
from imgkeep.core.policy import Policy, judge
from imgkeep.core.source_url import read_source
from tests.support.tables import table

NOW = datetime(2026, 1, 10, 12, 30, tzinfo=UTC)  # inside the vectors' world: ten years are counted from here
CASES: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads(Path("tests/cases/source_urls.json").read_text("utf-8"))
}
INFOS = {name: identify_url(case["url"], NOW) for name, case in CASES.items()}

MERGED_ON_PURPOSE = {frozenset({"qiniu-fop", "qiniu-fop-resigned"})}
"""The vector's note leaves it open: a literal `|` goes over the wire as `%7C`, so both ask for the same."""

CHECKED: dict[str, bool | None] = {
    "s3v4-7d": True, "s3v2-did": True, "gcs-v4": True, "gcs-v2": True, "bfl": True, "wanx": True, "oss2": True,
    "cos-pack": True, "cos-sentinel": True, "obs": True, "baidu": True, "discord": True, "fb": True, "supabase": True,
    "onedrive": True,
    "hf-lfs": True,  # the host's rule counts more than CloudFront's on any host
    "cf-canned": True, "cf-custom": True, "gflow": False, "alicdn-auth": False, "qiniu": False, "fastly": False,
    "bunny-md5": False, "bunny-path": False, "imgix-exp": False, "tiktok": False, "cfimg": False, "xhs": False,
    "recraft": False,
    "next-dalle": False, "together": False,  # the link inside is checked; what the proxy shows then is not known
    "plain": None, "s3v4-nosig": None, "fal": None, "discord-icon": None, "dropbox-st": None, "rails": None,
    "discord-unsigned": None, "imgix-s": None,
}  # fmt: skip
"""By vector: whether a wrong signature gets an error; None: nothing that grants access is left out."""

EXAMPLES = [
    pytest.param(rule, url, applies, id=f"{rule.order}-{rule.name}-{'is' if applies else 'is-not'}-{number}")
    for rule in BUILT_IN.rules
    for applies, urls in ((True, rule.table.examples), (False, rule.table.counterexamples))
    for number, url in enumerate(urls)
]


def _named(case: dict[str, Any], field: str) -> list[str]:
    value = case.get(field) or []
    return [value] if isinstance(value, str) else value


def _families() -> dict[str, str]:
    """Each case's family: those that `same_as` connects, over however many steps."""
    family = {name: name for name in CASES}
    for name, case in CASES.items():
        for other in _named(case, "same_as"):
            mine, theirs = family[name], family[other]
            family = {member: theirs if of == mine else of for member, of in family.items()}
    return family


@table("name", CASES)
def test_link_has_its_expiry(name: str) -> None:
    case, info = CASES[name], INFOS[name]
    expected = case.get("expires_at")
    assert info.expires_at == (expected and datetime.fromisoformat(expected))
    assert info.temporary is case["temporary"]


@table("name", CASES)
def test_links_are_one_image_or_two(name: str) -> None:
    for other in _named(CASES[name], "same_as"):
        assert INFOS[name].identity == INFOS[other].identity
        assert INFOS[name].key == INFOS[other].key
    for other in _named(CASES[name], "different_from"):
        assert INFOS[name].key != INFOS[other].key


def test_no_two_images_share_a_key() -> None:
    family = _families()
    shared = {
        frozenset({one, other})
        for one, other in combinations(CASES, 2)
        if family[one] != family[other] and INFOS[one].key == INFOS[other].key
    }
    assert shared == MERGED_ON_PURPOSE


@table(("rule", "url", "applies"), EXAMPLES)
def test_every_rule_agrees_with_its_examples(rule: Any, url: str, *, applies: bool) -> None:
    assert (rule in rules_for(read_source(url))) is applies


def test_every_rule_has_examples_a_source_and_a_date() -> None:
    for rule in BUILT_IN.rules:
        assert rule.table.examples, rule.name
        assert rule.table.counterexamples, rule.name
        assert rule.table.source, rule.name
        assert rule.table.date, rule.name


def test_every_rule_states_whether_its_permission_is_checked() -> None:
    for rule in BUILT_IN.rules:
        table = rule.table
        decided = table.enforced is not None
        assert decided is (rule.grants or bool(table.nested)), rule.name
        if (table.becomes or table.drop) and not table.signed_by:
            assert table.permission is not None, rule.name


@table(("name", "checked"), sorted(CHECKED.items()))
def test_link_shows_whether_its_signature_is_enforced(name: str, *, checked: bool | None) -> None:
    info = INFOS[name]
    assert (info.enforced if info.permission else None) is checked


SHAPE = f"/a.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={'0' * 64}"


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("bucket.s3.us-west-2.amazonaws.com", True),
        ("s3.eu-central-1.amazonaws.com", True),
        ("account.r2.cloudflarestorage.com", True),
        ("cdn.example.com", False),
        ("d111111abcdef8.cloudfront.net", False),
        ("ec2-192-0-2-1.compute-1.amazonaws.com", False),
        ("x.execute-api.us-east-1.amazonaws.com", False),
    ],
)
def test_shape_proves_more_on_a_host_that_signs_so(host: str, *, known: bool) -> None:
    info = identify_url(f"https://{host}{SHAPE}", NOW)
    assert (info.permission, info.enforced, info.enforced_by_host) == (True, True, known)


def test_exact_identity_leaves_out_no_permission() -> None:
    info = identify(read_source(CASES["bunny-md5"]["url"]), NOW, exact=True)
    assert (info.enforced, info.permission) == (True, False)


def test_canonical_form_is_its_own() -> None:
    for url in [
        *(case["url"] for case in CASES.values()),
        *(url for _, url, _ in (param.values for param in EXAMPLES)),
    ]:
        text = identify_url(str(url), NOW).identity.partition("#")[0]
        assert identify_url(f"https:{text}", NOW).identity == text


def test_key_is_the_hash_of_the_identity() -> None:
    info = identify_url("https://EXAMPLE.com:443/a.png?b=1#c", NOW)
    assert info.identity == "//example.com/a.png?b=1"
    assert info.key == sha256(info.identity.encode()).hexdigest()


def test_exact_identity_is_the_whole_url() -> None:
    case = CASES["bfl"]
    source = read_source(case["url"])
    exact, usual = identify(source, NOW, exact=True), identify(source, NOW)
    assert exact.identity == source.url
    assert exact.key == sha256(source.url.encode()).hexdigest() != usual.key
    assert (exact.provider, exact.temporary, exact.expires_at, exact.scheme) == (
        "Black Forest Labs", True, usual.expires_at, "Azure SAS",
    )  # fmt: skip


def test_ten_years_are_counted_from_now() -> None:
    url = CASES["oaiuser-2123"]["url"]
    assert not identify_url(url, NOW).temporary
    assert identify_url(url, datetime(2120, 1, 1, tzinfo=UTC)).temporary


@table(
    ("url", "provider", "scheme"),
    [
        ("https://oaidalleapiprodscus.blob.core.windows.net/a.png", "OpenAI", None),
        ("https://other.blob.core.windows.net/a.png", None, None),
        ("https://delivery-eu4.bfl.ai/a.png", "Black Forest Labs", None),
        ("https://evil-replicate.delivery/a.png", None, None),
        ("https://replicate.delivery.example.com/a.png", None, None),
        (CASES["fb"]["url"], "Meta", "Meta"),
        (CASES["next-dalle"]["url"], "OpenAI", "Azure SAS"),
        (CASES["together"]["url"], "Together AI", "AWS Signature Version 4"),
        (CASES["novita"]["url"], "Novita", "AWS Signature Version 4"),
        (CASES["ig-dm"]["url"], "Instagram", "Instagram"),
    ],
)
def test_identity_names_provider_and_scheme(url: str, provider: str | None, scheme: str | None) -> None:
    info = identify_url(url, NOW)
    assert (info.provider, info.scheme) == (provider, scheme)


@table("glob", BUILT_IN.known_hosts)
def test_every_known_host_is_one_that_policy_can_match(glob: str) -> None:
    policy = Policy(hosts_allowed=BUILT_IN.known_hosts, hosts_denied=(), ports=frozenset({443}), networks=())
    assert judge(read_source(f"https://{glob.replace('*', 'x')}/a.png"), policy) is None
    assert judge(read_source("https://stranger.example.com/a.png"), policy) == "host is not in sources.allow"


@table(
    "host",
    [
        "evil.oss-cn-beijing.aliyuncs.com", "dashscope-result-evil.oss-cn-beijing.aliyuncs.com",
        "evil.s3.amazonaws.com", "s3.amazonaws.com", "figma-alpha-api.s3.evil.s3.amazonaws.com",
        "evil.blob.core.windows.net", "evil.supabase.co", "evil-space.hf.space", "evil.imgix.net", "evil.b-cdn.net",
        "evil.cloudfront.net", "aiart-1.cos.ap-guangzhou.myqcloud.com", "maas-evil.ufileos.com", "evil.bj.bcebos.com",
        "ark-content-generation-v2-evil.tos-cn-beijing.volces.com", "evil.sharepoint.com", "evil.backblazeb2.com",
        "api-images-getimg.evil.r2.cloudflarestorage.com", "imagedelivery.net", "wsrv.nl", "storage.googleapis.com",
        "app.example.com",
    ],
)  # fmt: skip
def test_name_that_strangers_can_get_is_not_known(host: str) -> None:
    policy = Policy(hosts_allowed=BUILT_IN.known_hosts, hosts_denied=(), ports=frozenset({443}), networks=())
    assert policy.host_refusal(host) == "host is not in sources.allow"


SAS = "sv=2020-01-01&sr=b&se=2026-01-10T13:00:00Z&sig=aaaaaaaaaaaaaaaa"
SIGV4 = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=" + "a" * 64


@pytest.mark.parametrize(
    ("url", "more"),
    [
        (f"https://shop.example/img?id=5&{SAS}", "st=red"),
        (f"https://shop.example/img?id=5&{SAS}", "sp=red"),
        (f"https://shop.example/img?id=5&{SAS}", "ss=red"),
        (f"https://shop.example/img?id=5&{SAS}", "scid=red"),
        (f"https://shop.example/img?id=5&{SAS}", "st=2026-01-10&st=2026-01-11"),
        (f"https://shop.example/img?id=5&{SIGV4}", "x-id=7"),
        (f"https://shop.example/a.png?expires=1768050000&token={'a' * 43}", "limit=5"),
    ],
)
def test_common_parameter_beside_a_signature_is_content(url: str, more: str) -> None:
    assert identify_url(f"{url}&{more}", NOW).key != identify_url(url, NOW).key


@pytest.mark.parametrize(
    ("url", "more"),
    [
        (f"https://b.example/a.png?{SAS}", "st=2026-01-10T11:00:00Z&sp=rcw&spr=https&sip=203.0.113.9"),
        (f"https://b.example/a.png?{SAS}", "skoid=ff4452bd-5cd6-42fc-a509-dd7dc096028f&sks=b&skv=2024-08-04"),
        (f"https://b.example/a.png?{SIGV4}", "x-id=GetObject"),
    ],
)
def test_parameters_of_a_signature_do_not_count(url: str, more: str) -> None:
    assert identify_url(f"{url}&{more}", NOW).key == identify_url(url, NOW).key


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York"])
def test_end_does_not_depend_on_where_the_machine_is(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        url = f"https://b.bj.bcebos.com/a?authorization=bce-auth-v1/AK/2026-01-10T12:00:00/600/host/{'a' * 64}"
        assert identify_url(url, NOW).expires_at == datetime(2026, 1, 10, 12, 10, tzinfo=UTC)
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
