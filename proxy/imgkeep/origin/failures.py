"""Failures of origins as errors of this program, by whose fault they are; no message holds a URL."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import aiohttp

from imgkeep.core.errors import (
    Busy,
    LoopDetected,
    OriginError,
    OriginRefused,
    SourceForbidden,
    SourceNotFound,
)
from imgkeep.core.http_headers import read_retry_after
from imgkeep.origin.demand import NotModified
from imgkeep.origin.ssrf_guard import AddressRefused, OwnAddress

if TYPE_CHECKING:
    from imgkeep.clock import Clock
    from imgkeep.origin.http1 import Http1Response

BODILESS: Final = frozenset({204, 205, 304})


class PermanentError(OriginError):
    """A failure that another attempt would only repeat."""


def check_status(response: Http1Response, clock: Clock, *, conditional: bool) -> None:
    """
    Check that an answer carries a body to look at.

    Raises:
        NotModified, SourceNotFound, OriginRefused, LoopDetected, OriginError: It does not.
    """
    status = response.status
    if status == 304 and conditional:
        raise NotModified
    # Browsers show an image that comes with any of these, also with redirects that lead nowhere or that they do not
    # follow.
    if 200 <= status < 400 and status not in BODILESS:
        return
    if status in {404, 410}:
        raise SourceNotFound(f"the origin says {status}", origin_status=status)
    if status in {401, 403}:
        raise OriginRefused(f"the origin says {status}", origin_status=status)
    if status == 508:
        raise LoopDetected("the origin found a loop")
    retry_after_s = None
    if status in {429, 503}:
        retry_after_s = read_retry_after(response.headers.get("Retry-After"), clock())
    raise OriginError(f"the origin says {status}", origin_status=status, retry_after_s=retry_after_s)


def explain_connect_error(error: aiohttp.ClientConnectorError) -> Exception:
    """Return the error of this program for a connection that was not made."""
    if isinstance(error, aiohttp.ClientSSLError):
        return PermanentError("the origin has no valid certificate, or TLS failed otherwise")
    cause = error.os_error
    if isinstance(cause, AddressRefused):
        return SourceForbidden(f"the source is refused: {cause.strerror}")
    if isinstance(cause, OwnAddress):
        return LoopDetected("the source is this server")
    if cause.errno in {errno.EMFILE, errno.ENFILE}:
        return Busy("the server has no file descriptor left for another connection", retry_after_s=2)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return OriginError("the name of the origin cannot be resolved")
    return OriginError("no connection to the origin could be made")
