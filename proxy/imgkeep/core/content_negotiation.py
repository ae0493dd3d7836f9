"""
Content negotiation: the form of a failure, by `Accept` (RFC 9110, 12.5.1) and `Sec-Fetch-Dest`; and the fields that a
script of another site may send, by the preflight request of its browser (WHATWG Fetch).

Rules: JSON unless the client prefers another form; no input raises an exception; only the first members of each field
count, so that the work is linear in its length.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from imgkeep.core.http_headers import FORWARDED_HEADERS

MEMBERS_MAX: Final = 32
"""Maximum number of members of an `Accept` that count: browsers send ten."""

FORM_FIELDS: Final = "Accept, Sec-Fetch-Dest"
"""Value of `Vary` in each response whose form `choose_form` has chosen."""

PAGE: Final = "text/html"
_IMAGE: Final = "image/"
_DATA: Final = frozenset({"application/json", "application/problem+json"})
_QUALITY: Final = re.compile(r"[ \t]*q[ \t]*=[ \t]*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*", re.IGNORECASE)
FIELDS_USUAL: Final = (
    *("accept", "cache-control", "content-type", "if-modified-since", "if-none-match", "if-range", "pragma", "range"),
    "x-requested-with",
)
"""Fields that scripts send with requests for images; a preflight request may add others."""
FIELDS_MAX: Final = 64
"""Maximum number of fields in a preflight request: tracing libraries add ten."""
_FIELDS_ACTED_ON: Final = frozenset({"authorization", "cookie", "via", "cdn-loop", "forwarded", *FORWARDED_HEADERS})
"""Fields that identify the client. A page of another site must not send them."""
_FIELD: Final = re.compile(r"(?!x-forwarded-|imgkeep-|\*\Z)[a-z0-9!#$%&'*+.^_`|~-]{1,128}")
"""A token (RFC 9110, 5.6.2), without a lone `*`, which means all fields in the response to a preflight request."""
_READS: Final = frozenset({"GET", "HEAD"})


class Form(Enum):
    """The form of a failure."""

    PROBLEM = "problem"
    PAGE = "page"
    IMAGE = "image"


def choose_form(method: str, accept: str | None, destination: str | None) -> Form:
    """
    Return the form in which a client reads a failure.

    Args:
        method: The method of the request; a page and an image answer `GET` and `HEAD` alone.
        accept: The `Accept` of the request; `None`: it has none.
        destination: Its `Sec-Fetch-Dest`. Browsers send this field to https and loopback addresses only. It decides
            where it is present; `None`: `Accept` decides, in which a browser names `text/html` for a tab, and types of
            images, but no page, for an `<img>`.
    """
    if method not in _READS:
        return Form.PROBLEM
    if destination is not None:
        return {"document": Form.PAGE, "image": Form.IMAGE}.get(destination.strip(" \t").lower(), Form.PROBLEM)
    if prefers_page(accept):
        return Form.PAGE
    types = read_qualities(accept)
    is_image = any(name.startswith(_IMAGE) and quality > 0 for name, quality in types.items())
    return Form.IMAGE if is_image and not types.keys() & {PAGE, *_DATA} else Form.PROBLEM


def prefers_page(accept: str | None) -> bool:
    """Return whether a client names `text/html`, and no form of JSON before it. A wildcard names nothing."""
    types = read_qualities(accept)
    page = types.get(PAGE, 0)
    return page > 0 and all(page >= types.get(name, 0) for name in _DATA)


def read_qualities(accept: str | None) -> dict[str, float]:
    """Return the qualities of media types, without their other parameters; a malformed quality counts as 0."""
    types: dict[str, float] = {}
    for member in (accept or "").split(",", MEMBERS_MAX)[:MEMBERS_MAX]:
        name, *parameters = member.split(";", 8)
        name = name.strip(" \t").lower()
        qualities = [text for text in parameters if text.lstrip(" \t")[:1] in {"q", "Q"}]
        match = _QUALITY.fullmatch(qualities[0]) if qualities else None
        quality = float(match[1]) if match else float(not qualities)
        types[name] = max(quality, types.get(name, 0))
    return types


def allow_fields(requested: str | None) -> tuple[str, ...]:
    """
    Return the fields that a script of another site may send, in lower case.

    Args:
        requested: The `Access-Control-Request-Headers` of a preflight; `None`: it has none.
    """
    asked = (requested or "").lower().split(",", FIELDS_MAX)[:FIELDS_MAX]
    names = (name.strip(" \t") for name in asked)
    wanted = [name for name in names if _FIELD.fullmatch(name) and name not in _FIELDS_ACTED_ON]
    return tuple(dict.fromkeys((*FIELDS_USUAL, *wanted)))
