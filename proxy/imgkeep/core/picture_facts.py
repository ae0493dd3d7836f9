"""The facts about a picture that only its decoded pixels tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

_Number = Annotated[int, Meta(ge=1, lt=2**31)]


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

    width: _Number
    height: _Number
    frames: _Number
    has_alpha: bool
    orientation: Annotated[int, Meta(ge=1, le=8)]
    colour: Annotated[str, Meta(pattern=r"\A[0-9a-f]{6}\Z")]
    thumbhash: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{8,36}={0,2}\Z", max_length=36)]


def read_picture_facts(members: object) -> PictureFacts | None:
    """
    Return the facts from their names and values, as in JSON or in a row; `None`: they are damaged, or of another form.

    Facts can be found again, so damaged ones are as good as none.
    """
    try:
        return msgspec.convert(members, PictureFacts)
    except msgspec.ValidationError:
        return None
