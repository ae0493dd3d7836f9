"""The notice: a message of one process to all others about what it has changed. Between workers and between nodes."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from imgkeep.core.records import Digest, Key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping

    Learn = Callable[[Collection[Digest], Collection[Key], Mapping[str, int], Collection[Digest]], Awaitable[None]]
    """Applies a notice: blocked digests, changed keys, copies, unblocked digests. Raises: StorageError."""

T = TypeVar("T")

NAMES_MAX: Final = 5000
"""Maximum number of names in one encoded notice among several: 350 kB."""


class Notice(msgspec.Struct):
    """
    Digests, keys, and the names of copies that a process has changed.

    Attributes:
        blocked: Digests that are blocked.
        changed: Keys whose record has changed, and what `Confirmer.learn` understands.
        copies: Local copies of this machine that were brought or used, by name and size.
        unblocked: Digests that may be blocked no longer.
        everything: Whether any record may have changed: there were too many to name them.
    """

    blocked: list[Digest] = []
    changed: list[Key] = []
    copies: dict[str, int] = {}
    unblocked: list[Digest] = []
    everything: bool = False


def merge(notices: Iterable[Notice]) -> Notice:
    """Merge notices without copies, in the order in which they came."""
    blocked: dict[Digest, None] = {}
    changed: dict[Key, None] = {}
    unblocked: dict[Digest, None] = {}
    everything = False
    for notice in notices:
        blocked.update(dict.fromkeys(notice.blocked))
        changed.update(dict.fromkeys(notice.changed))
        unblocked.update(dict.fromkeys(notice.unblocked))
        everything = everything or notice.everything
    return Notice(list(blocked), list(changed), {}, list(unblocked), everything)


def encode(notice: Notice) -> list[bytes]:
    """Encode a notice without copies, in parts of up to `NAMES_MAX` names."""
    parts = [notice]
    if len(notice.blocked) + len(notice.changed) + len(notice.unblocked) > NAMES_MAX:
        parts = [Notice(blocked=names) for names in _split(notice.blocked)]
        parts += [Notice(changed=names) for names in _split(notice.changed)]
        parts += [Notice(unblocked=names) for names in _split(notice.unblocked)]
        parts += [Notice(everything=True)] if notice.everything else []
    return [msgspec.msgpack.encode(part) for part in parts]


def decode(payload: bytes) -> Notice:
    """
    Decode what `encode` made, here or in another version.

    Raises:
        msgspec.DecodeError: It is no notice.
    """
    return msgspec.msgpack.decode(payload, type=Notice)


def _split(names: Collection[T]) -> Iterator[list[T]]:
    remaining = iter(names)
    while part := list(islice(remaining, NAMES_MAX)):
        yield part
