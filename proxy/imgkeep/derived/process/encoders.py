"""
Encoders and their settings.

The defaults are what a page needs: a picture of 800 pixels takes some 0.1 s in each format. AVIF's `effort` is the
largest before its time grows fourfold for 5 % of the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyvips

from imgkeep.core.derived.options import DEFAULT_QUALITIES
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgkeep.core.derived.options import PictureOptions

HAS_ALPHA: Final = (Format.PNG, Format.WEBP, Format.AVIF, Format.GIF, Format.JXL)
"""Formats that hold transparent pixels."""
HAS_GREY: Final = (Format.JPEG, Format.PNG)
"""Formats that are smaller without colour channels, where a picture has no colours."""

_KEEP_NOTHING: Final = 0
_KEEP_EXIF_XMP_IPTC: Final = 0b111
_QUALITY: Final = {Format[each.name]: quality for each, quality in DEFAULT_QUALITIES.items() if each is not None}
_SETTINGS: Final[Mapping[Format, tuple[str, Mapping[str, object]]]] = {
    Format.JPEG: ("jpegsave_target", {"optimize_coding": True}),
    Format.PNG: ("pngsave_target", {"compression": 6, "filter": "all"}),
    Format.WEBP: ("webpsave_target", {"effort": 4}),
    Format.AVIF: ("heifsave_target", {"compression": "av1", "effort": 2, "bitdepth": 8}),
    Format.GIF: ("gifsave_target", {"effort": 3}),
    Format.JXL: ("jxlsave_target", {"effort": 4}),
}
_QUICK: Final[Mapping[Format, Mapping[str, object]]] = {Format.WEBP: {"effort": 2}, Format.AVIF: {"effort": 1}}
"""Settings of many pixels: a third of the time, for 5 % more bytes."""
_QUICK_FROM_PIXELS: Final = 3_000_000
"""Number of pixels, in all frames together, from which a picture of the usual settings would take seconds."""


def encode(image: pyvips.Image, format_: Format, options: PictureOptions, descriptor: int) -> None:
    """Write an image into a file."""
    saver, settings = _SETTINGS[format_]
    chosen = dict(settings)
    if image.width * image.height > _QUICK_FROM_PIXELS or image.height > image.get_page_height():
        chosen |= _QUICK.get(format_, {})
    if format_ in _QUALITY:
        chosen["Q"] = options.quality or _QUALITY[format_]
    chosen["keep"] = _KEEP_EXIF_XMP_IPTC if options.keep_metadata else _KEEP_NOTHING
    getattr(image, saver)(pyvips.Target.new_to_descriptor(descriptor), **chosen)
