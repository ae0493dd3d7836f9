"""
The stored layout, version 1: the paths of objects, records and blocks, and the JSON of the latter two.

It is public, and the same in a folder, under a bucket prefix or in a container. It never changes silently: a reader
refuses a record of an unknown version.

    v1/objects/<2 hex>/<digest>.<ext>
    v1/records/<2 hex>/<key>.json        a record, or a tombstone
    v1/refused/<2 hex>/<digest>.json     a blocked digest: no link may bring these bytes back
    v1/derived/<digest>/<options>.<ext>  a derived picture, which can be made again (`core/derived/names.py`)
    v1/refused/changed                   of a bucket: a random token, another one after every change of the blocks
"""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from imgkeep.core.identity import KEY_VERSION
from imgkeep.core.picture_facts import read_picture_facts
from imgkeep.core.records import (
    Digest,
    Doubt,
    Format,
    Key,
    PixelSize,
    Provenance,
    Record,
    Refetches,
    Tombstone,
    Trust,
    Validator,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

OBJECTS: Final = "v1/objects"
RECORDS: Final = "v1/records"
BLOCKED: Final = "v1/refused"
BLOCKS_CHANGED: Final = f"{BLOCKED}/changed"
"""Path of the marker whose token says whether the blocks have changed. It is no block, and a bucket may lack it."""
REMOVED: Final = "the image was removed"
"""Detail of the error for a tombstone."""
RECORD_BYTES_MAX: Final = 65_536
"""Maximum size of a record: an identity has some 41,000 ASCII characters at most, 8,192 of a link escaped twice."""

BLOCK_KEYS_MAX: Final = 100_000
"""Maximum number of keys that a blocked digest lists; an undo deletes the tombstones of further keys one by one."""
BLOCK_BYTES_MAX: Final = 8_388_608
"""Maximum size of the JSON of a blocked digest: so many keys of 64 characters, each on a line."""

_DOUBTS: Final = {doubt.value: doubt for doubt in Doubt}
_WORDS: Final = {doubt: (place, doubt.value) for place, doubt in enumerate(Doubt)}
_FORMATS: Final = {format_.extension: format_ for format_ in Format}
_BLOCK: Final = re.compile(rf"{BLOCKED}/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})\.json")
_HASH: Final = re.compile("[0-9a-f]{64}")
_RECORD_NAME: Final = re.compile(r"[0-9a-f]{64}\.json")
_OBJECT_NAME: Final = re.compile(r"([0-9a-f]{64})\.([a-z]{2,4})")


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number that every database takes."""
_Pixels = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Line = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00\r\n]*\Z")]
"""A text for a header field or a database, which takes no NUL."""
_Tag = Annotated[str, msgspec.Meta(pattern=r'\A(?:W/)?"[!#-~]*"\Z')]
"""An entity tag (RFC 9110, 8.8.3), in ASCII."""
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class RecordUnreadable(ValueError):
    """The JSON is damaged."""


class RecordTooNew(RecordUnreadable):
    """A newer version of imgkeep wrote the record: leave it unchanged."""


class _Versioned(msgspec.Struct):
    version: int
    removed_at: datetime | None = None


class _StoredTombstone(msgspec.Struct):
    """The JSON form of a tombstone, version 1. The encoder leaves out a field that is `UNSET`."""

    key: str
    removed_at: datetime
    version: int = 1
    digest: str | msgspec.UnsetType = msgspec.UNSET


class _StoredBlock(msgspec.Struct):
    """The JSON form of a block, version 1."""

    digest: str
    removed_at: datetime
    version: int = 1
    keys: list[str] | msgspec.UnsetType = msgspec.UNSET


class _BlockKeys(msgspec.Struct):
    """The part of a block that an undo needs. The name of the file alone says that the digest is blocked."""

    keys: list[str] = []


class _StoredRefetches(msgspec.Struct):
    """The JSON form of `Refetches`, version 1."""

    tries: _Size
    equal: _Size
    since: _Time
    last_at: _Time


class _StoredRecord(msgspec.Struct, omit_defaults=False):
    """
    The JSON form of a record, version 1, from `encode_record`; only the decoder makes one. It ignores unknown fields,
    so that a newer writer may add some. Without `doubts` the image is confirmed. `refetches` is only there if the image
    was once incomplete, `picture` only where the facts of the picture were known when the record was written.
    """

    key: str
    identity: _Line
    key_version: int
    host: _Line
    digest: str
    extension: str
    content_type: str
    size: _Size
    width: _Pixels | None
    height: _Pixels | None
    etag: _Tag
    stored_at: _Time
    provider: _Line | None
    temporary: bool
    expires_at: _Time | None
    origin_etag: _Line | None = None
    origin_modified: _Line | None = None
    doubts: list[str] | msgspec.UnsetType = msgspec.UNSET
    brought_by: _Line | msgspec.UnsetType = msgspec.UNSET
    refetches: _StoredRefetches | msgspec.UnsetType = msgspec.UNSET
    picture: object = None
    version: int = 1


_NO_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)
"""What reading any bytes may raise; the last one for a time that has no time in UTC."""
_decoder: Final = msgspec.json.Decoder(_StoredRecord)
_keys_decoder: Final = msgspec.json.Decoder(_BlockKeys)


def object_path(name: str) -> str:
    """Return the path of the object `<digest>.<ext>`."""
    return f"{OBJECTS}/{name[:2]}/{name}"


def record_path(key: Key) -> str:
    """Return the path of the record of a key."""
    return f"{RECORDS}/{key[:2]}/{key}.json"


def block_path(digest: Digest) -> str:
    """Return the path of the block of a digest."""
    return f"{BLOCKED}/{digest[:2]}/{digest}.json"


def read_block_path(path: str) -> Digest | None:
    """Return the digest whose block has this path; `None` for any other path."""
    match = _BLOCK.fullmatch(path)
    return None if match is None else Digest(match[2])


def is_own_path(path: str) -> bool:
    """
    Tell whether a path below `v1/objects` or `v1/records` is one of this layout.

    Others are foreign: a server's own files, or another program's. imgkeep does not touch them.
    """
    name = path.rpartition("/")[2]
    if path.startswith(f"{OBJECTS}/"):
        return path == object_path(name) and read_object_name(name) is not None
    return path == f"{RECORDS}/{name[:2]}/{name}" and _RECORD_NAME.fullmatch(name) is not None


def object_names(digest: Digest) -> list[str]:
    """Return all names that the object of a digest may have."""
    return [f"{digest}.{extension}" for extension in _FORMATS]


def read_object_name(name: str) -> tuple[Digest, Format] | None:
    """Read `<digest>.<ext>` of a permanent URL; return `None` for any other name."""
    match = _OBJECT_NAME.fullmatch(name)
    if match is None or match[2] not in _FORMATS:
        return None
    return Digest(match[1]), _FORMATS[match[2]]


def read_validator(etag: str | None, modified: str | None) -> Validator | None:
    """Return the validator of the two fields; `None` if both are empty."""
    return Validator(etag, modified) if etag or modified else None


def write_doubts(doubts: frozenset[Doubt]) -> list[str]:
    """Return the words for doubts, in a fixed order."""
    return [word for _, word in sorted(_WORDS[doubt] for doubt in doubts)]


def read_doubts(words: Iterable[str]) -> frozenset[Doubt]:
    """
    Read the words for doubts. A word of a newer version counts as the strongest doubt for other links: `signature`.
    """
    return frozenset(_DOUBTS.get(word, Doubt.SIGNATURE) for word in words)


def encode_record(record: Record) -> bytes:
    """Return the JSON of a record, readable with one field a line."""
    pixel_size, validator, refetches = record.pixel_size, record.validator, record.refetches
    stored = {
        "key": record.key,
        "identity": record.identity,
        "key_version": KEY_VERSION,
        "host": record.host,
        "digest": record.digest,
        "extension": record.format.extension,
        "content_type": record.format.media_type,
        "size": record.size,
        "width": pixel_size.width if pixel_size else None,
        "height": pixel_size.height if pixel_size else None,
        "etag": record.etag,
        "stored_at": record.stored_at,
        "provider": record.provider,
        "temporary": record.temporary,
        "expires_at": record.expires_at,
        "origin_etag": validator.etag if validator else None,
        "origin_modified": validator.modified if validator else None,
        **({"doubts": write_doubts(record.doubts)} if record.doubts else {}),
        **({"brought_by": record.brought_by} if record.brought_by else {}),
        **({"refetches": asdict(refetches)} if refetches else {}),
        **({"picture": asdict(record.picture)} if record.picture else {}),
        "version": 1,
    }
    return _format(stored)


def encode_tombstone(tombstone: Tombstone) -> bytes:
    """Return the JSON of a tombstone."""
    stored = _StoredTombstone(tombstone.key, tombstone.removed_at)
    if tombstone.digest is not None:
        stored.digest = tombstone.digest
    return _format(stored)


def encode_block(digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> bytes:
    """Return the JSON of a blocked digest; `keys` are those that get a tombstone with it."""
    stored = _StoredBlock(digest, removed_at)
    if keys:
        stored.keys = list(sorted(keys)[:BLOCK_KEYS_MAX])
    return _format(stored)


def read_block_keys(data: bytes) -> frozenset[Key]:
    """
    Return the keys with a tombstone of the same removal as a blocked digest.

    An unreadable block names no key: the name of the file blocks the digest, whatever is in it.
    """
    try:
        keys = _keys_decoder.decode(data).keys
    except _NO_JSON:
        return frozenset()
    return frozenset(Key(key) for key in keys if _HASH.fullmatch(key))


def _format(stored: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(stored), indent=1) + b"\n"


def decode_record(data: bytes) -> Record | Tombstone:
    """
    Read the JSON of a record, or of the tombstone in its place.

    Raises:
        RecordTooNew: It has an unknown version.
        RecordUnreadable: It is truncated or damaged.
    """
    try:
        versioned = msgspec.json.decode(data, type=_Versioned)
        if versioned.version > 1:
            raise RecordTooNew("written by a newer version of imgkeep")
        if versioned.removed_at is not None:
            tombstone = msgspec.json.decode(data, type=_StoredTombstone)
            return Tombstone(_read_key(tombstone.key), versioned.removed_at, _read_digest(tombstone.digest))
        stored = _decoder.decode(data)
        _check_times(stored)
    except _NO_JSON as error:
        raise RecordUnreadable(str(error)) from None
    name = read_object_name(f"{stored.digest}.{stored.extension}")
    if name is None:
        raise RecordUnreadable("digest or extension is malformed")
    return Record(
        key=_read_key(stored.key),
        identity=stored.identity,
        digest=name[0],
        format=name[1],
        size=stored.size,
        pixel_size=_read_pixel_size(stored),
        etag=stored.etag,
        stored_at=stored.stored_at,
        validator=read_validator(stored.origin_etag, stored.origin_modified),
        provenance=Provenance(
            host=stored.host, provider=stored.provider, temporary=stored.temporary, expires_at=stored.expires_at
        ),
        trust=Trust(
            doubts=read_doubts(stored.doubts or ()),
            brought_by=stored.brought_by or "",
            refetches=_read_refetches(stored.refetches),
        ),
    )


def _read_pixel_size(stored: _StoredRecord) -> PixelSize | None:
    if not stored.width or not stored.height:
        return None
    return PixelSize(stored.width, stored.height, read_picture_facts(stored.picture))


def _check_times(stored: _StoredRecord) -> None:
    """Check that each time can be compared with any other. Raises: OverflowError."""
    times = [stored.stored_at, stored.expires_at]
    if isinstance(stored.refetches, _StoredRefetches):
        times += [stored.refetches.since, stored.refetches.last_at]
    for time in times:
        if time is not None:
            time.astimezone(UTC)


def _read_refetches(stored: _StoredRefetches | msgspec.UnsetType) -> Refetches | None:
    if not isinstance(stored, _StoredRefetches):
        return None
    return Refetches(stored.tries, stored.equal, stored.since, stored.last_at)


def _read_key(text: str) -> Key:
    if not _HASH.fullmatch(text):
        raise RecordUnreadable("the key is malformed")
    return Key(text)


def _read_digest(text: str | msgspec.UnsetType) -> Digest | None:
    """Return the digest of a tombstone; `None` if it is malformed: the tombstone is valid all the same."""
    return Digest(text) if isinstance(text, str) and _HASH.fullmatch(text) else None


def read_record(data: bytes, name: str) -> Record | Tombstone:
    """
    Read the record or tombstone in a file. If the name is not that of its key, the file is damaged.

    Raises:
        RecordTooNew, RecordUnreadable: As `decode_record`.
    """
    record = decode_record(data)
    if name != f"{record.key}.json":
        raise RecordUnreadable("the key is not that of the file's name")
    return record
