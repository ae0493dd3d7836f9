"""
Originals: opened, checked by their headers, and decoded no larger than a picture needs.

The kernel maps the file into memory, so libvips reads it without a copy. What a header states is checked before a pixel
is decoded, because a file of some kilobytes may state gigapixels.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyvips

from imgkeep.core.derived.plan import turned
from imgkeep.core.records import Format, PixelSize
from imgkeep.derived.process import bitmaps, library
from imgkeep.derived.process.chunks import count_frames, first_frames, without_long_texts
from imgkeep.derived.process.refusals import Refusal, require_frames, require_pixels

if TYPE_CHECKING:
    from imgkeep.derived.messages import Job

ANIMATED: Final = (Format.GIF, Format.WEBP)
"""Formats whose pages are frames, and are read and written all together."""

_BITMAPS: Final = (Format.BMP, Format.ICO, Format.CUR)
_GREY: Final = ("b-w", "grey16")
_COLOURS: Final = ("srgb", "rgb16", "rgb", "scrgb", *_GREY)
"""Colour spaces whose pixels can be scaled as they are, and converted after it."""

_METADATA: Final = ("exif-data", "xmp-data", "iptc-data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """
    An original with what its header says.

    Attributes:
        data: The file.
        size: Size of a page, with the orientation applied.
        orientation: As in EXIF, 1 to 8.
        pages: Number of pages, whatever the format calls them.
        frames: Number of frames, if it is animated.
        colours: Its colour space, as libvips calls it.
        metadata: Its EXIF, XMP and IPTC, each as libvips found it.
        bitmap: The image, if libvips cannot read the file itself.
    """

    data: bytes | mmap.mmap
    format: Format
    size: PixelSize
    orientation: int
    pages: int
    frames: int
    colours: str
    metadata: tuple[bytes, ...]
    bitmap: pyvips.Image | None

    @property
    def is_grey(self) -> bool:
        return self.colours in _GREY

    def decode(self, size: PixelSize, page: int = 0, count: int = 1) -> pyvips.Image:
        """
        Return pages, one below the other, scaled to `size` each, upright, in sRGB with eight bits.

        A decoder scales on its own as far as it can (a JPEG by powers of two). `Original` has to outlive the image.
        """
        options: dict[str, object] = {"height": size.height, "size": "force"}
        if self.colours not in _COLOURS:
            options["output_profile"] = "srgb"
        if self.bitmap is not None:
            return _to_srgb(self.bitmap.thumbnail_image(size.width, **options))
        pages = f",page={page},n={count}" if self.pages > 1 else ""
        options["option_string"] = f"[fail_on=truncated{pages}]"  # its parameter `fail_on` has no effect (8.18)
        source = pyvips.Source.new_from_memory(self.data)
        return _to_srgb(pyvips.Image.thumbnail_source(source, size.width, **options))


def open_original(descriptor: int, job: Job, last_page: int | None = None) -> Original:
    """
    Open an original and read its header.

    Args:
        descriptor: That of the file.
        job: What it is opened for.
        last_page: The last page that is decoded; `None`: all may be. Frames behind it are not even looked at.

    Raises:
        Refusal: It is no file of this format, a page has too many pixels, or this installation cannot read the format.
    """
    format_ = Format[job.original_format]
    data: bytes | mmap.mmap = _map(descriptor)
    if format_ is Format.SVG and not job.rasterise_svg:
        raise Refusal("unsupported", "SVG images are not drawn; derive.svg = true allows it")
    if format_ not in library.readable():
        remedy = library.remedy_for(format_)
        raise Refusal("unsupported", f"the libvips of this server reads no {format_.name}; {remedy}")
    library.allow_svg(is_allowed=job.rasterise_svg)
    bitmap = bitmaps.read(format_, data, job.pixels_max) if format_ in _BITMAPS else None
    frames = count_frames(format_, data) if format_ in (Format.WEBP, Format.APNG) else 1
    if format_ is Format.WEBP and frames > 1:
        data = _frames_to_decode(data, frames, job, last_page)
    if format_ in (Format.PNG, Format.APNG):
        data = without_long_texts(data)
    image = _header(data, format_) if bitmap is None else bitmap
    require_pixels(PixelSize(image.width, image.height), 1, job.pixels_max)
    orientation = image.get("orientation") if image.get_typeof("orientation") else 1
    orientation = orientation if 1 <= orientation <= 8 else 1
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    size = PixelSize(image.width, image.height)
    return Original(
        data=data,
        format=format_,
        size=turned(size) if orientation >= 5 else size,
        orientation=orientation,
        pages=frames if format_ is Format.WEBP else pages,
        frames=pages if format_ is Format.GIF else frames,
        colours=image.interpretation,
        metadata=tuple(bytes(image.get(name)) for name in _METADATA if image.get_typeof(name)),
        bitmap=bitmap,
    )


def _map(descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise Refusal("unreadable", "the original is empty") from None


def _frames_to_decode(data: bytes | mmap.mmap, frames: int, job: Job, last_page: int | None) -> bytes | mmap.mmap:
    """Return a WebP without the frames that are not decoded. Raises: Refusal: Too many are."""
    decoded = frames if last_page is None else min(last_page + 1, frames)
    require_frames(decoded, job.frames_max)
    return data if decoded == frames else first_frames(data, decoded)


def _header(data: bytes | mmap.mmap, format_: Format) -> pyvips.Image:
    """Return an image of the first page whose pixels are not decoded yet."""
    image = pyvips.Image.new_from_source(pyvips.Source.new_from_memory(data), "", access="sequential")
    if image.get("vips-loader") != library.loader_of(format_):
        raise Refusal("unreadable", f"the original is no {format_.name}, but something else")
    return image


def _to_srgb(image: pyvips.Image) -> pyvips.Image:
    """Return an image in sRGB, by its profile if that is of use."""
    if image.get_typeof("icc-profile-data"):
        try:
            image = image.icc_transform("srgb", embedded=True, intent="relative", depth=8)
        except pyvips.Error:  # a profile of another colour space, or damaged: browsers ignore it too
            image = image.copy()
        image.remove("icc-profile-data")
    if image.interpretation != "srgb":
        image = image.colourspace("srgb")
    return image if image.format == "uchar" else image.cast("uchar")
