"""Links with another signature: alike in all but that."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity import BUILT_IN, identify, read_provider_rules
from imgkeep.core.identity.invalid_signature import REPLACED_CHARS, make_invalid_signature
from imgkeep.core.source_url import read_source
from tests.support.tables import table

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CASES = {
    case["id"]: case["url"]
    for case in json.loads((Path(__file__).parents[1] / "cases" / "source_urls.json").read_text("utf-8"))
}
ENDS: dict[str, str] = {
    "fastly": "3ab4b5b13f0061487814ab5e4e9b8",
    "alicdn-auth": "ff48423ac51a2a3f49a94fb",
    "qiniu": "H9hlcozRPjjD4xLbXq",
    "discord": "ea2dba6a21aa26549b8a36242885c",
    "imgix-exp": "277008ceecd5530299a15ea",
    "flaticon": "8abf4911ff6c931b5b0f589",
    "xhs": "f03ddd0d3dc7761eed86303",
    "next-dalle": "fYFLIo2wvL6BkPo0fbjEbcnSNUim9",
    "tiktok": "FPv",
}
"""What stands right before the characters that are replaced: the beginning of the signature, and nothing else."""


def first(_below: int) -> int:
    return 0


@table("name", CASES)
def test_invalid_link_differs_in_a_few_characters(name: str) -> None:
    try:
        source = read_source(CASES[name])
    except SourceRejected:
        return
    info = identify(source, NOW)
    invalid = make_invalid_signature(source, NOW, BUILT_IN, first)
    if invalid is None:
        return
    assert info.permission, "nothing but a permission is invalid"
    assert identify(invalid, NOW) == info
    assert (invalid.scheme, invalid.host, invalid.port) == (source.scheme, source.host, source.port)
    assert len(invalid.target) == len(source.target)
    changed = [at for at, (old, new) in enumerate(zip(source.target, invalid.target, strict=True)) if old != new]
    assert 5 <= len(changed) <= REPLACED_CHARS
    assert changed == list(range(changed[0], changed[0] + len(changed)))


def test_most_links_with_a_permission_can_be_invalid() -> None:
    sources = []
    for url in CASES.values():
        try:
            sources.append(read_source(url))
        except SourceRejected:
            continue
    signed = [source for source in sources if identify(source, NOW).permission]
    invalid = [source for source in signed if make_invalid_signature(source, NOW, BUILT_IN, first) is not None]
    assert len(signed) > 100
    assert len(invalid) > 0.9 * len(signed)


@pytest.mark.parametrize("name", ENDS)
def test_signature_alone_is_invalid(name: str) -> None:
    source = read_source(CASES[name])
    invalid = make_invalid_signature(source, NOW, BUILT_IN, first)
    assert invalid is not None
    at = next(at for at, (old, new) in enumerate(zip(source.target, invalid.target, strict=True)) if old != new)
    assert source.target[:at].endswith(ENDS[name])


@given(st.randoms(use_true_random=False))
def test_two_draws_give_two_links_of_one_alphabet(random: object) -> None:
    source = read_source(CASES["discord"])
    links = [make_invalid_signature(source, NOW, BUILT_IN, random.randrange) for _ in range(3)]  # type: ignore[attr-defined]
    genuine = source.target.rpartition("hm=")[2][:64]
    for link in links:
        assert link is not None
        signature = link.target.rpartition("hm=")[2][:64]
        assert set(signature) <= set("0123456789abcdef")
        assert signature[:-9] == genuine[:-9]
        assert all(old != new for old, new in zip(genuine[-9:-1], signature[-9:-1], strict=True))


@pytest.mark.parametrize("signature", ["aB" * 32, "aBcDeFaB" * 8])
def test_signature_of_hex_digits_of_both_cases_stays_one(signature: str) -> None:
    provider_rules = read_provider_rules([{"name": "Acme", "hosts": ["a.example"], "signed_by": {"sig": "hex64"}}])
    source = read_source(f"https://a.example/p.png?sig={signature}")
    for draw in range(26):
        invalid = make_invalid_signature(source, NOW, provider_rules, lambda below, draw=draw: draw % below)  # type: ignore[misc]
        assert invalid is not None


@given(st.binary(min_size=20, max_size=64), st.randoms(use_true_random=False))
def test_signature_in_base64_stays_one_for_strict_decoders(signature: bytes, random: object) -> None:
    """An error that only says that a text is no base64 would be taken for a refusal of the signature."""
    provider_rules = read_provider_rules([{"name": "Acme", "hosts": ["a.example"], "signed_by": {"sig": "signature"}}])
    source = read_source(f"https://a.example/p.png?sig={quote(b64encode(signature).decode(), safe='')}")
    invalid = make_invalid_signature(source, NOW, provider_rules, random.randrange)  # type: ignore[attr-defined]
    if invalid is not None:
        text = unquote(invalid.target.partition("sig=")[2])
        assert b64encode(b64decode(text)).decode() == text


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/p.png",
        "https://a.example/p.png?token=secret",
        "https://img.acme.example/p.png?sig=ab-cd-ef-gh",
        "https://img.acme.example/abcdefghij.png?sig=abcdefghij",
        "https://proxy.acme.example/p?url=https%3A%2F%2Fa.example%2Fp.png",
        "https://proxy.acme.example/p?url=no-link",
    ],
    ids=["bare", "not known", "too short a run", "given twice", "nothing inside is signed", "nothing inside"],
)
def test_link_without_a_known_signature_is_not_invalid(url: str) -> None:
    provider_rules = read_provider_rules(
        [
            {"name": "Acme", "hosts": ["img.acme.example"], "signed_by": {"sig": "/[a-z-]+/"}, "temporary": True},
            {"name": "Proxy", "hosts": ["proxy.acme.example"], "keep": ["url"], "nested": "url"},
        ]
    )
    assert make_invalid_signature(read_source(url), NOW, provider_rules, first) is None


def test_too_deeply_nested_link_is_not_invalid() -> None:
    provider_rules = read_provider_rules(
        [
            {"name": "Proxy", "hosts": ["proxy.acme.example"], "keep": ["url"], "nested": "url"},
            {"name": "Acme", "hosts": ["img.acme.example"], "signed_by": {"sig": "hex64"}, "temporary": True},
        ]
    )
    url = f"https://img.acme.example/p.png?sig={'0a' * 32}"
    for depth in range(4):
        invalid = make_invalid_signature(read_source(url), NOW, provider_rules, first)
        assert (invalid is not None) is (depth <= 2)
        url = f"https://proxy.acme.example/p?url={quote(url, safe='')}"


def test_link_that_reads_otherwise_when_invalid_is_not_used() -> None:
    provider_rules = read_provider_rules(
        [
            {
                "name": "Acme",
                "hosts": ["img.acme.example"],
                "signed_by": {"packed": "/[0-9]{10}/"},
                "expires": ["epoch packed"],
            },
        ]
    )
    source = read_source("https://img.acme.example/p.png?packed=1893456000")
    assert identify(source, NOW, provider_rules).permission
    assert make_invalid_signature(source, NOW, provider_rules, first) is None
