"""The one reader of the real clock. All other code is handed a `Clock`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Clock = Callable[[], datetime]
    """The current time, aware UTC."""
    Sleep = Callable[[float], Awaitable[None]]
    """Wait for so many seconds."""


def read_clock() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one place
