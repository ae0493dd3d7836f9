"""
Texts by which services say in an error response that a link has expired, as they document them.

A comparison is byte by byte and ignores case. imgkeep reads nothing else from an error: its body is untrusted.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Text = Annotated[str, msgspec.Meta(min_length=8)]
"""A text of at least eight characters: a shorter one can occur in any response."""


class ExpiredMessageTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table `[[endings]]`: a service and its texts; `examples` are whole bodies that contain one."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    source: str
    date: dt.date
    says: tuple[Text, ...]
    examples: tuple[str, ...]


class ExpiredMessages:
    """The immutable set of all these texts."""

    def __init__(self, tables: Iterable[ExpiredMessageTable]) -> None:
        self.tables = tuple(tables)
        self._texts = tuple(dict.fromkeys(text.lower().encode() for table in self.tables for text in table.says))

    def match(self, body: bytes) -> bool:
        """Return whether the body of an error contains one of them."""
        body = body.lower()
        return any(text in body for text in self._texts)


def read_endings(tables: Iterable[Mapping[str, object]]) -> ExpiredMessages:
    """
    Read the tables `[[endings]]` of the provider rules.

    Raises:
        ValueError: A table is invalid.
    """
    return ExpiredMessages(msgspec.convert(table, ExpiredMessageTable) for table in tables)
