"""Metadata that stays with a picture, after its pixels were turned."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pyvips

_XMP: Final = "xmp-data"
_XMP_ORIENTATION: Final = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8]")


def state_upright(image: pyvips.Image) -> pyvips.Image:
    """Return an image whose metadata states that it is stored upright; libvips sees to EXIF when it turns pixels."""
    image = image.copy()
    if image.get_typeof(_XMP):
        image.set_type(image.get_typeof(_XMP), _XMP, _XMP_ORIENTATION.sub(rb"\g<1>1", bytes(image.get(_XMP))))
    return image
