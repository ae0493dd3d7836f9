"""Ingest: begins a draft, checks that its bytes are a whole image, and undoes a put of removed bytes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from imgkeep.core.errors import NotAnImage, StorageError, TooLarge

if TYPE_CHECKING:
    from imgkeep.core.records import PixelSize, Record
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.format_checker import CheckedImage
    from imgkeep.storage.interfaces import Draft, Store


async def begin_draft(dependencies: FillDependencies, size: int | None) -> Draft:
    """
    Begin a draft on the disk, or in memory where the store takes it from there.

    Raises:
        StorageError: There is no room.
    """
    try:
        return await dependencies.disk.begin(size)
    except StorageError:
        if dependencies.store.local_drafts_only:
            raise
        return await dependencies.memory.begin(size)


async def check_image(dependencies: FillDependencies, draft: Draft) -> CheckedImage:
    """
    Check by its bytes that a draft is an image, and whether it is complete by its format.

    Only a decoder finds the end of a naked JPEG XL codestream; there the framing has to do, which the caller checks.

    Raises:
        NotAnImage: It is none.
        TooLarge: It has too many pixels.
        Busy: Too many images are being checked.
    """
    image = await dependencies.format_checker.check(draft)
    if image is None:
        raise NotAnImage("the bytes are not an image of a supported format")
    require_pixels(dependencies, image.pixel_size)
    return image


async def check_whole_image(dependencies: FillDependencies, draft: Draft) -> CheckedImage:
    """
    Check as `check_image`, and that the image is complete.

    Raises:
        NotAnImage: Or it is incomplete. Else as `check_image`.
    """
    image = await check_image(dependencies, draft)
    require_complete(image)
    return image


def require_complete(image: CheckedImage) -> None:
    """Raise `NotAnImage` for an image that its format calls incomplete."""
    if image.is_incomplete:
        raise NotAnImage(f"the image is incomplete: its bytes end before the {image.format.name} file does")


def require_pixels(dependencies: FillDependencies, pixel_size: PixelSize | None) -> None:
    """Raise `TooLarge` for an image of too many pixels."""
    if pixel_size is not None and pixel_size.pixels > dependencies.pixels_max:
        raise TooLarge(f"the image has {pixel_size.pixels} pixels, more than fetch.pixels_max")


async def undo_put(store: Store, record: Record) -> None:
    """Delete what the store put while an operator removed its bytes. Bytes that a fault leaves are never shown."""
    with suppress(StorageError):
        await store.delete_object(record.digest)
