"""
`GET /login`: gives browsers on this machine a session cookie for a log-in link.

Rules:
- A browser sends a cookie whichever page makes the request. So a session counts only under a name of this machine (a
  page elsewhere may point a name of its own here: DNS rebinding), only for pages of this server's port (cookies know no
  ports), and changes something only where the browser names that page (`Origin`).
- The cookie is valid for all paths: `/` and `/readyz` state more to clients with access to the API. Images depend on no
  cookie.
- The query of a log-in link is a credential, and stands in no record of a request.
"""

from __future__ import annotations

from aiohttp import web

from imgkeep.core.errors import Unauthorized
from imgkeep.web.auth import AUTH
from imgkeep.web.home_page import HOME_PAGE
from imgkeep.web.login_tickets import COOKIE, SESSION_LIFETIME_S


async def login(request: web.Request) -> web.Response:
    """
    Exchange a log-in link for a session, and redirect to the home page.

    Raises:
        Unauthorized: The link is wrong or has ended, or was opened under a name that is not this machine's.
    """
    session = request.app[AUTH].log_in(request)
    if session is None:
        raise Unauthorized("the log-in link is wrong or has ended: `imgkeep token --login` prints another one")
    home = "/" if HOME_PAGE in request.app else "/api"
    response = web.Response(
        status=303, headers={"Location": home, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    )
    response.set_cookie(COOKIE, session, max_age=SESSION_LIFETIME_S, path="/", httponly=True, samesite="Strict")
    return response
