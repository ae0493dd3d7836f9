"""Deletion of a file that another process replaces at the same time: only the seen file is deleted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import WrittenByNewer
from imgkeep.core.layout import encode_record, encode_tombstone
from imgkeep.core.records import Tombstone
from imgkeep.storage.local.removal_marks import delete_if, read_place
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgkeep.core.records import Record

BODY = b"an image"
RECORD = record_of(BODY)
SEEN = Tombstone(RECORD.key, NOON, RECORD.digest)
LATER = replace(SEEN, removed_at=NOON.replace(hour=13))


def encode(found: Record | Tombstone) -> bytes:
    return encode_tombstone(found) if isinstance(found, Tombstone) else encode_record(found)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "records" / f"{RECORD.key}.json"
    path.parent.mkdir()
    path.write_bytes(encode(SEEN))
    return path


def crossed_by(*steps: Callable[[], object]) -> Callable[[Record | Tombstone], bool]:
    """Want the seen tombstone; do a step of another process at each look."""
    todo = list(steps)

    def wanted(found: Record | Tombstone) -> bool:
        if todo:
            todo.pop(0)()
        return found == SEEN

    return wanted


def test_seen_file_is_deleted(place: Path) -> None:
    assert delete_if(place, place.parent / "partial", crossed_by())
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("newer", [RECORD, LATER], ids=["a record", "a later tombstone"])
def test_newer_file_stays(place: Path, newer: Record | Tombstone) -> None:
    assert not delete_if(place, place.parent / "partial", crossed_by(lambda: place.write_bytes(encode(newer))))
    assert read_place(place) == newer
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize(
    ("taken", "put", "left"),
    [
        (LATER, RECORD, LATER),
        (RECORD, LATER, LATER),
        (RECORD, replace(RECORD, etag='"two"'), replace(RECORD, etag='"two"')),
    ],
    ids=["a removal wins over a record", "a removal wins over a record that yields", "the newer record stays"],
)
def test_file_put_during_the_deletion_is_settled(
    place: Path, taken: Record | Tombstone, put: Record | Tombstone, left: Record | Tombstone
) -> None:
    wanted = crossed_by(lambda: place.write_bytes(encode(taken)), lambda: place.write_bytes(encode(put)))
    assert not delete_if(place, place.parent / "partial", wanted)
    assert read_place(place) == left
    assert list(place.parent.iterdir()) == [place]


def test_file_deleted_by_another_process_is_gone(place: Path) -> None:
    assert not delete_if(place, place.parent / "partial", crossed_by(place.unlink))
    assert list(place.parent.iterdir()) == []


def test_record_of_a_newer_version_is_left_alone(place: Path) -> None:
    newer = encode(SEEN).replace(b'"version": 1', b'"version": 2')
    place.write_bytes(newer)
    with pytest.raises(WrittenByNewer):
        delete_if(place, place.parent / "partial", crossed_by())
    assert place.read_bytes() == newer
