"""Typed failures carry what their answers need, and survive being remembered."""

from __future__ import annotations

import copy

import pytest

from imgkeep.core import errors


def test_failure_of_an_origin_has_status_and_retry_after() -> None:
    error = errors.OriginError("the origin says 429", origin_status=429, retry_after_s=7)
    assert (str(error), error.origin_status, error.retry_after_s) == ("the origin says 429", 429, 7)


@pytest.mark.parametrize(
    "error",
    [
        errors.Busy("x", retry_after_s=3),
        errors.OriginTimeout("x", origin_status=504, retry_after_s=4),
        errors.InvalidSource("x"),
        errors.RemoteFault("x", general=False),
        errors.FilledByPeer(holder="b/1", lease="try.0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_copy_is_as_good_as_the_failure(error: errors.ImgkeepError) -> None:
    again = copy.copy(error)
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_every_failure_has_a_code_of_its_own() -> None:
    codes = [
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ImgkeepError) and "code" in vars(kind)
    ]
    assert len(codes) == len(set(codes)) > 10


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, "the store fails"),
        ({"place": "bucket images"}, "the store fails (bucket images)"),
        ({"cause": "No space left on device"}, "the store fails: No space left on device"),
        (
            {"place": "folder /data", "cause": "Input/output error"},
            "the store fails: Input/output error (folder /data)",
        ),
    ],
)
def test_details_of_a_store_are_for_operators_alone(facts: dict[str, str], told: str) -> None:
    error = errors.StorageError("the store fails", **facts)
    assert (str(error), error.in_full) == ("the store fails", told)
