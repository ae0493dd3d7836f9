"""A draft that has no readers yet: where it begins, and whether it holds a whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.errors import NotAnImage, StorageError, TooLarge

if TYPE_CHECKING:
    from imgkeep.images.fill import FillDependencies
    from imgkeep.images.format_checker import CheckedImage
    from imgkeep.storage.interfaces import Draft


async def begin(to: FillDependencies, size: int | None) -> Draft:
    """
    Begin a draft on the disk, or in memory where the store takes it from there.

    Raises:
        StorageError: There is no room.
    """
    try:
        return await to.disk.begin(size)
    except StorageError:
        if to.store.local_drafts_only:
            raise
        return await to.memory.begin(size)


async def check_image(to: FillDependencies, draft: Draft) -> CheckedImage:
    """
    Judge by its bytes that a draft is an image, and whether it is complete by its format.

    Of a naked JPEG XL codestream only a decoder finds the end; there the framing has to do, which the caller checks.

    Raises:
        NotAnImage: It is none.
        TooLarge: It has too many pixels.
        Busy: Too many images are being judged.
    """
    judged = await to.format_checker.check(draft)
    if judged is None:
        raise NotAnImage("the bytes are not an image of a supported format")
    pixel_size = judged.pixel_size
    if pixel_size is not None and pixel_size.pixels > to.pixels_max:
        raise TooLarge(f"the image has {pixel_size.pixels} pixels, more than fetch.pixels_max")
    return judged


async def check_whole_image(to: FillDependencies, draft: Draft) -> CheckedImage:
    """
    Judge as `check_image`, and that the image is complete.

    Raises:
        NotAnImage: Or it is incomplete. Else as `check_image`.
    """
    judged = await check_image(to, draft)
    require_complete(judged)
    return judged


def require_complete(judged: CheckedImage) -> None:
    """Raise `NotAnImage` for an image that its format calls incomplete."""
    if judged.is_incomplete:
        raise NotAnImage(f"the image is incomplete: its bytes end before the {judged.format.name} file does")
