"""Raw text, the content of `<script>`, `<style>`, `<title>` and the like, and its end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES: Final = frozenset({"iframe", "noembed", "noframes", "noscript", "script", "style", "textarea", "title", "xmp"})
"""Names of HTML elements with raw text; `noscript` is one in a browser with scripts."""

_ENDS: Final = {name: re.compile(rf"</{name}[\t\n\f\r />]", re.ASCII | re.IGNORECASE) for name in NAMES}
_SCRIPT_MARKS: Final = re.compile(r"<!--|-->|<(/?)script[\t\n\f\r />]", re.ASCII | re.IGNORECASE)


class Raw:
    """
    A scanner of raw text, up to the end tag of its element.

    Attributes:
        rewrite: Function that rewrites the complete text; `None`: the text passes unchanged.
    """

    def __init__(self, name: str, rewrite: Callable[[str], str] | None) -> None:
        self.name = name
        self.rewrite = rewrite
        self._level = 0

    def find_end(self, text: str, at: int) -> tuple[int | None, int]:
        """Return the start of the end tag, if present, and the position from which the next call needs `text` again."""
        if self.name == "script":
            return self._find_script_end(text, at)
        match = _ENDS[self.name].search(text, at)
        return (match.start() if match else None), max(at, len(text) - len("</>") - len(self.name) + 1)

    def _find_script_end(self, text: str, at: int) -> tuple[int | None, int]:
        """
        Find the end of a script, which may contain comments with scripts (#script-data-double-escaped-state).

        The level is 0 in a script, 1 in a comment in it, 2 in a script in that.
        """
        level = self._level
        while match := _SCRIPT_MARKS.search(text, at):
            at = match.end()
            if match[0] == "<!--":
                level = max(level, 1)
                at -= len("--")  # `<!-->` is a whole comment
            elif match[0] == "-->":
                level = 0
            elif match[1] and level < 2:
                return match.start(), at
            elif level:
                level = 1 if match[1] else 2
        if self.rewrite is None:
            self._level = level
        return None, max(at, len(text) - len("</script"))
