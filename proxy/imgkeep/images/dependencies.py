"""Dependencies of every fill, such as the store, the spools and the format checker; one instance per process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from imgkeep.clock import Clock
    from imgkeep.core.records import Digest
    from imgkeep.images.format_checker import FormatChecker
    from imgkeep.images.observer import FillObserver
    from imgkeep.images.placeholder_suspects import PlaceholderSuspects
    from imgkeep.origin.client import OriginClient
    from imgkeep.storage.interfaces import Spool, Store


@dataclass(frozen=True, slots=True)
class FillDependencies:
    """
    The dependencies of every fill, refetch and upload.

    Attributes:
        disk: The spool in which drafts begin.
        memory: The spool in which drafts continue when the disk fails.
        draw_etag: Returns a new strong entity tag.
        pixels_max: Maximum number of pixels of an image.
        blocked: The digests of removed images.
        suspects: The bytes that may be a placeholder; `None`: imgkeep suspects none.
        show_errors: Whether clients are shown the images that come with errors.
    """

    origin: OriginClient
    store: Store
    disk: Spool
    memory: Spool
    format_checker: FormatChecker
    observer: FillObserver
    clock: Clock
    draw_etag: Callable[[], str]
    pixels_max: int
    blocked: Container[Digest] = frozenset()
    suspects: PlaceholderSuspects | None = None
    show_errors: bool = False
