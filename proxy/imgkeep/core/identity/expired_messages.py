"""
What services say of links that have ended: texts that stand in their errors, as they document them.

They are compared byte by byte, without regard to case. Nothing else of an error is read: it is an origin's word.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Text = Annotated[str, msgspec.Meta(min_length=8)]
"""Shorter ones could stand anywhere."""


class ExpiredMessageTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a service says, as it is written; `examples` are bodies in which it says so."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    source: str
    date: dt.date
    says: tuple[Text, ...]
    examples: tuple[str, ...]


class ExpiredMessages:
    """All that services say, ready to be looked for. Never changes."""

    def __init__(self, tables: Iterable[ExpiredMessageTable]) -> None:
        self.tables = tuple(tables)
        self._texts = tuple(dict.fromkeys(text.lower().encode() for table in self.tables for text in table.says))

    def match(self, body: bytes) -> bool:
        """Return whether one of them stands in the body of an error."""
        body = body.lower()
        return any(text in body for text in self._texts)


def read_endings(tables: Iterable[Mapping[str, object]]) -> ExpiredMessages:
    """
    Read the tables `[[endings]]` of the provider rules.

    Raises:
        ValueError: One of them cannot be honoured.
    """
    return ExpiredMessages(msgspec.convert(table, ExpiredMessageTable) for table in tables)
