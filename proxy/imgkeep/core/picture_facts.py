"""The facts about a picture that only its decoded pixels tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """
    The facts about a decoded picture. Equal bytes have equal facts.

    Attributes:
        width: In pixels, as people see it: with the orientation applied.
        height: Likewise.
        frames: Number of frames; 1: it does not move.
        has_alpha: Whether a pixel of the first frame can be seen through.
        orientation: The EXIF orientation, 1 to 8 (1: as it is stored).
        colour: The dominant colour, `rrggbb`.
        thumbhash: The ThumbHash of the first frame, in base64 (https://evanw.github.io/thumbhash/).
    """

    width: int
    height: int
    frames: int
    has_alpha: bool
    orientation: int
    colour: str
    thumbhash: str
