"""
Forms of a failure: a problem for programs, a page in a tab, or a placeholder in place of an image.

Rules:
- `problems.py` makes a failure once, as a problem. Page and placeholder are made from that response, so neither can
  state other facts, and the status and the header fields stay.
- `present_failure` chooses the form for each client, after coalesced requests have got one failure to share.
- It returns a response that is no problem as it is: a hit never comes here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from aiohttp import web

from imgkeep.config import ConfigError
from imgkeep.core.content_negotiation import Form, choose_form
from imgkeep.core.errors import InvalidOption
from imgkeep.core.formats import Spent, Undecided, is_whole, sniff
from imgkeep.web.html_pages import CONTENT_TYPE, Markup, Page, read_static
from imgkeep.web.image_headers import csp_of

if TYPE_CHECKING:
    from imgkeep.core.http_headers import Fields
    from imgkeep.core.records import Format
    from imgkeep.web.request_response import HttpResponse

PLACEHOLDER_BYTES_MAX: Final = 1_048_576
"""Maximum size of `delivery.placeholder`: it stays in memory, and each client that meets a failure gets it whole."""

PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The image of `delivery.placeholder`."""

    format: Format
    body: bytes


PLACEHOLDER: Final = web.AppKey("placeholder", Placeholder)
"""Not set where `delivery.placeholder` is empty."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A failure (RFC 9457), as `problems.py` writes it. `success` is false under `/api`, and absent elsewhere."""

    type: str
    title: str
    status: int
    detail: Annotated[str, msgspec.Meta(description="For people.")]
    code: Annotated[str, msgspec.Meta(description="For programs.")]
    success: Literal[False] | msgspec.UnsetType = msgspec.UNSET


_PAGE: Final = Page("$status $title", read_static("problem.html"), sources=("img-src data:", "form-action 'none'"))
_POLICY: Final = _PAGE.policy()
_CODE: Final = re.compile("`([^`]*)`")


def read_placeholder(setting: str) -> Placeholder | None:
    """
    Read the file of `delivery.placeholder`; `None`: the setting is empty. Blocks.

    Raises:
        ConfigError: The file cannot be read, is too large, or is not a whole image.
    """
    if not setting:
        return None
    path = Path(setting)
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise ConfigError(f"delivery.placeholder: {setting} {problem}")
        with path.open("rb") as file:
            body = file.read(PLACEHOLDER_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"delivery.placeholder: {setting} cannot be read: {reason}") from None
    if len(body) > PLACEHOLDER_BYTES_MAX:
        raise ConfigError(f"delivery.placeholder: {setting} has more than {PLACEHOLDER_BYTES_MAX} bytes")
    try:
        found = sniff(body, ended=True)
        whole = found is not None and not isinstance(found, Undecided) and is_whole(found, body)
    except Spent:
        found, whole = None, False
    if found is None or isinstance(found, Undecided) or not whole:
        raise ConfigError(f"delivery.placeholder: {setting} is not a whole image of a supported format")
    return Placeholder(found, body)


def present_failure(
    response: HttpResponse, method: str, fields: Fields, placeholder: Placeholder | None = None
) -> HttpResponse:
    """
    Return a failure in the form that its client reads; any other response as it is.

    Args:
        response: The response, which stays unchanged: other requests may share it.
        method: The method of the request.
        fields: The header fields of the request.
        placeholder: The image to answer with; `None`: the request is for no image, or no placeholder is configured.
    """
    if response.headers.get("Content-Type") != PROBLEM or not isinstance(response.body, bytes):
        return response
    form = _choose(method, fields)
    if form is Form.PAGE:
        return _as_page(response, response.body)
    if form is Form.IMAGE and placeholder is not None:
        return _as_placeholder(response, placeholder)
    return response


def accepts_page(method: str, fields: Fields) -> bool:
    """Tell whether the client of a request gets a failure as a page."""
    return _choose(method, fields) is Form.PAGE


def _choose(method: str, fields: Fields) -> Form:
    return choose_form(method, _combine(fields, "Accept"), _combine(fields, "Sec-Fetch-Dest"))


def _as_page(response: HttpResponse, body: bytes) -> HttpResponse:
    facts = msgspec.json.decode(body, type=Problem)
    wait = response.headers.get("Retry-After")
    page = _PAGE.fill(
        status=str(facts.status),
        title=facts.title,
        detail=Markup(_CODE.sub(r"<code>\1</code>", escape(_as_sentence(facts.detail, facts.code)))),
        code=facts.code,
        again="" if wait is None else f"Try again in {wait} {'second' if wait == '1' else 'seconds'}.",
    )
    headers = {**response.headers, "Content-Type": CONTENT_TYPE, "Content-Security-Policy": _POLICY}
    return replace(response, headers={**headers, "Referrer-Policy": "no-referrer"}, body=page)


def _as_placeholder(response: HttpResponse, placeholder: Placeholder) -> HttpResponse:
    headers = {
        **response.headers,
        "Content-Type": placeholder.format.media_type,
        "Content-Security-Policy": csp_of(placeholder.format),
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    return replace(response, headers=headers, body=placeholder.body)


def _as_sentence(detail: str, code: str) -> str:
    """Return a detail as a sentence: in JSON it is a clause. The name of an option at its start stays as it is."""
    text = detail if code == InvalidOption.code else detail[:1].upper() + detail[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _combine(fields: Fields, name: str) -> str | None:
    """Return a field's value, its lines combined (RFC 9110, 5.3); `None` if it is absent."""
    lines = fields.getall(name, [])
    return ", ".join(lines) if lines else None
