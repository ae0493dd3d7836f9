"""
URLs of the image optimizer of Next.js: `/_next/image?url=...&w=640&q=75`.

Its `Image` component writes `w`, a width in device pixels, and `q` into each URL, 75 where the page names no quality:
so 75 stands for the default of the format. The format follows `Accept`, and a picture is never enlarged. `dpl`, the
name of a deployment, says nothing about the picture.
"""

from __future__ import annotations

from typing import Final

from imgkeep.core.derived.compatibility.foreign_request import (
    ForeignRequest,
    check_length,
    percent_decoded,
    quoted,
    read_absolute_url,
)
from imgkeep.core.errors import InvalidOption, InvalidSource, NotSupported

DEFAULT_QUALITY: Final = "75"
_NAMES: Final = ("url", "w", "q", "dpl")


def read_nextjs(query: str | None) -> ForeignRequest:
    """
    Read the query of a URL of Next.js.

    Raises:
        InvalidOption, NotSupported, InvalidSource: The URL is refused.
    """
    check_length("", query)
    given: dict[str, str] = {}
    for text in filter(None, (query or "").split("&")):
        name, _, value = text.partition("=")
        if name not in _NAMES:
            raise InvalidOption(f"{quoted(name)} is not a parameter of Next.js; there are {', '.join(_NAMES)}")
        if name in given:
            raise InvalidOption(f"{name} is given twice")
        given[name] = percent_decoded(value.replace("+", " "))
    source = given.get("url", "")
    if source.startswith("/") and not source.startswith("//"):
        raise NotSupported("url: a path of the Next.js server is not supported; give an absolute URL")
    if read_absolute_url(source) is None:
        raise InvalidSource("url is missing, or is not an absolute http:// or https:// URL")
    if "w" not in given:
        raise InvalidOption("w is missing: Next.js gives a width with each picture")
    parameters = [("w", given["w"]), ("format", "auto")]
    if given.get("q", DEFAULT_QUALITY) != DEFAULT_QUALITY:
        parameters.append(("q", given["q"]))
    return ForeignRequest(source, tuple(parameters))
