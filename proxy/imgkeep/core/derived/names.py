"""
Names of derived pictures, and their paths in a store (stored layout, version 1):

    v1/derived/<digest>/<options>.<ext>

The digest is that of the original. A picture whose format was negotiated has `-auto` behind its options. It may be
empty: then the picture in that format would not have been smaller than the original, and the one in the original's own
format takes its place. All of them can be made again, so a store may lose any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from imgkeep.core.derived.options import Fit, Gravity, PictureFormat, PictureOptions, read_stem, stem_of
from imgkeep.core.records import Digest, Format

DERIVED: Final = "v1/derived"
NEGOTIATED: Final = "-auto"
FORMATS: Final = (Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF, Format.JXL, Format.GIF)
"""Formats in which pictures are written."""

_FORMAT_VALUES: Final = {
    Format.JPEG: PictureFormat.JPEG.value,
    Format.PNG: PictureFormat.PNG.value,
    Format.WEBP: PictureFormat.WEBP.value,
    Format.AVIF: PictureFormat.AVIF.value,
    Format.JXL: PictureFormat.JXL.value,
}
"""No parameter names GIF: it is the format of a picture of a GIF."""
_BY_EXTENSION: Final = {each.extension: each for each in FORMATS}
_PATH: Final = re.compile(rf"{DERIVED}/([0-9a-f]{{64}})/([a-z0-9.-]{{1,120}})\.([a-z]{{3,4}})")


@dataclass(frozen=True, slots=True)
class PictureName:
    """
    The name of a derived picture.

    Attributes:
        digest: Digest of the original.
        stem: Its options, as `stem_of` writes them.
        format: One of `FORMATS`.
        negotiated: Whether the client left the format to imgkeep, and it is not that of the original.
    """

    digest: Digest
    stem: str
    format: Format
    negotiated: bool = False

    @property
    def file_name(self) -> str:
        """Return the last part of the path."""
        return f"{self.stem}{NEGOTIATED if self.negotiated else ''}.{self.format.extension}"

    @property
    def path(self) -> str:
        """Return the path in a store."""
        return f"{DERIVED}/{self.digest}/{self.file_name}"


def name_of(digest: Digest, options: PictureOptions, format_: Format, *, negotiated: bool = False) -> PictureName:
    """Return the name of a picture of an original."""
    return PictureName(digest, stem_of(options), format_, negotiated)


def parameters_of(name: PictureName) -> tuple[tuple[str, str], ...]:
    """Return the canonical parameters that ask for a picture, beside the permanent URL of its original."""
    options = read_stem(name.stem) or PictureOptions()
    metadata = "keep" if options.keep_metadata else None
    values = {
        "w": options.width,
        "h": options.height,
        "fit": options.fit.value if options.fit is not Fit.INSIDE else None,
        "gravity": options.gravity.value if options.gravity is not Gravity.CENTER else None,
        "format": _FORMAT_VALUES.get(name.format),
        "q": options.quality,
        "bg": options.background,
        "rotate": options.rotate or None,
        "blur": f"{options.blur:g}" if options.blur else None,
        "page": options.page,
        "metadata": metadata,
    }
    return tuple((parameter, str(value)) for parameter, value in values.items() if value is not None)


def read_path(path: str) -> PictureName | None:
    """Return the name in a path; `None`: no picture has this path."""
    match = _PATH.fullmatch(path)
    if match is None or match[3] not in _BY_EXTENSION:
        return None
    stem = match[2].removesuffix(NEGOTIATED)
    if read_stem(stem) is None:
        return None
    return PictureName(Digest(match[1]), stem, _BY_EXTENSION[match[3]], match[2].endswith(NEGOTIATED))
