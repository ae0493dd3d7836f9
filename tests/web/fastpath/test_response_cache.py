"""The table of prepared answers: bounded by what it takes, the least recently asked for leaving first."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime

from imgkeep.storage.local.memory_cache import CacheEntry
from imgkeep.web.fastpath.response_cache import FRESHNESS_LIFETIME_S, CachedResponse, ResponseCache

COMMON = {"Cache-Control": "public, max-age=31536000, immutable", "X-Common": "yes"}


class FakeEntry(CacheEntry):
    """An entry that has its bytes."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def read_now(self) -> bytes:
        return b"x"

    def load(self) -> None:
        return None


def table(bytes_max: int = 10_000) -> ResponseCache:
    return ResponseCache(COMMON, lambda: datetime(2026, 11, 1, tzinfo=UTC), bytes_max=bytes_max)


def answer(key: str, *, fresh_until: float = FRESHNESS_LIFETIME_S) -> CachedResponse:
    fields = f'ETag: "{key}"\r\nContent-Location: /images/{key * 8}.png\r\n'.encode()
    return CachedResponse(
        "/img", key, f'"{key}"', fields, b"Content-Type: image/png\r\n", 1, FakeEntry(), fresh_until, None
    )


def test_the_least_recently_asked_for_leaves_first() -> None:
    answers = table(3000)
    for n in range(3):
        answers.prepare(b"/%d" % n, answer(f"{n}"))
    assert answers.find(b"/0", 0) is not None
    answers.prepare(b"/3", answer("3"))
    assert [answers.find(b"/%d" % n, 0) is None for n in range(4)] == [False, True, False, False]
    assert answers.bytes <= 3000


def test_all_targets_of_a_key_go_together_and_no_others() -> None:
    answers = table()
    for target, key in ((b"/a", "one"), (b"/b", "one"), (b"/c", "two")):
        answers.prepare(target, answer(key))
    answers.drop("one")
    answers.drop("unknown")
    assert [answers.find(target, 0) is None for target in (b"/a", b"/b", b"/c")] == [True, True, False]
    answers.drop("two")
    assert (len(answers), answers.bytes) == (0, 0)


def test_a_target_that_is_prepared_anew_is_counted_once() -> None:
    answers = table()
    answers.prepare(b"/a", answer("one"))
    before = answers.bytes
    answers.prepare(b"/a", answer("two"))
    assert (len(answers), answers.bytes) == (1, before)
    answers.drop("one")
    assert answers.find(b"/a", 0) is not None


def test_an_answer_is_looked_at_again_when_its_time_has_come() -> None:
    answers = table()
    answers.prepare(b"/a", answer("one", fresh_until=10))
    assert answers.find(b"/a", 9.9) is not None
    assert answers.find(b"/a", 10) is None
    assert len(answers) == 0


def test_only_fields_that_not_all_answers_have_are_kept_for_each() -> None:
    assert table().specific_fields({**COMMON, "ETag": '"a"', "Cache-Control": "public, max-age=5"}) == b'ETag: "a"\r\n'


def test_the_table_takes_what_it_says_it_takes() -> None:
    answers = table(2**30)
    number = 5000
    tracemalloc.start()
    try:
        for n in range(number):
            answers.prepare(f"/img?src=https%3A%2F%2Fimages.example%2F{n:040d}.png".encode(), answer(f"{n:064x}"))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # The handle that a store gives, some 250 bytes with its path, is counted too, and not made here.
    assert taken / number <= answers.bytes / number <= taken / number + 400
