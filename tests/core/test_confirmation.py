"""What a record is worth to a link, what a link's image means for a record, and what a probe has shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.confirmation import (
    FINGERPRINT_CHARS,
    Comparison,
    Link,
    RecordUse,
    adopt,
    can_confirm,
    can_prove,
    can_refresh,
    compare_records,
    confirmed,
    doubts_of,
    fingerprint,
    https_source,
    is_immutable_for,
    judge_record,
    key_of,
    may_change,
    merge,
    own_info,
    read_link,
    shared_identity,
    standing_of,
)
from imgkeep.core.identity import identify, read_provider_rules
from imgkeep.core.probe_result import ProbeResponse, ProbeResult, judge_probe
from imgkeep.core.records import Digest, Doubt, Standing
from imgkeep.core.source_url import read_source
from tests.support.records import (
    CONTESTED,
    ENDED,
    MINE,
    OTHER,
    PLAINTEXT,
    SCHEME,
    SIGNATURE,
    SPLIT,
    STORED,
    THEIRS,
    THIRD,
    UNSIGNED,
    link,
    record,
)
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgkeep.core.records import SourceInfo

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
RULES = read_provider_rules(
    [
        {
            "name": "Acme",
            "hosts": ["a.example"],
            "signed_by": {"sig": "hex64", "end": "epoch"},
            "expires": ["epoch end"],
        },
        {"name": "Strict", "hosts": ["a.example"], "signed_by": {"st": "hex64"}, "enforced": True, "temporary": True},
    ]
)
SIGNED = f"https://a.example/p.png?end=1893456000&sig={'a' * 64}"


def info_of(url: str) -> SourceInfo:
    return identify(read_source(url), NOW, RULES)


# Links


@pytest.mark.parametrize(
    ("url", "now", "kind"),
    [
        (SIGNED, NOW, (True, False, False, True, True)),
        (SIGNED, datetime(2030, 1, 1, tzinfo=UTC), (True, False, True, True, True)),
        (f"https://a.example/p.png?st={'a' * 64}", NOW, (True, True, False, True, True)),
        ("https://a.example/p.png", NOW, (False, True, False, True, True)),
        ("http://a.example/p.png", NOW, (False, True, False, False, True)),
        ("http://a.example:8080/p.png", NOW, (False, True, False, False, False)),
    ],
)
def test_link_has_the_facts_that_count(url: str, now: datetime, kind: tuple[bool, ...]) -> None:
    read = read_link(read_source(url), info_of(url), now)
    assert (read.signed, read.enforced, read.ended, read.secure, read.shares_https_key) == kind
    assert read.folded
    assert read.fingerprint == fingerprint(read_source(url))
    assert len(read.fingerprint) == FINGERPRINT_CHARS


def test_exact_identity_stands_for_itself() -> None:
    source = read_source(SIGNED.replace("https", "http"))
    info = identify(source, NOW, RULES, exact=True)
    read = read_link(source, info, NOW + timedelta(days=9999))
    assert (read.signed, read.ended, read.shares_https_key, read.folded) == (False, False, False, False)
    assert doubts_of(read, plaintext=True) == {UNSIGNED}
    assert https_source(source, info) is None


@pytest.mark.parametrize(
    ("url", "twin"),
    [
        ("http://a.example/p.png", "https://a.example/p.png"),
        ("http://a.example:443/p.png", "https://a.example/p.png"),
        ("https://a.example/p.png", None),
        ("http://a.example:8080/p.png", None),
    ],
)
def test_http_link_has_an_https_twin_where_both_share_a_key(url: str, twin: str | None) -> None:
    found = https_source(read_source(url), info_of(url))
    assert (found and found.url) == twin
    if twin is not None:
        assert info_of(twin).key == info_of(url).key


def test_own_identity_differs_and_names_the_shared_one() -> None:
    info = info_of(SIGNED)
    own = own_info(info, MINE)
    assert (own.identity, own.key) == (f"//a.example/p.png#link={MINE}", key_of(own.identity))
    assert own.key != info.key
    assert own_info(own, MINE) == own
    assert shared_identity(own.identity) == shared_identity(info.identity) == info.identity


@pytest.mark.parametrize(
    ("kind", "plaintext", "doubts"),
    [
        ("bare", False, {UNSIGNED}),
        ("signed", False, {SIGNATURE}),
        ("verified", False, set()),
        ("verified", True, {PLAINTEXT}),
        ("shaped", False, {SCHEME}),
        ("ended", True, {SIGNATURE, ENDED, PLAINTEXT}),
    ],
)
def test_image_has_the_doubts_of_its_link(
    kind: str,
    plaintext: bool,  # noqa: FBT001 - a table
    doubts: set[Doubt],
) -> None:
    assert doubts_of(link(kind), plaintext=plaintext) == doubts


# Records


@table(
    ("doubts", "to", "use", "forever"),
    [
        pytest.param((), link(), RecordUse.SERVE, True, id="confirmed"),
        pytest.param((), link("ended"), RecordUse.SERVE, True, id="confirmed, to an ended link"),
        pytest.param((CONTESTED,), link(), RecordUse.SERVE, True, id="confirmed and contested"),
        pytest.param((UNSIGNED,), link("bare"), RecordUse.SERVE, True, id="plain, to a bare link"),
        pytest.param((UNSIGNED,), link(), RecordUse.SECOND_FILL, False, id="plain, to a signed link"),
        pytest.param((UNSIGNED,), link("verified"), RecordUse.SECOND_FILL, False, id="plain, to a verified link"),
        pytest.param((UNSIGNED,), link("ended"), RecordUse.SERVE, False, id="plain, to an ended link"),
        pytest.param((SIGNATURE,), link(), RecordUse.SECOND_FILL, False, id="provisional, to another link"),
        pytest.param((SIGNATURE,), link("bare"), RecordUse.SECOND_FILL, False, id="provisional, to a bare link"),
        pytest.param(
            (SIGNATURE,), link("verified"), RecordUse.SECOND_FILL, False, id="provisional, to a verified link"
        ),
        pytest.param((SIGNATURE,), link("ended"), RecordUse.SERVE, False, id="provisional, to an ended link"),
        pytest.param(
            (SIGNATURE,), link(by=THEIRS), RecordUse.SERVE, False, id="provisional, to the link that brought it"
        ),
        pytest.param((SCHEME,), link("shaped"), RecordUse.SERVE, True, id="of a checked shape, to another such link"),
        pytest.param(
            (SCHEME,), link("verified"), RecordUse.SECOND_FILL, False, id="of a checked shape, to a verified link"
        ),
        pytest.param(
            (SCHEME,), link(), RecordUse.SECOND_FILL, False, id="of a checked shape, to an unchecked signature"
        ),
        pytest.param((SCHEME,), link("bare"), RecordUse.SECOND_FILL, False, id="of a checked shape, to a bare link"),
        pytest.param((UNSIGNED, SCHEME), link("bare"), RecordUse.SERVE, True, id="brought by both, to a bare link"),
        pytest.param(
            (UNSIGNED, SCHEME), link("shaped"), RecordUse.SERVE, True, id="brought by both, to a checked shape"
        ),
        pytest.param(
            (UNSIGNED, SCHEME), link(), RecordUse.SECOND_FILL, False, id="brought by both, to an unchecked signature"
        ),
        pytest.param((UNSIGNED,), link("shaped"), RecordUse.SECOND_FILL, False, id="plain, to a checked shape"),
        pytest.param((ENDED,), link(), RecordUse.SECOND_FILL, False, id="brought by an ended link"),
        pytest.param((SPLIT, SIGNATURE), link(), RecordUse.OWN_KEY, False, id="split, to another link"),
        pytest.param((SPLIT, SIGNATURE), link("ended"), RecordUse.OWN_KEY, False, id="split, to an ended link"),
        pytest.param((SPLIT,), link(by=THEIRS), RecordUse.SERVE, False, id="split, to the link that brought it"),
        pytest.param((PLAINTEXT,), link(), RecordUse.SECOND_FILL, False, id="plaintext, to an https link"),
        pytest.param(
            (PLAINTEXT,), link(secure=False), RecordUse.SERVE_AND_SEEK_HTTPS, False, id="plaintext, to an http link"
        ),
        pytest.param(
            (PLAINTEXT,),
            link(secure=False, shares_https_key=False),
            RecordUse.SERVE,
            True,
            id="plaintext, to http at another port",
        ),
        pytest.param(
            (PLAINTEXT,),
            link(shares_https_key=False),
            RecordUse.SECOND_FILL,
            False,
            id="plaintext, to https at another port",
        ),
        pytest.param(
            (PLAINTEXT, UNSIGNED),
            link("bare", secure=False),
            RecordUse.SERVE_AND_SEEK_HTTPS,
            False,
            id="plaintext, to bare http",
        ),
        pytest.param(
            (PLAINTEXT, SIGNATURE), link(secure=False), RecordUse.SECOND_FILL, False, id="plaintext and provisional"
        ),
    ],
)
def test_use_of_a_record_depends_on_its_worth_to_the_link(
    doubts: Iterable[Doubt],
    to: Link,
    use: RecordUse,
    forever: bool,  # noqa: FBT001 - a table
) -> None:
    known = record(*doubts)
    assert judge_record(known, to, tried=False) is use
    assert is_immutable_for(known.doubts, to) is forever
    if use is RecordUse.SECOND_FILL:
        assert judge_record(known, to, tried=True) in {RecordUse.SERVE, RecordUse.SERVE_AND_SEEK_HTTPS}
        assert not forever, "what is still to be tried is kept by no client"


@table(
    ("doubts", "identity", "standing"),
    [
        ((), "//a.example/p", Standing.CONFIRMED),
        ((CONTESTED,), "//a.example/p", Standing.CONFIRMED),
        ((UNSIGNED,), "//a.example/p", Standing.PLAIN),
        ((SCHEME,), "//a.example/p", Standing.CONFIRMED),
        ((SIGNATURE,), "//a.example/p", Standing.PROVISIONAL),
        ((ENDED,), "//a.example/p", Standing.PROVISIONAL),
        ((PLAINTEXT, UNSIGNED), "//a.example/p", Standing.PROVISIONAL),
        ((PLAINTEXT, UNSIGNED), "//[::1]/p", Standing.PROVISIONAL),
        ((PLAINTEXT, UNSIGNED), "//[::1]:8080/p", Standing.PLAIN),
        ((PLAINTEXT,), "//a.example:8080/p", Standing.CONFIRMED),
        ((SPLIT, SIGNATURE), "//a.example/p", Standing.SPLIT),
    ],
)
def test_standing_is_one_word(doubts: Iterable[Doubt], identity: str, standing: Standing) -> None:
    known = replace(record(*doubts), identity=identity)
    assert standing_of(known) is standing
    assert may_change(known) is not (known.doubts <= {UNSIGNED, SCHEME})


# What a link has brought


@table(
    ("old", "new", "same", "comparison"),
    [
        pytest.param((SIGNATURE,), (), False, Comparison.REPLACE, id="verified over provisional"),
        pytest.param((SIGNATURE,), (), True, Comparison.REPLACE, id="verified, the same bytes"),
        pytest.param((UNSIGNED,), (), False, Comparison.REPLACE, id="verified over plain"),
        pytest.param((PLAINTEXT,), (), False, Comparison.REPLACE, id="verified over plaintext"),
        pytest.param((SIGNATURE, PLAINTEXT), (PLAINTEXT,), False, Comparison.REPLACE, id="verified, both in the clear"),
        pytest.param((SIGNATURE,), (PLAINTEXT,), False, Comparison.OTHER, id="verified in the clear over https"),
        pytest.param((), (), False, Comparison.OTHER, id="nothing over confirmed"),
        pytest.param((SIGNATURE,), (SCHEME,), False, Comparison.OTHER, id="a shape over provisional"),
        pytest.param((UNSIGNED,), (SCHEME,), False, Comparison.OTHER, id="a shape over plain"),
        pytest.param((SCHEME,), (SCHEME,), False, Comparison.OTHER, id="a shape over a shape"),
        pytest.param(
            (UNSIGNED, SCHEME), (SCHEME,), False, Comparison.OTHER, id="a shape over what a bare link brought"
        ),
        pytest.param((SCHEME, ENDED), (SCHEME,), False, Comparison.REPLACE, id="a shape over an ended one"),
        pytest.param((SCHEME,), (), False, Comparison.REPLACE, id="verified over a shape"),
        pytest.param((SIGNATURE,), (SIGNATURE,), True, Comparison.EQUAL, id="equal"),
        pytest.param((SIGNATURE,), (SIGNATURE,), False, Comparison.OTHER, id="other"),
        pytest.param((SIGNATURE,), (UNSIGNED,), False, Comparison.OTHER, id="bare over provisional"),
        pytest.param((UNSIGNED,), (SIGNATURE,), False, Comparison.OTHER, id="signed over plain"),
        pytest.param((UNSIGNED, PLAINTEXT), (UNSIGNED,), False, Comparison.REPLACE, id="https over http"),
        pytest.param((PLAINTEXT,), (UNSIGNED,), False, Comparison.OTHER, id="bare https over verified http"),
        pytest.param((SIGNATURE, PLAINTEXT), (SIGNATURE,), False, Comparison.OTHER, id="https over http, unverified"),
    ],
)
def test_whole_image_is_weighed_by_its_doubts(
    old: tuple[Doubt, ...],
    new: tuple[Doubt, ...],
    same: bool,  # noqa: FBT001 - a table
    comparison: Comparison,
) -> None:
    brought = record(*new, digest=STORED if same else OTHER, by=MINE)
    assert compare_records(record(*old), brought) is comparison
    assert compare_records(record(*old, CONTESTED), brought) is comparison, (
        "that others have records of their own changes nothing"
    )


def test_same_link_by_https_replaces_its_image() -> None:
    known = record(SIGNATURE, PLAINTEXT, by=MINE)
    assert compare_records(known, record(SIGNATURE, digest=OTHER, by=MINE)) is Comparison.REPLACE


def test_unverified_link_replaces_no_image_of_https() -> None:
    """Of all doubts that there are: the property behind the table."""
    every = [frozenset(some) for size in range(7) for some in combinations([*Doubt][:6], size)]
    for old in every:
        for new in every:
            if PLAINTEXT not in old and new - {PLAINTEXT} and not (new == {SCHEME} and SCHEME in old):
                assert compare_records(record(*old), record(*new, digest=OTHER, by=MINE)) is Comparison.OTHER


@table(
    ("old", "new", "merged", "by"),
    [
        ((SIGNATURE,), (SIGNATURE,), {SIGNATURE}, THEIRS),
        ((SIGNATURE, PLAINTEXT), (SIGNATURE,), {SIGNATURE}, THEIRS),
        ((SIGNATURE,), (SIGNATURE, PLAINTEXT), {SIGNATURE}, THEIRS),
        ((SIGNATURE, ENDED, CONTESTED), (SIGNATURE,), {SIGNATURE, CONTESTED}, MINE),
        ((SIGNATURE, ENDED), (SIGNATURE, ENDED), {SIGNATURE, ENDED}, THEIRS),
        ((SIGNATURE, ENDED), (UNSIGNED,), {SIGNATURE, ENDED}, THEIRS),
        ((SIGNATURE, ENDED), (SIGNATURE, PLAINTEXT), {SIGNATURE, ENDED}, THEIRS),
        ((UNSIGNED,), (SIGNATURE,), {UNSIGNED}, THEIRS),
        ((UNSIGNED, CONTESTED), (SCHEME,), {UNSIGNED, SCHEME, CONTESTED}, THEIRS),
        ((SCHEME,), (UNSIGNED,), {SCHEME}, THEIRS),
        ((SIGNATURE,), (SCHEME,), {SIGNATURE}, THEIRS),
    ],
)
def test_equal_bytes_leave_unrelated_doubts(
    old: tuple[Doubt, ...], new: tuple[Doubt, ...], merged: set[Doubt], by: str
) -> None:
    known = merge(record(*old), record(*new, by=MINE))
    assert known.doubts == merged
    assert known.brought_by == by


def test_first_record_of_equal_bytes_is_adopted_with_what_the_second_proves() -> None:
    first, second = replace(record(PLAINTEXT), etag='"first"'), replace(record(by=MINE), etag='"second"')
    assert adopt(first, second) == first.with_doubts(frozenset())
    assert adopt(second, first) == second
    assert adopt(first, replace(second, digest=Digest("0" * 64))) is None


@table(
    ("old", "new", "by", "confirms"),
    [
        ((SIGNATURE,), (SIGNATURE,), MINE, True),
        ((SIGNATURE,), (SIGNATURE,), THEIRS, False),
        ((UNSIGNED,), (SIGNATURE,), MINE, True),
        ((SIGNATURE,), (UNSIGNED,), MINE, False),
        ((SIGNATURE,), (SIGNATURE, ENDED), MINE, False),
        ((SIGNATURE, ENDED), (SIGNATURE,), MINE, False),
        ((SIGNATURE,), (SIGNATURE, PLAINTEXT), MINE, False),
        ((SIGNATURE, PLAINTEXT), (SIGNATURE, PLAINTEXT), MINE, True),
        ((PLAINTEXT,), (SIGNATURE,), MINE, False),
        ((SCHEME,), (SIGNATURE,), MINE, True),
        ((SIGNATURE,), (SCHEME,), MINE, False),
        ((), (SIGNATURE,), MINE, False),
    ],
)
def test_another_unexpired_link_can_confirm(
    old: tuple[Doubt, ...],
    new: tuple[Doubt, ...],
    by: str,
    confirms: bool,  # noqa: FBT001 - a table
) -> None:
    assert can_confirm(record(*old), record(*new, by=by)) is confirms
    if confirms:
        assert can_prove(record(*old), record(*new, by=by))


@pytest.mark.parametrize(
    ("old", "new", "refreshes"),
    [
        ((), (), True),
        ((SIGNATURE,), (), True),
        ((SCHEME,), (SCHEME,), False),
        ((SIGNATURE,), (SCHEME,), False),
        ((PLAINTEXT,), (PLAINTEXT,), True),
        ((), (PLAINTEXT,), False),
        ((SIGNATURE,), (SIGNATURE,), False),
        ((UNSIGNED,), (UNSIGNED,), False),
        ((ENDED,), (ENDED,), False),
    ],
)
def test_only_a_verified_link_refreshes(
    old: tuple[Doubt, ...],
    new: tuple[Doubt, ...],
    refreshes: bool,  # noqa: FBT001 - a table
) -> None:
    assert can_refresh(record(*old), record(*new, digest=OTHER, by=MINE)) is refreshes


def test_confirmation_removes_the_doubts_it_settles() -> None:
    assert confirmed(record(SIGNATURE)) == record()
    assert confirmed(record(UNSIGNED)).doubts == set()
    kept = confirmed(record(SIGNATURE, PLAINTEXT, CONTESTED))
    assert kept.doubts == {PLAINTEXT, CONTESTED}
    assert kept.brought_by == THEIRS


# Probes

REFUSED, UNKNOWN = ProbeResponse.REFUSED, ProbeResponse.UNKNOWN


@table(
    ("brought", "spoiled", "control", "proof"),
    [
        pytest.param(STORED, (REFUSED, REFUSED), STORED, ProbeResult.DIFFERENCE, id="equal, refused"),
        pytest.param(STORED, (OTHER, OTHER), STORED, ProbeResult.DIFFERENCE, id="equal, a steady placeholder"),
        pytest.param(STORED, (OTHER, THIRD), STORED, ProbeResult.NOTHING, id="equal, an unsteady one"),
        pytest.param(STORED, (OTHER, REFUSED), STORED, ProbeResult.NOTHING, id="equal, now this, now that"),
        pytest.param(STORED, (STORED, STORED), UNKNOWN, ProbeResult.NO_DIFFERENCE, id="equal, nothing is checked"),
        pytest.param(STORED, (OTHER, STORED), UNKNOWN, ProbeResult.NO_DIFFERENCE, id="equal, at the second look"),
        pytest.param(STORED, (REFUSED, REFUSED), REFUSED, ProbeResult.NOTHING, id="equal, everything is refused"),
        pytest.param(STORED, (REFUSED, REFUSED), OTHER, ProbeResult.NOTHING, id="equal, something else by now"),
        pytest.param(STORED, (UNKNOWN, UNKNOWN), STORED, ProbeResult.NOTHING, id="equal, no answer"),
        pytest.param(STORED, (OTHER, UNKNOWN), STORED, ProbeResult.NOTHING, id="equal, no second answer"),
        pytest.param(OTHER, (STORED, STORED), OTHER, ProbeResult.PLACEHOLDER, id="other, the stored image is public"),
        pytest.param(OTHER, (STORED, STORED), STORED, ProbeResult.NOTHING, id="other, and the link shows that by now"),
        pytest.param(OTHER, (OTHER, OTHER), UNKNOWN, ProbeResult.NO_DIFFERENCE, id="other, its image is public"),
        pytest.param(OTHER, (REFUSED, REFUSED), OTHER, ProbeResult.DIFFERENCE, id="other, refused"),
        pytest.param(OTHER, (THIRD, THIRD), OTHER, ProbeResult.DIFFERENCE, id="other, a third"),
        pytest.param(OTHER, (THIRD, STORED), OTHER, ProbeResult.DIFFERENCE, id="other, each another"),
        pytest.param(OTHER, (REFUSED, REFUSED), REFUSED, ProbeResult.NOTHING, id="other, everything is refused"),
    ],
)
def test_verdict_of_a_probe(
    brought: Digest,
    spoiled: tuple[Digest | ProbeResponse, Digest | ProbeResponse],
    control: Digest | ProbeResponse,
    proof: ProbeResult,
) -> None:
    assert judge_probe(STORED, brought, spoiled, control) is proof
