"""
The decision whether an origin's response means that a link has expired.

Rules:
- A link past its expiry that the origin refuses, or answers with a page, has expired, whatever the text.
- A link has expired if the origin says so in the documented text of a service (`[[endings]]` in
  `identity/providers.toml`). imgkeep searches for these texts in a few kilobytes, and reads nothing else from the body.
- A link past its expiry has expired if its origin redirects to a host that is forbidden or does not answer.
- A transient failure (408, 425, 429, 5xx) says nothing about the link.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import (
    ImgkeepError,
    NotAnImage,
    OriginError,
    OriginRefused,
    RedirectForbidden,
    SourceExpired,
    SourceNotFound,
)
from imgkeep.core.identity import BUILT_IN

if TYPE_CHECKING:
    from datetime import datetime

    from imgkeep.core.records import SourceInfo

READ_BYTES: Final = 4096
"""Maximum number of bytes of an error body that imgkeep searches; a real one has a few hundred."""
TRANSIENT: Final = frozenset({408, 421, 425, 429})
"""Statuses that refuse nothing: the origin wants a later or a different request."""

_TEXTS: Final = re.compile(r"text/.*|application/(?:.*[+])?(?:json|xml|xhtml)(?:[+]xml)?")
_MARKUP: Final = re.compile(rb"[\s\xef\xbb\xbf]{0,64}(?:<[!?/a-zA-Z]|[{\[]\s{0,64}[\"{\[\]}])")


def refuses(status: int | None) -> bool:
    """Return whether a status means that an origin has refused a link permanently."""
    return status is not None and 400 <= status < 500 and status not in TRANSIENT


def refusal_size(status: int, info: SourceInfo, now: datetime) -> int:
    """Return how many bytes of the body `explain` needs beside the status; 0: none."""
    if not refuses(status) or _is_past(info, now):
        return 0
    return 0 if status in {401, 403, 404, 410} and info.may_have_expired(now) else READ_BYTES


def explain(error: ImgkeepError, info: SourceInfo, now: datetime) -> ImgkeepError:
    """Return `SourceExpired` in the place of a failure, if it means that the link of `info` has expired."""
    if not _has_ended(error, info, now):
        return error
    if not isinstance(error, OriginError):
        return SourceExpired("the link has expired: the origin redirects to a page of another host")
    expired = SourceExpired(
        f"the link has expired or is no longer honoured: {error}", origin_status=error.origin_status
    )
    expired.image = error.image
    return expired


def _has_ended(error: ImgkeepError, info: SourceInfo, now: datetime) -> bool:
    if isinstance(error, RedirectForbidden):
        return _is_past(info, now)
    if not isinstance(error, OriginError):
        return False
    if isinstance(error, (OriginRefused, SourceNotFound)) and info.may_have_expired(now):
        return True
    if error.elsewhere and error.origin_status is None:
        return _is_past(info, now)
    if isinstance(error, NotAnImage):
        refused = is_page(error.media_type, error.refusal)
    else:
        refused = refuses(error.origin_status)
    return refused and (_is_past(info, now) or BUILT_IN.endings.match(error.refusal[:READ_BYTES]))


def _is_past(info: SourceInfo, now: datetime) -> bool:
    return info.temporary and info.expires_at is not None and info.expires_at <= now


def is_page(media_type: str, beginning: bytes) -> bool:
    """Return whether a body is a text for people or programs: a page, a document of XML or JSON, a line of text."""
    if b"\0" in beginning:
        return False
    return _MARKUP.match(beginning) is not None or _TEXTS.fullmatch(media_type) is not None
