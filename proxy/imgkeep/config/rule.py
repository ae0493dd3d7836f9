"""A rule for one setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Rule(NamedTuple):
    """A rule for one setting. `message`: the reason for its refusal; `needs`: the other settings that it reads."""

    setting: str
    is_honoured: Callable[[], bool]
    message: str
    needs: tuple[str, ...] = ()
