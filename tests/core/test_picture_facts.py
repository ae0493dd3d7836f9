"""The facts of a picture: read strictly, and kept in the JSON of a record."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from imgkeep.core.layout import decode_record, encode_record
from imgkeep.core.picture_facts import PictureFacts, read_picture_facts
from imgkeep.core.records import PixelSize, Record
from tests.support.stores import record_of

FACTS = PictureFacts(
    width=30, height=40, frames=1, has_alpha=False, orientation=6, colour="aa10ff", thumbhash="2gcKFIJ5eHg4h4eHdw=="
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0),
        ("height", 2**31),
        ("frames", -1),
        ("frames", 1.5),
        ("has_alpha", "yes"),
        ("orientation", 9),
        ("colour", "#aa10ff"),
        ("colour", "AA10FF"),
        ("colour", "aa10ff\n"),
        ("thumbhash", ""),
        ("thumbhash", "A" * 40),
        ("thumbhash", "2gcKFIJ5eHg4h4eHdw<="),
    ],
)
def test_damaged_facts_are_none(name: str, value: object) -> None:
    assert read_picture_facts({**asdict(FACTS), name: value}) is None


def test_facts_lack_no_member_and_may_have_more() -> None:
    assert read_picture_facts({**asdict(FACTS), "added": "later"}) == FACTS
    assert read_picture_facts({}) is None
    assert read_picture_facts(None) is None


def test_record_keeps_its_facts() -> None:
    record = replace(record_of(b"x"), pixel_size=PixelSize(40, 30, FACTS))
    read = decode_record(encode_record(record))
    assert isinstance(read, Record)
    assert read.picture == FACTS
    assert read == replace(record, pixel_size=PixelSize(40, 30)), "facts make no other record"


def test_record_without_facts_is_written_as_before() -> None:
    record = replace(record_of(b"x"), pixel_size=PixelSize(40, 30))
    assert b"picture" not in encode_record(record)
    assert replace(record, pixel_size=None).picture is None


def test_damaged_facts_do_not_damage_their_record() -> None:
    record = replace(record_of(b"x"), pixel_size=PixelSize(40, 30, FACTS))
    damaged: list[object] = [{**asdict(FACTS), "colour": 7}, [], "x", {"version": 2}]
    for picture in damaged:
        read = decode_record(json.dumps({**json.loads(encode_record(record)), "picture": picture}).encode())
        assert isinstance(read, Record)
        assert read.picture is None
        assert read == record
