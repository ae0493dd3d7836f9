"""
`GET /`: describes this server, as a page for people and as JSON for programs.

Rules:
- The page shows what every client may know. For what needs access (the facts of a link, the newest images) its script
  asks the API, with the session of the browser, and only where the browser has one.
- A session does not count for a request that a page elsewhere has caused, and browsers leave the cookie out
  (`SameSite=Strict`). After a link on such a page the script finds out by asking for this page again.
- Where only this machine can reach the server, it answers under its own names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, Final

import msgspec
from aiohttp import web

from imgkeep import __version__
from imgkeep.core.content_negotiation import prefers_page
from imgkeep.core.errors import ImgkeepError
from imgkeep.web.auth import AUTH
from imgkeep.web.documentation import FILES, INDEX
from imgkeep.web.html_pages import CONTENT_TYPE, Markup, Page, read_static
from imgkeep.web.login_tickets import COOKIE
from imgkeep.web.probes import HEALTH

PATH: Final = "/"
SUMMARY: Final = "Makes temporary image links permanent."

HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_PAGE: Final = Page("imgkeep", read_static("welcome.html"), read_static("welcome.js"))
_NEWEST: Final = read_static("newest.html")

_STATES: Final = {
    "ready": "All parts work",
    "degraded": "Some parts do not work",
    "unready": "Starting",
    "draining": "Stopping",
}
_SIGN: Final = "<code>imgkeep sign LINK</code> prints one"
_HINTS: Final = {
    "off": Markup("The server fetches and stores the image, if its policy allows the host."),
    "misses": Markup(
        f"This server fetches new images for signed URLs only: {_SIGN}, to be pasted here. "
        "A link with a stored image needs none."
    ),
    "always": Markup(f"This server shows images for signed URLs only: {_SIGN}, to be pasted here."),
}
_SIGNING: Final = {
    "off": Markup(),
    "misses": Markup(f"New images need signed URLs: {_SIGN}, and a back end makes them with the key."),
    "always": Markup(f"Every URL has to be signed: {_SIGN}, and a back end makes them with the key."),
}
_DOCUMENTATION: Final = Markup('<li><a href="docs">Documentation</a></li>')
_LOG_IN: Final = (
    "Log in to see them, and the facts of a link: open the link that imgkeep prints at start, or the one that "
    "<code>imgkeep token --login</code> prints."
)
_NO_LOG_IN: Final = "<code>GET /api/images</code> lists them, for clients with one of the configured tokens."


@dataclass(frozen=True, slots=True)
class HomePage:
    """
    Facts of the configuration that the page needs.

    Attributes:
        has_external_images: Whether an image may be at another server: in a bucket, or behind a redirect.
    """

    has_external_images: bool


HOME_PAGE: Final = web.AppKey("home_page", HomePage)
"""Not set where `server.welcome` disables the page."""


async def home(request: web.Request) -> web.Response:
    """Describe this server, in the form that the client reads."""
    request.app[AUTH].require_own_host(request.headers.get("Host"))
    accept = ", ".join(request.headers.getall("Accept", []))
    if not prefers_page(accept):
        body = msgspec.json.encode(_describe(request))
        return web.Response(body=body, content_type="application/json", headers={**HEADERS, "Vary": "Accept"})
    policy = _PAGE.policy(*_sources(has_external_images=request.app[HOME_PAGE].has_external_images))
    headers = {
        **HEADERS,
        "Content-Type": CONTENT_TYPE,
        "Vary": "Accept, Authorization, Cookie, Sec-Fetch-Site",
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }
    return web.Response(body=_fill(request), headers=headers)


def _describe(request: web.Request) -> dict[str, object]:
    """Return the description for programs."""
    base = request.app[AUTH].base_url(request)
    _, report = request.app[HEALTH].report(in_full=False)
    return {
        "name": "imgkeep",
        "summary": SUMMARY,
        "version": __version__,
        "status": report["status"],
        "image": f"{base}/img?src={{url}}",
        "openapi": f"{base}/openapi.json",
        "api": f"{base}/api",
        "documentation": f"{base}{INDEX if FILES else '/api'}",
        "health": f"{base}/healthz",
        "readiness": f"{base}/readyz",
        "module": f"{base}/imgkeep.js",
    }


def _sources(*, has_external_images: bool) -> tuple[str, ...]:
    """Return what the page may load: from this server, and from other servers where they hold images."""
    away = " http: https:" if has_external_images else ""
    return (f"img-src 'self' data:{away}", f"connect-src 'self'{away}", f"form-action 'self'{away}")


def _fill(request: web.Request) -> bytes:
    auth, may_call = request.app[AUTH], _may_call(request)
    is_local = bool(auth.own_hosts)
    has_log_in = is_local and auth.local_token is not None
    _, report = request.app[HEALTH].report(in_full=False)
    status = str(report["status"])
    newest = _NEWEST.replace("$closed", _LOG_IN if has_log_in else _NO_LOG_IN) if is_local else ""
    return _PAGE.fill(
        version=__version__,
        status=status,
        state=_STATES[status],
        parts=_list_parts(report) if is_local or may_call else "",
        base=auth.base_url(request),
        hint=_HINTS[auth.signature],
        signing=_SIGNING[auth.signature],
        api=_session_state(request, may_call=may_call) if has_log_in else "",
        newest=Markup(newest),
        documentation=_DOCUMENTATION if FILES else "",
    )


def _session_state(request: web.Request, *, may_call: bool) -> str:
    """Return what the script acts on: `session`, `ask` where it does not count for this request alone, or nothing."""
    if may_call and COOKIE in request.cookies:
        return "session"
    return "ask" if request.headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"} else ""


def _list_parts(report: dict[str, Any]) -> Markup:
    states = {name: part["status"] for name, part in report.items() if isinstance(part, dict)}
    items = (f'<li class="dot {escape(state)}">{escape(name)} {escape(state)}</li>' for name, state in states.items())
    return Markup(f'<ul aria-label="Parts">{"".join(items)}</ul>')


def _may_call(request: web.Request) -> bool:
    try:
        request.app[AUTH].require_api_access(request)
    except ImgkeepError:
        return False
    return True
