"""
Pages for people: each is one response that loads nothing, so it is whole behind a proxy that relays few paths.

The page contains its style and script. Its policy names them by their hashes and allows nothing else to run, to style,
to frame the page or to be loaded; `fill` escapes each value.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTENT_TYPE: Final = "text/html; charset=utf-8"


class Markup(str):
    """Text that is HTML already: all values in it are escaped."""

    __slots__ = ()


def read_static(name: str) -> str:
    """Return the text of a file of this package. Blocks; modules call it when they are imported."""
    return resources.files(__package__).joinpath("static", name).read_text("utf-8")


_STYLE: Final = read_static("page.css")
_FRAME: Final = Template(read_static("page.html"))


class Page:
    """
    A page with values that differ by request.

    Args:
        title: The title of the page, a template as `body` is.
        body: The template of its content: `$name` stands for a value.
        script: The script of the page; empty: no script.
        sources: Further things that the page may load, as directives of its policy.
    """

    def __init__(self, title: str, body: str, script: str = "", sources: Sequence[str] = ()) -> None:
        self._title = Template(title)
        self._body = Template(body)
        self._script = Markup(f'<script type="module">{script}</script>' if script else "")
        self._policy = (
            "default-src 'none'",
            f"style-src {_hash(_STYLE)}",
            *((f"script-src {_hash(script)}",) if script else ()),
            "base-uri 'none'",
            "frame-ancestors 'none'",
            *sources,
        )

    def policy(self, *sources: str) -> str:
        """Return the `Content-Security-Policy` of the page with more directives."""
        return "; ".join((*self._policy, *sources))

    def fill(self, **values: str) -> bytes:
        """Return the page with these values, escaped unless they are `Markup`."""
        safe = {name: value if isinstance(value, Markup) else escape(value) for name, value in values.items()}
        title, body = self._title.substitute(safe), self._body.substitute(safe)
        return _FRAME.substitute(title=title, style=_STYLE, body=body, script=self._script).encode()


def _hash(text: str) -> str:
    """Return the name of a text of the page in its policy (CSP 3, 2.3.1)."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
