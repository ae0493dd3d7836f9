"""
The settings of libvips in a derive process: which of its loaders may run, and what it can read and write.

libvips recognises some forty formats by their content. Only loaders of formats that imgkeep stores may run, so a file
reaches no other code, whatever it contains.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Final

import pyvips

from imgkeep.core.records import Format

_SVG: Final = "VipsForeignLoadSvg"
_LOADERS: Final = {
    Format.JPEG: "jpegload_source",
    Format.PNG: "pngload_source",
    Format.APNG: "pngload_source",
    Format.WEBP: "webpload_source",
    Format.GIF: "gifload_source",
    Format.TIFF: "tiffload_source",
    Format.AVIF: "heifload_source",
    Format.HEIC: "heifload_source",
    Format.HEIF: "heifload_source",
    Format.JXL: "jxlload_source",
    Format.SVG: "svgload_source",
}
_CLASSES: Final = (
    *("VipsForeignLoadJpeg", "VipsForeignLoadPng", "VipsForeignLoadWebp", "VipsForeignLoadNsgif"),
    *("VipsForeignLoadTiff", "VipsForeignLoadHeif", "VipsForeignLoadJxl"),
)
_SAVERS: Final = {
    Format.JPEG: "jpegsave_target",
    Format.PNG: "pngsave_target",
    Format.WEBP: "webpsave_target",
    Format.AVIF: "heifsave_target",
    Format.GIF: "gifsave_target",
    Format.JXL: "jxlsave_target",
}
_HEIC: Final = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAACYAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    "eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAACAAAAAEAAAAIAAAAAf///8gAAAAC////yAAAAAIAAAAQcGl4"
    "aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAALm1kYXQAAAAiKAGvBRITTOD6ulI7n+NYfHwG3l7PlazvFvyglVoQ"
    "kfFbQA=="
)
"""A HEIC of 8 x 8 pixels. libvips loads the format also where its libheif has no decoder, and only the pixels fail."""
_READ_HERE: Final = (Format.BMP, Format.ICO, Format.CUR)
"""Formats that `bitmaps.py` reads, because the library of `pyvips-binary` does not."""


def prepare() -> None:
    """
    Let libvips read only what imgkeep stores, with one thread, and remember nothing.

    Its messages go to standard error, past Python. In Python's handler for them the garbage collector may free an image
    of libvips, which has a message about that: GLib ends a process for a message within a message.
    """
    pyvips._remove_log_handler()  # noqa: SLF001 - there is no public name for it
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for name in _CLASSES:
        if pyvips.type_from_name(name):
            pyvips.operation_block_set(name, False)


def start_threads() -> None:
    """Let libvips start its threads, which stay, before the memory of a process without a job is measured."""
    pyvips.Image.black(1, 1).webpsave_buffer()


def allow_svg(*, is_allowed: bool) -> None:
    """Let libvips draw SVG, or not."""
    if pyvips.type_from_name(_SVG):
        pyvips.operation_block_set(_SVG, not is_allowed)


def version() -> str:
    """Return the version of libvips."""
    return ".".join(str(pyvips.version(part)) for part in range(3))


@cache
def readable() -> frozenset[Format]:
    """Return the formats that can be read."""
    loaded = {each for each, loader in _LOADERS.items() if _has(loader)}
    if not _decodes_heic():
        loaded.discard(Format.HEIC)
    return frozenset(loaded.union(_READ_HERE))


def remedy_for(original: Format) -> str:
    """Return what reads a format that this libvips does not read."""
    return {
        Format.HEIC: "one with an HEVC decoder (libde265) does",
        Format.JXL: "one with libjxl does",
    }.get(original, "another one may")


def writable() -> list[Format]:
    """Return the formats that can be written."""
    return [each for each, saver in _SAVERS.items() if _has(saver)]


def loader_of(original: Format) -> str:
    """Return the name of the loader that reads a format."""
    return _LOADERS[original]


def _decodes_heic() -> bool:
    try:
        pyvips.Image.new_from_buffer(_HEIC, "").avg()
    except pyvips.Error:
        return False
    return True


def _has(operation: str) -> bool:
    return bool(pyvips.type_find("VipsOperation", operation))
