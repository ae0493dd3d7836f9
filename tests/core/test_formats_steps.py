"""What a judgement costs: steps that a budget counts, and a head that is looked at as it grows."""

from __future__ import annotations

import pytest

from imgkeep.core.formats import (
    HEAD_BYTES_MAX,
    LOOP_STEPS_MAX,
    UNDECIDED,
    Budget,
    HeadReader,
    Seen,
    Spent,
    is_whole,
    measure,
    sniff,
    steps_max,
)
from imgkeep.core.formats import (
    binary_reader as fields,
)
from imgkeep.core.records import Format, PixelSize
from tests.support import image_files as images
from tests.support.tables import table

SAMPLES = images.samples()
GIF = b"GIF89a\x14\0\x0c\0\0\0\0" + b"!\xfe\0" * 50_000
"""As many blocks as its bytes can hold, and no image."""


@pytest.mark.parametrize("size", [0, 1, 1_000, 10**6, 10**7, 10**9])
def test_budget_ends_however_large_the_file_is(size: int) -> None:
    scanned = size // fields.BYTES_SCANNED_PER_STEP
    assert scanned < steps_max(size) <= min(fields.STEPS_MIN + size, fields.STEPS_MAX + 2 * scanned + 1)


@table("name", SAMPLES)
def test_good_heads_are_judged_far_below_the_budget_of_the_loop(name: str) -> None:
    budget = Budget(LOOP_STEPS_MAX)
    reader = HeadReader(budget)
    body = SAMPLES[name].body
    for size in range(1, len(body) + 1):
        if size >= reader.look_at or size == len(body):
            reader.look(body[:size], ended=size == len(body))
    assert budget.taken < LOOP_STEPS_MAX


def test_next_look_comes_with_the_missing_bytes() -> None:
    """Provenance before the pixels: nothing is to be learned before its end."""
    body = images.png_with(images.png_chunk(b"caBX", bytes(100_000)))
    budget = Budget(LOOP_STEPS_MAX)
    reader = HeadReader(budget)
    looks = 0
    for size in range(1, len(body) + 1):
        if size >= reader.look_at:
            looks += 1
            if reader.look(body[:size], ended=False) is not UNDECIDED:
                break
    assert size == 33 + 12 + 100_000 + 8
    assert looks <= 10


def test_budget_pauses_again_and_again_and_a_pause_may_end_it() -> None:
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 10:
            raise Spent

    budget = Budget(fields.STEPS_MAX, pause)
    with pytest.raises(Spent):
        is_whole(Format.GIF, GIF, budget)
    assert budget.taken <= 10 * (fields.STEPS_BETWEEN_PAUSES + 1)


@table("name", SAMPLES)
def test_head_agrees_with_the_whole_file(name: str) -> None:
    sample = SAMPLES[name]
    seen = HeadReader(Budget(LOOP_STEPS_MAX)).look(sample.body, ended=True)
    assert seen == Seen(sample.fmt, sample.size, is_measured=sample.size is not None)


@pytest.mark.parametrize("body", [b"", b"text", b"\xff\xd8\xff\xd9"])
def test_head_of_no_image_is_refused(body: bytes) -> None:
    assert HeadReader(Budget(LOOP_STEPS_MAX)).look(body, ended=True) is None


def test_format_that_was_ruled_out_is_not_tried_again() -> None:
    budget = Budget(LOOP_STEPS_MAX)
    reader = HeadReader(budget)
    assert reader.look(b"RIFF", ended=False) is UNDECIDED
    before = budget.taken
    assert reader.look(b"RIFF\0\0", ended=False) is UNDECIDED
    assert budget.taken - before <= 3


def test_undecidable_size_is_not_waited_for() -> None:
    seen = HeadReader(Budget(LOOP_STEPS_MAX)).look(b"<svg viewBox='a'><g>", ended=False)
    assert seen == Seen(Format.SVG, None, is_measured=True)


def test_size_beyond_the_head_is_left_to_the_whole_file() -> None:
    body = images.ftyp(b"avif") + images.box(b"mdat", bytes(HEAD_BYTES_MAX))
    body += images.meta(images.PITM, images.iprp(images.IPMA))
    reader = HeadReader(Budget(LOOP_STEPS_MAX))
    assert reader.look(body[:1000], ended=False) is UNDECIDED
    assert reader.look_at == HEAD_BYTES_MAX
    assert reader.look(body[:HEAD_BYTES_MAX], ended=False) == Seen(Format.AVIF, None, is_measured=False)
    assert measure(Format.AVIF, body) == images.SIZE


def test_walk_beyond_its_budget_is_spent() -> None:
    budget = Budget(100)
    with pytest.raises(Spent):
        is_whole(Format.GIF, GIF, budget)
    assert budget.taken == 100
    with pytest.raises(Spent):
        measure(Format.GIF, GIF, budget)
    with pytest.raises(Spent):
        sniff(GIF, ended=True, budget=budget)


def test_children_of_a_tiff_that_are_no_offsets_are_none() -> None:
    assert is_whole(Format.TIFF, images.tiff("<", images.Field(330, 11, 1)))
    assert measure(Format.TIFF, images.tiff("<")) == PixelSize(20, 12)
