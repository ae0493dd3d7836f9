"""The one reader of the real clock. All other code is handed a `Clock`."""

from __future__ import annotations

from datetime import UTC, datetime


def read_clock() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one place
