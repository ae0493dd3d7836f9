"""Pages of long lists: how many entries, and from where."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import InvalidRequest

if TYPE_CHECKING:
    from datetime import datetime

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000
"""Maximum number of entries of a page."""


def read_limit(text: str | None) -> int:
    """
    Return the number of entries that a client wants.

    Raises:
        InvalidRequest: The text is no number from 1 to `LIMIT_MAX`.
    """
    if text is None:
        return LIMIT_DEFAULT
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise InvalidRequest(f"limit has to be a number from 1 to {LIMIT_MAX}")
    return int(text)


def make_cursor(moment: datetime, name: str) -> str:
    """Return a cursor behind an entry of a list that is ordered by time."""
    return urlsafe_b64encode(f"{int(moment.timestamp())}-{name}".encode()).decode().rstrip("=")


def read_cursor(text: str | None, form: re.Pattern[str]) -> tuple[int, str] | None:
    """
    Return the second and the name in a cursor; `form` matches both.

    Raises:
        InvalidRequest: The text is no cursor.
    """
    if text is None:
        return None
    try:
        read = form.fullmatch(urlsafe_b64decode(f"{text}==").decode("ascii"))
    except ValueError:
        read = None
    if read is None:
        raise InvalidRequest("cursor is not one that next has given")
    return int(read[1]), read[2]
