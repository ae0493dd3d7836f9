"""The result of a fill: one value, which each listener of the fill gets once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgkeep.core.errors import ImgkeepError, StorageError
    from imgkeep.core.records import Record, Subject


@dataclass(frozen=True, slots=True)
class Stored:
    """The image is durable. `record`: under which it is found from now on."""

    record: Record


@dataclass(frozen=True, slots=True)
class NotStored:
    """The image was fetched and delivered, but no store could take it."""

    fault: StorageError


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The origin was asked whether the image changed, and it did not."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """The image was not due any more, so nothing was fetched."""


@dataclass(frozen=True, slots=True)
class NotBegun:
    """
    Another node fetches the image, or has failed by the same link a moment ago. So nothing was fetched.

    Attributes:
        error: A `FilledByPeer`, or that failure.
        ttl_s: Seconds for which the link is still answered with that failure.
    """

    error: ImgkeepError
    ttl_s: float = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no image by this link, or not all of it."""

    error: BaseException


FillOutcome = Stored | NotStored | Unchanged | Skipped | NotBegun | Failed


@dataclass(frozen=True, slots=True)
class FillResult:
    """
    How a fill ended.

    Attributes:
        subject: The key, host and provider of the image, for counters and logs.
        size: How many bytes came.
    """

    subject: Subject
    size: int
    outcome: FillOutcome


FillListener = Callable[[FillResult], Awaitable[None]]
"""
Learns how a fill ended: once, before a reader has the last byte or the failure. It never fails. If no image is stored,
it waits for nothing but its lease, and for that a second at most.
"""
