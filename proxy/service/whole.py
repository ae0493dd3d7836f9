"""A draft that nobody reads along: where it begins, and whether it holds a whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.errors import NotAnImage, StorageError, TooLarge
from proxy.core.model import Format
from proxy.core.sniff import HEAD_BYTES_MAX, UNDECIDED, is_whole, measure, sniff

if TYPE_CHECKING:
    from proxy.core.model import PixelSize
    from proxy.ports import Draft
    from proxy.service.fill import Neighbours


async def begin(to: Neighbours, size: int | None) -> Draft:
    """
    Begin a draft on the disk, or in memory where the store takes it from there.

    Raises:
        StorageError: There is no room.
    """
    try:
        return await to.disk.begin(size)
    except StorageError:
        if to.store.disk_only:
            raise
        return await to.memory.begin(size)


async def judge_whole(draft: Draft, *, pixels_max: int) -> tuple[Format, PixelSize | None]:
    """
    Judge by its bytes that a draft is an image, complete by its format.

    Of a naked JPEG XL codestream only a decoder finds the end; there the framing has to do, which the caller checks.

    Raises:
        NotAnImage: It is none, or not whole.
        TooLarge: It has too many pixels.
    """
    format_ = None
    if draft.size:
        format_ = await draft.judge(lambda body: _judge(bytes(body[:HEAD_BYTES_MAX]), len(body)))
    if format_ is None or not (format_ is Format.JXL or await draft.judge(lambda body: is_whole(format_, body))):
        raise NotAnImage("the bytes are not a whole image of a supported format")
    pixel_size = await draft.judge(lambda body: measure(format_, body))
    if pixel_size is not None and pixel_size.pixels > pixels_max:
        raise TooLarge(f"the image has {pixel_size.pixels} pixels, more than fetch.pixels_max")
    return format_, pixel_size


def _judge(head: bytes, size: int) -> Format | None:
    format_ = sniff(head, ended=len(head) == size)
    return None if format_ is UNDECIDED else format_
