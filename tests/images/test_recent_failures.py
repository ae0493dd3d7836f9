"""The memory of failures is bounded, and no host displaces the failures of others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.errors import OriginError, SourceForbidden, SourceNotFound, Yielded
from imgkeep.core.records import Key, Subject
from imgkeep.images.failure_history import (
    DETAIL_CHARS_MAX,
    ENTRIES_MAX,
    PER_HOST_MAX,
    POLICY_SHARE,
    RecentFailures,
    merge_failures,
)

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def subject(number: int, host: str = "a.example") -> Subject:
    return Subject(Key(f"{number:064x}"), host, "Acme")


def test_failures_of_key_and_code_are_one_entry() -> None:
    failures = RecentFailures(Clock())
    for _ in range(3):
        failures.note(subject(1), SourceNotFound("the origin says 404", origin_status=404))
    failures.note(subject(1), OriginError("the origin says 500", origin_status=500))
    last, first = failures.list()
    assert (last.code, last.count, last.origin_status) == ("origin_error", 1, 500)
    assert (first.code, first.count, first.detail) == ("source_not_found", 3, "the origin says 404")
    assert first.last_at - first.first_at == timedelta(seconds=2)
    assert (first.key, first.host, first.provider) == (subject(1).key, "a.example", "Acme")


def test_each_host_has_a_share_and_refused_links_share_one() -> None:
    failures = RecentFailures(Clock())
    failures.note(subject(9999, "quiet.example"), OriginError("it failed"))
    for number in range(2 * ENTRIES_MAX):
        failures.note(subject(number, "noisy.example"), OriginError("it failed"))
        failures.note(subject(number, f"h{number}.example"), SourceForbidden("no"), share=POLICY_SHARE)
    hosts = [entry.host for entry in failures.list()]
    assert hosts.count("noisy.example") == PER_HOST_MAX
    assert len(hosts) == 2 * PER_HOST_MAX + 1
    assert hosts[-1] == "quiet.example"


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 9)), max_size=1500))
def test_memory_is_bounded_and_holds_the_latest(noted: list[tuple[int, int]]) -> None:
    failures = RecentFailures(Clock())
    for number, host in noted:
        failures.note(subject(number, f"h{host}.example"), OriginError("it failed"))
    entries = failures.list()
    assert len(entries) <= ENTRIES_MAX
    assert entries == sorted(entries, key=lambda entry: entry.last_at, reverse=True)
    assert all(sum(entry.host == f"h{host}.example" for entry in entries) <= PER_HOST_MAX for host in range(10))
    assert not noted or entries[0].key == subject(noted[-1][0]).key


def test_entries_hide_internals_and_omit_yields() -> None:
    failures = RecentFailures(Clock())
    failures.note(subject(1), Yielded("stopped"))
    assert failures.list() == []
    failures.note(subject(1), ZeroDivisionError("https://a.example/?sig=SECRET"))
    failures.note(subject(2), OriginError("x" * 10_000))
    long, ours = failures.list()
    assert (ours.code, ours.detail) == ("internal_error", "the server had an internal error")
    assert len(long.detail) == DETAIL_CHARS_MAX


def test_entries_of_workers_are_merged() -> None:
    clock = Clock()
    one, two = RecentFailures(clock), RecentFailures(clock)
    one.note(subject(1), OriginError("first"))
    two.note(subject(2), OriginError("other"))
    two.note(subject(1), OriginError("second"))
    merged = merge_failures([one.list(), two.list()], 10)
    assert [(entry.key, entry.count, entry.detail) for entry in merged] == [
        (subject(1).key, 2, "second"),
        (subject(2).key, 1, "other"),
    ]
    assert merged[0].first_at == NOON + timedelta(seconds=1)
    assert merge_failures([two.list(), one.list()], 1) == merged[:1]
