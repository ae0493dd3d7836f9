"""The rows of the image index: a record as a row, and a row as a record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import read_doubts, read_validator, write_doubts
from imgkeep.core.records import Digest, Format, Key, PixelSize, Provenance, Record, Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

_FORMATS: Final = {format_.extension: format_ for format_ in Format}


def to_records(rows: Sequence[Any]) -> list[Record]:
    """Return the records of rows. Raises: StorageError: A row is damaged."""
    try:
        return [to_record(row) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        # Nothing in a SQLite file guards against flipped bits.
        raise StorageError("the image index holds a damaged row; `imgkeep reindex` repairs it") from None


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def to_row(record: Record) -> dict[str, object]:
    """Return the columns of a record, but for the time of its row."""
    return {
        "key": record.key,
        "identity": record.identity,
        "host": record.host,
        "digest": record.digest,
        "extension": record.format.extension,
        "size": record.size,
        "width": record.pixel_size.width if record.pixel_size else None,
        "height": record.pixel_size.height if record.pixel_size else None,
        "etag": record.etag,
        "stored_at": int(record.stored_at.timestamp()),
        "provider": record.provider,
        "temporary": record.temporary,
        "expires_at": int(record.expires_at.timestamp()) if record.expires_at else None,
        "origin_etag": record.validator.etag if record.validator else None,
        "origin_modified": record.validator.modified if record.validator else None,
        "doubts": ",".join(write_doubts(record.doubts)) or None,
        "brought_by": record.brought_by or None,
    }


def to_record(row: sa.Row[Any]) -> Record:
    """Return the record of a row. Raises: KeyError, TypeError, ValueError, OverflowError, OSError: It is damaged."""
    return Record(
        key=Key(row.key),
        identity=row.identity,
        digest=Digest(row.digest),
        format=_FORMATS[row.extension],
        size=row.size,
        pixel_size=PixelSize(row.width, row.height) if row.width and row.height else None,
        etag=row.etag,
        stored_at=datetime.fromtimestamp(row.stored_at, UTC),
        validator=read_validator(row.origin_etag, row.origin_modified),
        waits_at=row.node,
        provenance=Provenance(
            host=row.host, provider=row.provider, temporary=row.temporary, expires_at=_time(row.expires_at)
        ),
        trust=Trust(
            doubts=read_doubts(row.doubts.split(",")) if row.doubts else frozenset(), brought_by=row.brought_by or ""
        ),
    )
