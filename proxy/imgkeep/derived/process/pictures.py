"""
Derived pictures: what becomes of an original by its options.

The steps: read the header, plan the sizes, decode no larger than needed, rotate, cut, blur, fill, encode. Frames of an
animation go through all of them, if the format of the picture has frames too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.derived.options import Fit, read_stem
from imgkeep.core.derived.plan import plan, turned
from imgkeep.core.records import Format
from imgkeep.derived.messages import Derived, NotSmaller
from imgkeep.derived.process import library
from imgkeep.derived.process.deadline import Deadline, refused_by
from imgkeep.derived.process.encoders import HAS_ALPHA, HAS_GREY, encode
from imgkeep.derived.process.frames import Frames
from imgkeep.derived.process.metadata_removal import without_metadata
from imgkeep.derived.process.originals import ANIMATED, Original, open_original
from imgkeep.derived.process.refusals import Refusal, require_frames, require_pixels
from imgkeep.derived.process.upright_metadata import state_upright

if TYPE_CHECKING:
    from imgkeep.core.derived.options import PictureOptions
    from imgkeep.core.derived.plan import Plan
    from imgkeep.derived.messages import DeriveJob

_TURNED_BY_BROWSERS: Final = (Format.JPEG, Format.PNG)
"""Formats in which all browsers apply an EXIF orientation; in a WebP some do not."""
_TRANSPARENT: Final = (0, 0, 0, 0)
_WHITE: Final = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class _Work:
    """
    The work of a job, decided before a pixel is decoded.

    Attributes:
        page: The first page of the original to decode.
        count: Number of pages.
    """

    original: Original
    options: PictureOptions
    format: Format
    page: int
    count: int
    sizes: Plan

    @property
    def has_quarter_turn(self) -> bool:
        return self.options.rotate in (90, 270)

    @property
    def loses_frames(self) -> bool:
        """Return whether the picture shows one frame of an animation, and the request did not ask for one."""
        return (
            self.original.frames > 1
            and self.original.format in ANIMATED
            and self.options.page is None
            and self.count == 1
        )

    @property
    def can_be_the_original(self) -> bool:
        """Return whether the original could take the place of the picture."""
        is_changed = self.options.rotate or self.options.blur or self.options.background
        has_all = self.count == self.original.frames and (self.options.page is None or self.original.pages == 1)
        is_upright = self.original.orientation == 1 or self.original.format in _TURNED_BY_BROWSERS
        return is_upright and not is_changed and has_all and self.sizes.canvas == self.original.size


def derive(job: DeriveJob, original_descriptor: int, picture_descriptor: int) -> Derived | NotSmaller:
    """
    Make a picture.

    Raises:
        Refusal: It cannot be made.
    """
    deadline = Deadline(job.timeout_s)
    with refused_by(deadline):
        work = _prepare(job, original_descriptor)
        if work.loses_frames and job.smaller_than and job.format != job.original_format:
            return NotSmaller()  # a format that the client did not name gives way
        frames = _change(work, deadline)
        _fill(frames, work)
        image = frames.image
        if work.original.is_grey and work.format in HAS_GREY and not work.options.background:
            image = image.colourspace("b-w")
        if work.options.keep_metadata:
            image = state_upright(image)
        deadline.watch(image)
        encode(image, work.format, work.options, picture_descriptor)
    size = os.fstat(picture_descriptor).st_size
    canvas = work.sizes.canvas
    made = Derived(size=size, width=canvas.width, height=canvas.height, frames=work.count)
    if not job.smaller_than or size < job.smaller_than or not work.can_be_the_original:
        return made
    return _take_the_original(job, work, made, picture_descriptor)


def _prepare(job: DeriveJob, original_descriptor: int) -> _Work:
    """Read the header, and decide. Raises: Refusal."""
    options, format_ = read_stem(job.stem), Format[job.format]
    if options is None:
        raise Refusal("unsupported", "these options are of another version of imgkeep: restart the server")
    if format_ not in library.writable():
        raise Refusal(
            "unsupported",
            f"libvips {library.version()} of this installation writes no {format_.name}: ask for another format",
        )
    page = options.page if options.page is not None or format_ in ANIMATED else 0
    original = open_original(original_descriptor, job, last_page=page)
    page, count = _pages(original, options, format_, job)
    seen = original.size if options.rotate in (0, 180) else turned(original.size)
    sizes = plan(seen, options, job.side_max)
    require_pixels(sizes.canvas, count, job.pixels_max)
    return _Work(original, options, format_, page, count, sizes)


def _pages(original: Original, options: PictureOptions, format_: Format, job: DeriveJob) -> tuple[int, int]:
    """Return the first page to read and their number. Raises: Refusal."""
    if options.page is not None:
        if options.page >= original.pages:
            raise Refusal("no_such_page", f"page: the image has {original.pages}, counted from 0")
        if original.format in ANIMATED:  # a frame is what changes in the one before, so all up to it are decoded
            require_frames(options.page + 1, job.frames_max)
        return options.page, 1
    if original.frames == 1 or original.format not in ANIMATED or format_ not in ANIMATED:
        return 0, 1
    require_frames(original.frames, job.frames_max)
    require_pixels(original.size, original.frames, job.pixels_max)
    return 0, original.frames


def _change(work: _Work, deadline: Deadline) -> Frames:
    """Return the frames at their size, rotated, cut and blurred."""
    options, sizes = work.options, work.sizes
    decoded = sizes.scaled
    if sizes.cut is not None:
        decoded = turned(work.original.size) if work.has_quarter_turn else work.original.size
    image = work.original.decode(turned(decoded) if work.has_quarter_turn else decoded, work.page, work.count)
    deadline.watch(image)
    frames = Frames(image, work.count)
    is_cut = sizes.cut is not None or options.fit is Fit.COVER
    if options.rotate or options.blur or is_cut or (work.count > 1 and sizes.canvas != frames.size):
        frames.hold()
    if options.rotate:
        frames.rotate(options.rotate)
    if sizes.cut is not None:
        frames.cut(sizes.cut, options.gravity)
        frames.scale(sizes.scaled)
    if options.fit is Fit.COVER and sizes.canvas != frames.size:
        frames.cut(sizes.canvas, options.gravity)
    if options.blur:
        frames.blur(options.blur)
    return frames


def _fill(frames: Frames, work: _Work) -> None:
    """Fill up what the options, or the format, do not leave transparent."""
    colour = _colour(work.options.background)
    if colour is not None:
        frames.lay_on(colour)
    if work.sizes.canvas != frames.size:
        otherwise = _TRANSPARENT if work.format in HAS_ALPHA else _WHITE
        frames.pad(work.sizes.canvas, work.options.gravity, colour or otherwise)
    if work.format not in HAS_ALPHA:
        frames.flatten()


def _colour(background: str | None) -> tuple[int, ...] | None:
    return None if background is None else tuple(bytes.fromhex(background.ljust(8, "f")))


def _take_the_original(job: DeriveJob, work: _Work, made: Derived, descriptor: int) -> Derived | NotSmaller:
    """Put the original's own bytes in place of a picture that is not smaller, if they are of its format."""
    if job.format != job.original_format:
        return NotSmaller()
    original = work.original
    own = original.data[:] if work.options.keep_metadata else without_metadata(original)
    if own is None or len(own) >= made.size:
        return made
    os.ftruncate(descriptor, 0)
    written = 0
    while written < len(own):
        written += os.pwrite(descriptor, memoryview(own)[written:], written)
    return Derived(size=len(own), width=made.width, height=made.height, frames=original.frames)
