"""What the API and commands tell of a record, whatever the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.confirmation import standing_of
from imgkeep.core.layout import write_doubts

if TYPE_CHECKING:
    from imgkeep.core.records import Record


def describe_record(record: Record, *, url: str, storage: str, suspect: bool = False) -> dict[str, object]:
    """
    Return the facts of a record.

    Args:
        record: The record.
        url: Its permanent URL, as far as it is known.
        storage: Where its object is at this moment.
        suspect: Whether its bytes are suspected to be a placeholder.
    """
    return {
        "url": url,
        "storage": storage,
        "key": record.key,
        "digest": record.digest,
        "content_type": record.format.media_type,
        "size": record.size,
        "width": record.pixel_size.width if record.pixel_size else None,
        "height": record.pixel_size.height if record.pixel_size else None,
        "stored_at": record.stored_at,
        "standing": standing_of(record).value,
        "doubts": write_doubts(record.doubts),
        "suspect": suspect,
        "source": {
            "host": record.host or None,
            "provider": record.provider,
            "temporary": record.temporary,
            "expires_at": record.expires_at,
        },
    }
