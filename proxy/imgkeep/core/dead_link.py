"""
Whether an origin's answer means that a link has ended.

Rules:
- A link past its end that is refused, or answered with a page, has ended, whatever words the origin finds for it.
- So has any link of which the origin says so, in the words of a service that documents them (`[[endings]]` in
  `identity/providers.toml`). They are looked for as they stand, in a few kilobytes, and nothing else is read from them.
- Nor does its own origin give it, where it redirects to another host that is refused, or that does not answer.
- What may be better in a moment (408, 425, 429, 5xx) says nothing about the link.
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
"""Maximum number of bytes of an error that are looked through; a real one has a few hundred."""
TRANSIENT: Final = frozenset({408, 421, 425, 429})
"""Statuses that refuse nothing: the origin wants to be asked later, or otherwise."""

_TEXTS: Final = re.compile(r"text/.*|application/(?:.*[+])?(?:json|xml|xhtml)(?:[+]xml)?")
_MARKUP: Final = re.compile(rb"[\s\xef\xbb\xbf]{0,64}(?:<[!?/a-zA-Z]|[{\[]\s{0,64}[\"{\[\]}])")


def refuses(status: int | None) -> bool:
    """Return whether an origin has refused a link for good, as far as its status tells."""
    return status is not None and 400 <= status < 500 and status not in TRANSIENT


def refusal_size(status: int, info: SourceInfo, now: datetime) -> int:
    """Return how much of the body that comes with a status may change what `explain` says; 0: nothing of it."""
    if not refuses(status) or _is_past(info, now):
        return 0
    return 0 if status in {401, 403, 404, 410} and info.may_have_expired(now) else READ_BYTES


def explain(error: ImgkeepError, info: SourceInfo, now: datetime) -> ImgkeepError:
    """Return what a failure by the link of `info` means: `SourceExpired` in its place, where the link has ended."""
    if not _has_ended(error, info, now):
        return error
    if not isinstance(error, OriginError):
        return SourceExpired("the link has expired: the origin redirects to a page of another host")
    told = SourceExpired(f"the link has expired or is no longer honoured: {error}", origin_status=error.origin_status)
    told.image = error.image
    return told


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
    """
    Return whether what came is made for people or programs to read: a page, a document of XML or JSON, a line of text.
    """
    if b"\0" in beginning:
        return False
    return _MARKUP.match(beginning) is not None or _TEXTS.fullmatch(media_type) is not None
