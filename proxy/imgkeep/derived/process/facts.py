"""Facts of a picture, found in a small copy of its first frame."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from imgkeep.core import thumbhash
from imgkeep.core.derived.dominant_colour import dominant_colour
from imgkeep.core.derived.options import PictureOptions
from imgkeep.core.derived.plan import plan
from imgkeep.derived.messages import Facts
from imgkeep.derived.process.deadline import Deadline, refused_by
from imgkeep.derived.process.originals import open_original

if TYPE_CHECKING:
    from imgkeep.derived.messages import FactsJob

SIDE_MAX: Final = 64
"""Longest side of the copy. A ThumbHash holds seven waves a side; its own limit of 100 pixels takes thrice the time."""


def find_facts(job: FactsJob, original_descriptor: int) -> Facts:
    """
    Find the facts of a picture.

    Raises:
        Refusal: It cannot be read.
    """
    deadline = Deadline(job.timeout_s)
    with refused_by(deadline):
        original = open_original(original_descriptor, job, last_page=0)
        size = plan(original.size, PictureOptions(width=SIDE_MAX, height=SIDE_MAX), SIDE_MAX).scaled
        image = original.decode(size)
        deadline.watch(image)
        pixels = bytes((image if image.hasalpha() else image.addalpha()).write_to_memory())
    return Facts(
        width=original.size.width,
        height=original.size.height,
        frames=original.frames,
        has_alpha=min(pixels[3::4]) < 255,
        orientation=original.orientation,
        colour=dominant_colour(pixels),
        thumbhash=base64.b64encode(thumbhash.encode(size.width, size.height, pixels)).decode(),
    )
