"""
Tickets of log-in links and sessions.

Rules:
- No ticket holds the token: HMAC-SHA-256 makes it from the token, it states its own end, and to check it needs no
  memory. So a ticket is valid at every worker, and ends when the token changes.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from datetime import datetime

PATH: Final = "/login"
"""Path of log-in links. Not below `/api/`, where a token is required and the leader answers for all workers."""
COOKIE: Final = "imgkeep_session"
LINK_LIFETIME_S: Final = 3600
"""Lifetime of a printed link: it stays in logs. `imgkeep token --login` prints another one."""
SESSION_LIFETIME_S: Final = 43_200
"""Lifetime of a session: a working day."""

_TICKET: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")

Use = Literal["link", "session"]


def make_ticket(token: str, use: Use, ends: int) -> str:
    """Return a ticket that is valid until `ends`, in epoch seconds. Only the owner of the token can make it."""
    text = f"imgkeep {use} {ends}"
    return f"{ends}.{hmac.new(token.encode(), text.encode(), sha256).hexdigest()}"


def is_valid_ticket(given: str, token: str, use: Use, now: datetime) -> bool:
    """Tell whether `make_ticket` made `given` for this use, and the ticket has not ended."""
    match = _TICKET.fullmatch(given)
    if match is None:
        return False
    ends = int(match[1])
    return hmac.compare_digest(given.encode(), make_ticket(token, use, ends).encode()) and now.timestamp() < ends


def make_log_in_link(token: str, host: str, port: int, now: datetime) -> str:
    """Return the log-in link of the server at an address of this machine."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"http://{authority}{PATH}?ticket={make_ticket(token, 'link', int(now.timestamp()) + LINK_LIFETIME_S)}"


class LogInLink:
    """A log-in link for the record of a start: logs redact URLs in strings, and this one is no string there."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return self._url
