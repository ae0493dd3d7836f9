"""What becomes of an image that its format calls incomplete: who may have it fetched again, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from imgkeep.core.confirmation import (
    Comparison,
    RecordUse,
    can_complete,
    can_confirm,
    can_prove,
    compare_records,
    is_immutable_for,
    judge_record,
    may_change,
    merge,
    needs_separate_record,
    replacing_record,
    standing_of,
)
from imgkeep.core.records import Doubt, Record, Refetches, Standing
from imgkeep.core.refetch_rules import (
    CONFIRM_AFTER_S,
    EQUAL_REFETCHES_MIN,
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    RefetchDecision,
    RefetchOutcome,
    decide_refetch,
    due_at,
    is_confirmed_as_it_is,
    is_incomplete,
    judge_refetch,
    mark,
    may_be_forged,
    record_after_longer,
    record_after_refetch,
)
from tests.support.records import (
    CONTESTED,
    ENDED,
    MINE,
    OTHER,
    PLAINTEXT,
    SCHEME,
    SIGNATURE,
    SPLIT,
    THEIRS,
    UNSIGNED,
    link,
    record,
)
from tests.support.tables import table

INCOMPLETE = Doubt.INCOMPLETE
BEGAN = record().stored_at


def cut(*doubts: Doubt, **options: object) -> Record:
    return record(*doubts, INCOMPLETE, **options)  # type: ignore[arg-type]  # as `record`


def after(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


# What it is worth


def test_incomplete_image_is_provisional_and_served() -> None:
    known = cut()
    assert standing_of(known) is Standing.PROVISIONAL
    assert may_change(known), "another node may complete it"
    for kind in ("verified", "shaped", "signed", "bare"):
        assert not is_immutable_for(known.doubts, link(kind))
        assert judge_record(known, link(kind), tried=False) is RecordUse.SERVE


def test_late_finding_marks_all_but_confirmed_images() -> None:
    assert mark(record()).doubts == {INCOMPLETE}
    confirmed = replace(record(), trust=replace(record().trust, refetches=Refetches(8, 3, BEGAN, BEGAN)))
    assert is_confirmed_as_it_is(confirmed)
    assert mark(confirmed) == confirmed
    assert not is_confirmed_as_it_is(replace(cut(), trust=replace(cut().trust, refetches=confirmed.refetches)))
    assert not is_confirmed_as_it_is(record())


# When


def test_interval_grows_from_a_minute_to_a_day() -> None:
    known = cut()
    assert due_at(known) == BEGAN + after(INTERVAL_MIN_S)
    intervals, now = [], BEGAN
    for _ in range(10):
        intervals.append((due_at(known) - now).total_seconds())
        now = due_at(known)
        known = record_after_refetch(known, RefetchOutcome.FAILED, now)
    assert intervals[:4] == [60, 180, 540, 1620]
    assert intervals[-2:] == [INTERVAL_MAX_S] * 2
    assert sum(intervals[:9]) < 3 * 86_400


@pytest.mark.parametrize("tries", [-5, 10**9])
def test_record_with_absurd_values_has_an_interval(tries: int) -> None:
    known = replace(cut(), trust=replace(cut().trust, refetches=Refetches(tries, 0, BEGAN, BEGAN)))
    assert INTERVAL_MIN_S <= (due_at(known) - BEGAN).total_seconds() <= INTERVAL_MAX_S


@table(
    ("doubts", "kind", "by", "ask"),
    [
        pytest.param((), "verified", MINE, RefetchDecision.IN_INTERVAL, id="as verified as what brought it"),
        pytest.param((SIGNATURE,), "verified", MINE, RefetchDecision.IN_INTERVAL, id="better"),
        pytest.param((SIGNATURE,), "signed", THEIRS, RefetchDecision.IN_INTERVAL, id="the link that brought it"),
        pytest.param((SIGNATURE,), "signed", MINE, RefetchDecision.ONCE, id="an unverified link"),
        pytest.param((), "signed", MINE, RefetchDecision.ONCE, id="an unverified link, after a confirmation"),
        pytest.param((), "bare", MINE, RefetchDecision.ONCE, id="bare, of what a signature brought"),
        pytest.param((UNSIGNED,), "bare", MINE, RefetchDecision.IN_INTERVAL, id="bare"),
        pytest.param((UNSIGNED, PLAINTEXT), "bare", MINE, RefetchDecision.IN_INTERVAL, id="bare, in the clear"),
        pytest.param((UNSIGNED,), "signed", MINE, RefetchDecision.ONCE, id="signed, of what a bare link brought"),
        pytest.param((SCHEME,), "shaped", MINE, RefetchDecision.IN_INTERVAL, id="of its shape"),
        pytest.param((SIGNATURE,), "ended", THEIRS, RefetchDecision.NEVER, id="it has ended"),
    ],
)
def test_links_that_may_refetch(doubts: tuple[Doubt, ...], kind: str, by: str, ask: RefetchDecision) -> None:
    asking = replace(link(kind, by=by), ended=kind == "ended")
    assert decide_refetch(cut(*doubts), asking) is ask
    assert decide_refetch(cut(*doubts, CONTESTED), asking) is ask


# What it brought


@table(
    ("old", "new", "continues", "by", "comparison"),
    [
        pytest.param((), (), False, MINE, Comparison.REPLACE, id="whole, as verified"),
        pytest.param((UNSIGNED,), (UNSIGNED,), False, MINE, Comparison.REPLACE, id="whole, bare"),
        pytest.param((SIGNATURE,), (SIGNATURE,), False, THEIRS, Comparison.REPLACE, id="whole, the same link"),
        pytest.param((SIGNATURE,), (SIGNATURE,), False, MINE, Comparison.OTHER, id="whole, an unverified link"),
        pytest.param((SIGNATURE,), (SIGNATURE,), True, MINE, Comparison.REPLACE, id="more of it, an unverified link"),
        pytest.param((), (SIGNATURE,), True, MINE, Comparison.REPLACE, id="more of it, by any link"),
        pytest.param(
            (), (SIGNATURE, PLAINTEXT), True, MINE, Comparison.OTHER, id="more of it, in the clear over https"
        ),
        pytest.param((), (SIGNATURE,), False, MINE, Comparison.OTHER, id="whole, an unverified link over verified"),
        pytest.param((), (UNSIGNED,), False, MINE, Comparison.OTHER, id="whole, bare over verified"),
        pytest.param((), (PLAINTEXT,), False, MINE, Comparison.OTHER, id="whole, in the clear over https"),
        pytest.param((SCHEME,), (SCHEME,), False, MINE, Comparison.OTHER, id="whole, of its shape"),
        pytest.param((SCHEME,), (SCHEME,), False, THEIRS, Comparison.REPLACE, id="whole, of its shape, by its link"),
        pytest.param((SCHEME,), (SCHEME,), True, MINE, Comparison.REPLACE, id="whole, of its shape, and goes on"),
        pytest.param((UNSIGNED, SCHEME), (SCHEME,), False, MINE, Comparison.OTHER, id="whole, a shape over bare"),
        pytest.param((SIGNATURE,), (), False, MINE, Comparison.REPLACE, id="whole, verified"),
        pytest.param((INCOMPLETE,), (INCOMPLETE,), False, MINE, Comparison.OTHER, id="another incomplete one"),
        pytest.param((INCOMPLETE,), (INCOMPLETE,), True, MINE, Comparison.REPLACE, id="longer"),
        pytest.param((SIGNATURE,), (INCOMPLETE,), False, MINE, Comparison.REPLACE, id="incomplete, verified over not"),
    ],
)
def test_replacement_of_an_incomplete_image(
    old: tuple[Doubt, ...],
    new: tuple[Doubt, ...],
    continues: bool,  # noqa: FBT001 - a table
    by: str,
    comparison: Comparison,
) -> None:
    brought = record(*new, digest=OTHER, by=by)
    assert compare_records(cut(*old), brought, continues=continues) is comparison
    outcome = judge_refetch(cut(*old), brought, continues=continues)
    better = RefetchOutcome.LONGER if INCOMPLETE in new else RefetchOutcome.WHOLE
    assert outcome is (better if comparison is Comparison.REPLACE else RefetchOutcome.OTHER)


@pytest.mark.parametrize("old", [(), (SIGNATURE,), (UNSIGNED,), (ENDED,), (PLAINTEXT,)])
def test_nothing_incomplete_takes_the_place_of_a_whole_image(old: tuple[Doubt, ...]) -> None:
    for new in ((), (UNSIGNED,), (SIGNATURE,)):
        for continues in (False, True):
            assert (
                compare_records(record(*old), cut(*new, digest=OTHER, by=MINE), continues=continues) is Comparison.OTHER
            )


def test_equal_bytes_are_no_weight() -> None:
    assert compare_records(cut(SIGNATURE), cut(SIGNATURE, by=MINE)) is Comparison.EQUAL
    assert compare_records(cut(SIGNATURE), cut(by=MINE)) is Comparison.REPLACE, "by a better link"
    assert judge_refetch(cut(), cut(), continues=False) is RefetchOutcome.EQUAL
    assert judge_refetch(cut(), record(), continues=False) is RefetchOutcome.WHOLE, "judged better than before"


def test_equal_bytes_three_times_over_a_day_confirm_it() -> None:
    known, now = cut(SIGNATURE), BEGAN
    for tries in range(1, 20):
        now = due_at(known)
        known = record_after_refetch(known, RefetchOutcome.EQUAL, now)
        assert known.refetches == Refetches(tries, tries, BEGAN, now)
        if not is_incomplete(known):
            break
    assert (now - BEGAN).total_seconds() >= CONFIRM_AFTER_S
    assert tries == 8
    assert known.doubts == {SIGNATURE}
    assert known.brought_by == THEIRS
    assert is_confirmed_as_it_is(known)


def test_day_alone_confirms_nothing() -> None:
    known = cut()
    for number in range(1, EQUAL_REFETCHES_MIN + 1):
        assert is_incomplete(known)
        known = record_after_refetch(known, RefetchOutcome.EQUAL, BEGAN + after(CONFIRM_AFTER_S * number))
    assert not known.doubts
    assert known.brought_by == ""


def test_other_bytes_restart_the_count_and_failures_do_not() -> None:
    late = BEGAN + after(CONFIRM_AFTER_S * 2)
    twice = replace(cut(), trust=replace(cut().trust, refetches=Refetches(5, 2, BEGAN, BEGAN)))
    assert not is_incomplete(
        record_after_refetch(record_after_refetch(twice, RefetchOutcome.FAILED, late), RefetchOutcome.EQUAL, late)
    )
    other = record_after_refetch(twice, RefetchOutcome.OTHER, late)
    assert other.refetches == Refetches(6, 0, late, late)
    assert is_incomplete(record_after_refetch(other, RefetchOutcome.EQUAL, late))


def test_bytes_that_were_misjudged_lose_the_doubt() -> None:
    known = replace(cut(UNSIGNED), trust=replace(cut(UNSIGNED).trust, refetches=Refetches(2, 1, BEGAN, BEGAN)))
    assert record_after_refetch(known, RefetchOutcome.WHOLE, BEGAN) == record(UNSIGNED)


def test_longer_image_restarts_the_count_at_the_same_interval() -> None:
    known = replace(cut(CONTESTED), trust=replace(cut(CONTESTED).trust, refetches=Refetches(4, 2, BEGAN, BEGAN)))
    now = BEGAN + after(9_000)
    longer = record_after_longer(known, cut(digest=OTHER, by=MINE), now)
    assert longer.refetches == Refetches(5, 0, now, now)
    assert longer.doubts == {INCOMPLETE, CONTESTED}
    assert record_after_longer(cut(), cut(digest=OTHER), now).refetches == Refetches(1, 0, now, now)


# What links show meanwhile


def test_equal_bytes_by_another_link_leave_it_incomplete() -> None:
    assert merge(cut(SIGNATURE), cut(SIGNATURE, by=MINE)).doubts == {SIGNATURE, INCOMPLETE}
    assert merge(cut(ENDED, SIGNATURE), cut(SIGNATURE, by=MINE)).doubts == {SIGNATURE, INCOMPLETE}
    assert merge(cut(UNSIGNED), cut(SCHEME, by=MINE)).doubts == {UNSIGNED, SCHEME, INCOMPLETE}
    assert merge(record(SIGNATURE), cut(SIGNATURE, by=MINE)).doubts == {SIGNATURE, INCOMPLETE}, "stored before"
    confirmed = replace(
        record(SIGNATURE), trust=replace(record(SIGNATURE).trust, refetches=Refetches(8, 3, BEGAN, BEGAN))
    )
    assert merge(confirmed, cut(SIGNATURE, by=MINE)) == confirmed
    assert merge(confirmed, cut(PLAINTEXT, by=MINE)) == confirmed
    assert merge(cut(SIGNATURE), record(SIGNATURE, by=MINE)).doubts == {SIGNATURE}, "judged better than before"


def test_replacement_is_judged_by_its_own_bytes() -> None:
    known = replace(
        cut(SIGNATURE, CONTESTED),
        trust=replace(cut(SIGNATURE, CONTESTED).trust, refetches=Refetches(1, 1, BEGAN, BEGAN)),
    )
    whole = replacing_record(known, record(digest=OTHER, by=MINE))
    assert (whole.doubts, whole.refetches) == (frozenset({CONTESTED}), None)
    equal = replacing_record(known, replace(cut(by=MINE), etag='"new"'))
    assert (equal.doubts, equal.refetches) == (frozenset({CONTESTED, INCOMPLETE}), known.refetches)
    assert equal.etag == known.etag
    confirmed = replace(record(SIGNATURE), trust=replace(record(SIGNATURE).trust, refetches=known.refetches))
    assert replacing_record(confirmed, cut(by=MINE)) == replace(
        record(), trust=replace(record().trust, refetches=known.refetches)
    )


@pytest.mark.parametrize(
    ("old", "new", "continues", "by", "leaves"),
    [
        ((SIGNATURE,), (), False, MINE, True),
        ((SIGNATURE, INCOMPLETE), (), False, MINE, True),
        ((SIGNATURE, INCOMPLETE), (SIGNATURE,), False, THEIRS, False),
        ((SIGNATURE, INCOMPLETE), (SIGNATURE,), True, MINE, False),
        ((SCHEME, INCOMPLETE), (SCHEME,), False, MINE, True),
        ((SCHEME, ENDED), (SCHEME,), False, MINE, True),
        ((SCHEME,), (), False, MINE, False),
        ((UNSIGNED, INCOMPLETE), (UNSIGNED,), False, MINE, False),
    ],
)
def test_replaced_image_is_still_shown_to_its_own_link(
    old: tuple[Doubt, ...],
    new: tuple[Doubt, ...],
    continues: bool,  # noqa: FBT001 - a table
    by: str,
    leaves: bool,  # noqa: FBT001 - a table
) -> None:
    assert needs_separate_record(record(*old), record(*new, digest=OTHER, by=by), continues=continues) is leaves


def test_incomplete_bytes_prove_nothing_against_whole_ones() -> None:
    assert not can_prove(record(SIGNATURE), cut(SIGNATURE, digest=OTHER, by=MINE))
    assert can_prove(cut(SIGNATURE), record(SIGNATURE, digest=OTHER, by=MINE))
    assert can_confirm(cut(SIGNATURE), cut(SIGNATURE, by=MINE)), "that the signature makes a difference"


def test_shaped_link_completes_an_image_where_its_signature_counts() -> None:
    whole = record(SCHEME, digest=OTHER, by=MINE)
    assert can_complete(cut(SCHEME), whole)
    assert not can_complete(record(SCHEME), whole)
    assert not can_complete(cut(SCHEME), record(SIGNATURE, digest=OTHER, by=MINE))
    assert not can_complete(cut(SCHEME), record(SCHEME, PLAINTEXT, digest=OTHER, by=MINE))
    assert can_complete(cut(SCHEME, PLAINTEXT), record(SCHEME, PLAINTEXT, digest=OTHER, by=MINE))


def test_refusal_counts_by_the_link_that_brought_the_image() -> None:
    assert may_be_forged(cut(), link("verified"))
    assert not may_be_forged(cut(by=MINE), link("verified"))
    assert not may_be_forged(cut(UNSIGNED), link("bare"))


def test_split_key_stays_split() -> None:
    assert judge_record(cut(SPLIT), link("bare"), tried=False) is RecordUse.OWN_KEY
