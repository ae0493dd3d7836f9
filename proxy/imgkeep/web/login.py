"""
How browsers on this machine get into the API: by a log-in link that leaves a session cookie.

Rules:
- Neither the link nor the cookie holds the token: both are made from it by HMAC-SHA-256, tell when they end, and are
  checked without a memory. So they hold with every worker, and end when the token changes.
- A browser sends a cookie whichever page makes the request. So a session counts only under a name of this machine (a
  page elsewhere may lead a name of its own here: DNS rebinding), only for pages of our own port (cookies know no
  ports), and changes something only where the browser names that page (`Origin`).
- The cookie goes to all paths: `/` and `/readyz` tell more to those who may call the API. Images depend on no cookie.
- The query of a log-in link is a credential, and stands in no record of a request.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal

from aiohttp import web

from imgkeep.core.errors import Unauthorized
from imgkeep.web.context import SITE

if TYPE_CHECKING:
    from datetime import datetime

PATH: Final = "/login"
"""Not below `/api/`, where a token is asked for and one of several workers answers for all."""
COOKIE: Final = "imgkeep_session"
LINK_LIFETIME_S: Final = 3600
"""How long a link holds that is printed: it stays in logs. `imgkeep token --login` prints another one."""
SESSION_LIFETIME_S: Final = 43_200
"""A working day."""

_TICKET: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")


def make_ticket(token: str, use: Literal["link", "session"], ends: int) -> str:
    """Return what shows until `ends`, in epoch seconds, that its holder was given it by who has the token."""
    text = f"imgkeep {use} {ends}"
    return f"{ends}.{hmac.new(token.encode(), text.encode(), sha256).hexdigest()}"


def holds(given: str, token: str, use: Literal["link", "session"], now: datetime) -> bool:
    """Tell whether `make_ticket` has made `given`, for this use, and it has not ended."""
    match = _TICKET.fullmatch(given)
    if match is None:
        return False
    ends = int(match[1])
    return hmac.compare_digest(given.encode(), make_ticket(token, use, ends).encode()) and now.timestamp() < ends


def make_log_in_link(token: str, host: str, port: int, now: datetime) -> str:
    """Return the log-in link of the server at an address of this machine."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"http://{place}{PATH}?ticket={make_ticket(token, 'link', int(now.timestamp()) + LINK_LIFETIME_S)}"


class Link:
    """A log-in link, for the record of a start: the one URL that is logged whole, because it is no string there."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return self._url


async def login(request: web.Request) -> web.Response:
    """
    Turn a log-in link into a session, and lead to what there is to see.

    Raises:
        Unauthorized: The link is wrong or has ended, or this is not the name of this machine.
    """
    session = request.app[SITE].auth.log_in(request)
    if session is None:
        raise Unauthorized("the log-in link is wrong or has ended: `imgkeep token --login` prints another one")
    home = "/api" if request.app[SITE].welcome is None else "/"
    response = web.Response(
        status=303, headers={"Location": home, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    )
    response.set_cookie(COOKIE, session, max_age=SESSION_LIFETIME_S, path="/", httponly=True, samesite="Strict")
    return response
