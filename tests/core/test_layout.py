"""The stored layout is public: what is written today is read for ever."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.identity import identify
from imgkeep.core.layout import (
    BLOCK_BYTES_MAX,
    BLOCK_KEYS_MAX,
    RECORD_BYTES_MAX,
    RecordTooNew,
    RecordUnreadable,
    block_path,
    decode_record,
    encode_block,
    encode_record,
    encode_tombstone,
    is_own_path,
    object_names,
    object_path,
    read_block_keys,
    read_block_path,
    read_object_name,
    read_record,
    record_path,
)
from imgkeep.core.records import (
    Doubt,
    Format,
    Key,
    Provenance,
    Record,
    Refetches,
    Tombstone,
    Trust,
)
from imgkeep.core.source_url import SOURCE_CHARS_MAX, read_source
from tests.support.records import DIGEST, KEY, RECORD, WHEN
from tests.support.tables import table

WRITTEN = b"""{
 "key": "abababababababababababababababababababababababababababababababab",
 "identity": "https://example.com/a.png?size=2",
 "key_version": 1,
 "host": "example.com",
 "digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
 "extension": "png",
 "content_type": "image/png",
 "size": 1234,
 "width": 640,
 "height": 480,
 "etag": "\\"00ff\\"",
 "stored_at": "2026-11-22T10:00:00Z",
 "provider": "Example",
 "temporary": true,
 "expires_at": "2026-11-22T11:00:00Z",
 "origin_etag": "W/\\"7\\"",
 "origin_modified": null,
 "version": 1
}
"""


def test_record_is_written_as_it_always_was() -> None:
    assert encode_record(RECORD) == WRITTEN


def test_record_is_read_as_it_always_was() -> None:
    assert decode_record(WRITTEN) == RECORD


def test_fields_that_a_later_writer_adds_are_passed_over() -> None:
    assert decode_record(WRITTEN.replace(b'"version"', b'"colour": "red", "version"')) == RECORD


def test_places_are_fanned_out_by_the_first_two_digits() -> None:
    assert object_path(RECORD.object_name) == f"v1/objects/cd/{DIGEST}.png"
    assert record_path(KEY) == f"v1/records/ab/{KEY}.json"


@table("cut", range(0, len(WRITTEN) - 2, 7))
def test_cut_record_is_unreadable(cut: int) -> None:
    with pytest.raises(RecordUnreadable):
        decode_record(WRITTEN[:cut])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((b'"version": 1', b'"version": 2'), id="newer"),
        pytest.param((b'"version": 1', b'"version": 2, "size": "many"'), id="newer and unlike"),
    ],
)
def test_newer_record_is_distinguished_from_a_damaged_one(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(RecordTooNew):
        decode_record(WRITTEN.replace(*change))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((b"cdcd", b"../."), id="digest with a path"),
        pytest.param((b'"png"', b'"exe"'), id="unknown extension"),
        pytest.param((b'"abab', b'"ABAB'), id="upper-case key"),
        pytest.param((b"1234", b'"1234"'), id="size as text"),
        pytest.param((b'"example.com"', b'"\xff"'), id="no UTF-8"),
    ],
)
def test_record_with_a_wrong_field_is_unreadable(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(RecordUnreadable):
        decode_record(WRITTEN.replace(*change, 1))


def test_record_is_read_under_the_name_of_its_key() -> None:
    assert read_record(WRITTEN, record_path(KEY).rpartition("/")[2]) == RECORD


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(f"{'ba' * 32}.json", id="another key"),
        pytest.param(f"{KEY}", id="no extension"),
        pytest.param(f"{KEY}.json.json", id="extension twice"),
        pytest.param(f"{KEY.upper()}.json", id="upper case"),
        pytest.param(record_path(KEY), id="whole path"),
        pytest.param("", id="no name"),
    ],
)
def test_record_under_another_name_is_damage(name: str) -> None:
    with pytest.raises(RecordUnreadable, match="the key is not that of the file's name") as caught:
        read_record(WRITTEN, name)
    assert not isinstance(caught.value, RecordTooNew)


def test_newer_record_is_recognised_under_any_name() -> None:
    with pytest.raises(RecordTooNew):
        read_record(WRITTEN.replace(b'"version": 1', b'"version": 2'), "other.json")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        f"{DIGEST}",
        f"{DIGEST}.exe",
        f"{DIGEST.upper()}.png",
        f"{DIGEST[1:]}.png",
        f"{DIGEST}.png/",
        f"/{DIGEST}.png",
    ],
)
def test_other_name_than_an_object_is_not_read(name: str) -> None:
    assert read_object_name(name) is None


@table("format_", Format)
def test_every_format_has_an_object_name_of_its_own(format_: Format) -> None:
    assert read_object_name(f"{DIGEST}.{format_.extension}") == (DIGEST, format_)


@pytest.mark.parametrize("nested", [b'{"a":' * 9000, b'{"version": 1, "a": ' + b"[" * 60_000])
def test_deeply_nested_record_is_unreadable(nested: bytes) -> None:
    with pytest.raises(RecordUnreadable):
        decode_record(nested)
    assert read_block_keys(nested) == frozenset()


@table(
    ("field", "value"),
    [
        ("etag", '"a"\r\nSet-Cookie: a=b\r\nX: "b"'),
        ("etag", "\N{EURO SIGN}"),
        ("size", -1),
        ("size", 10**30),
        ("width", 2**40),
        ("identity", "https://a.example/\0"),
        ("origin_etag", '"a"\r\nX: b'),
        ("stored_at", "2026-01-01T00:00:00"),
        ("stored_at", "0001-01-01T00:00:00+23:59"),
        ("expires_at", "9999-12-31T23:59:59-23:59"),
        ("refetches", {"tries": 1, "equal": 1, "since": "2026-01-01T00:00:00", "last_at": "2026-01-01T00:00:00Z"}),
        (
            "refetches",
            {"tries": 1, "equal": 1, "since": "0001-01-01T00:00:00+01:00", "last_at": "2026-01-01T00:00:00Z"},
        ),
    ],
)
def test_field_that_no_header_or_database_takes_is_unreadable(field: str, value: object) -> None:
    with pytest.raises(RecordUnreadable):
        decode_record(json.dumps({**json.loads(WRITTEN), field: value}).encode())


@given(st.binary())
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(RecordUnreadable):
        decode_record(data)


def test_longest_identity_fits_into_a_record() -> None:
    inside = "https://example.com/_next/image?url=" * 2 + "https://example.com/"
    info = identify(read_source(inside + "'" * (SOURCE_CHARS_MAX - len(inside))), WHEN)
    assert len(info.identity) > 4 * SOURCE_CHARS_MAX
    assert info.identity.isascii()
    record = Record(
        key=info.key,
        identity=info.identity,
        digest=DIGEST,
        format=Format.PNG,
        size=1,
        pixel_size=None,
        etag='"0"',
        stored_at=WHEN,
        provenance=Provenance(host="example.com"),
    )
    assert len(encode_record(record)) < RECORD_BYTES_MAX
    assert decode_record(encode_record(record)) == record


def test_record_belongs_under_its_own_name() -> None:
    data = encode_record(RECORD)
    assert read_record(data, f"{RECORD.key}.json") == RECORD
    with pytest.raises(RecordUnreadable, match="not that of the file's name"):
        read_record(data, f"{'0' * 64}.json")


# --- what was removed

TOMBSTONE = b"""\
{
 "key": "%s",
 "removed_at": "2026-11-22T10:00:00Z",
 "version": 1
}
""" % KEY.encode()


def test_tombstone_is_written_and_read_in_the_place_of_a_record() -> None:
    tombstone = Tombstone(KEY, RECORD.stored_at)
    assert encode_tombstone(tombstone) == TOMBSTONE
    assert read_record(TOMBSTONE, f"{KEY}.json") == tombstone
    with pytest.raises(RecordUnreadable):
        read_record(TOMBSTONE, f"{'0' * 64}.json")
    with pytest.raises(RecordTooNew):
        decode_record(TOMBSTONE.replace(b'"version": 1', b'"version": 2'))


@pytest.mark.parametrize(
    "change", [(KEY.encode(), b"x"), (b'"key"', b'"kee"'), (b'"2026-11-22T10:00:00Z"', b'"yesterday"'), (b"}", b"")]
)
def test_damaged_tombstone_is_damage(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(RecordUnreadable):
        decode_record(TOMBSTONE.replace(*change))


def test_tombstone_names_the_digest_that_went_with_it() -> None:
    tombstone = Tombstone(KEY, RECORD.stored_at, DIGEST)
    written = encode_tombstone(tombstone)
    assert read_record(written, f"{KEY}.json") == tombstone
    malformed = written.replace(DIGEST.encode(), b"../../records")
    assert read_record(malformed, f"{KEY}.json") == Tombstone(KEY, RECORD.stored_at), "it stands all the same"


def test_refusal_lists_the_keys_that_went_with_it() -> None:
    other = Key("01" * 32)
    written = encode_block(DIGEST, WHEN, [KEY, other])
    assert json.loads(written)["keys"] == [other, KEY]
    assert read_block_keys(written) == {KEY, other}
    assert read_block_keys(encode_block(DIGEST, WHEN)) == frozenset()


def test_refusal_lists_a_bounded_number_of_keys() -> None:
    keys = [Key(f"{number:064x}") for number in range(BLOCK_KEYS_MAX + 1)]
    written = encode_block(DIGEST, WHEN, keys)
    assert len(written) < BLOCK_BYTES_MAX
    assert len(read_block_keys(written)) == BLOCK_KEYS_MAX


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"keys": 1}', b'{"keys": ["../../a", ""]}', b'{"keys": null}', b'{"keys": ["\xff"]}']
)
def test_damaged_refusal_names_no_key(data: bytes) -> None:
    assert read_block_keys(data) == frozenset()


def test_name_of_a_refusal_holds_its_digest() -> None:
    path = block_path(RECORD.digest)
    assert path == f"v1/refused/{RECORD.digest[:2]}/{RECORD.digest}.json"
    assert read_block_path(path) == RECORD.digest
    assert read_block_path(path + ".tmp") is None
    assert read_block_path(block_path(RECORD.digest).replace(f"/{RECORD.digest[:2]}/", "/zz/")) is None
    assert read_block_path(block_path(RECORD.digest).replace(f"/{RECORD.digest[:2]}/", "/00/")) is None
    assert json.loads(encode_block(RECORD.digest, RECORD.stored_at)) == {
        "digest": RECORD.digest,
        "removed_at": "2026-11-22T10:00:00Z",
        "version": 1,
    }


def test_object_has_a_name_for_every_format() -> None:
    assert RECORD.object_name in object_names(RECORD.digest)
    assert len(object_names(RECORD.digest)) == len(Format)


def test_refetches_are_written_and_read() -> None:
    refetches = Refetches(3, 1, WHEN, WHEN.replace(minute=5))
    record = replace(
        RECORD, trust=Trust(doubts=frozenset({Doubt.INCOMPLETE}), brought_by="0" * 32, refetches=refetches)
    )
    data = encode_record(record)
    assert b'"doubts": [\n  "incomplete"\n ]' in data
    assert decode_record(data) == record
    assert b"refetches" not in encode_record(RECORD), "the usual record has no such field"
    older = data.replace(b'"incomplete"', b'"of a newer version"')
    read = decode_record(older)
    assert isinstance(read, Record)
    assert read.doubts == {Doubt.SIGNATURE}, "so an older version shows it for a minute at a time"


PATHS = {
    object_path(f"{DIGEST}.png"): True,
    object_path(f"{DIGEST}.svg"): True,
    record_path(KEY): True,
    object_path(f"{DIGEST}.exe"): False,
    object_path(f"{DIGEST}.png.tmp"): False,
    object_path(DIGEST): False,
    object_path(f"{DIGEST.upper()}.png"): False,
    object_path("readme.txt"): False,
    f"v1/objects/00/{DIGEST}.png": False,
    f"v1/objects/{DIGEST[:2]}/x/{DIGEST}.png": False,
    f"v1/objects/{DIGEST}.png": False,
    "v1/objects/": False,
    f"v1/records/00/{KEY}.json": False,
    f"v1/records/{KEY[:2]}/{KEY}": False,
    f"v1/records/{KEY[:2]}/{KEY}.json\n": False,
    f"v1/records/{DIGEST[:2]}/{DIGEST}.png": False,
    "v1/records/": False,
    f"v1/other/{KEY[:2]}/{KEY}.json": False,
    f"{KEY}.json": False,
}


@table(("path", "is_own"), PATHS.items())
def test_paths_of_the_layout_are_told_from_foreign_ones(path: str, *, is_own: bool) -> None:
    assert is_own_path(path) is is_own
