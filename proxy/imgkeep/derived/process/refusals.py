"""Reasons for which no picture can be made of an original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.derived.messages import Refused

if TYPE_CHECKING:
    from imgkeep.core.records import PixelSize

FRAMES_MAX: Final = 9_999
"""Maximum number of frames, whatever the settings: libvips takes a file with more for a single one."""


class Refusal(Exception):
    """The picture cannot be made; the answer to the job says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.answer = Refused(reason=reason, detail=detail)


def require_pixels(size: PixelSize, frames: int, pixels_max: int) -> None:
    """Raise `Refusal` for more pixels than allowed, in all frames together."""
    if size.pixels * frames > pixels_max:
        what = f"{size.width} x {size.height} pixels" + (f" in {frames} frames" if frames > 1 else "")
        raise Refusal("too_large", f"{what} are more than the {pixels_max} of derive.pixels_max")


def require_frames(frames: int, frames_max: int) -> None:
    """Raise `Refusal` for more frames than allowed."""
    if frames > min(frames_max, FRAMES_MAX):
        raise Refusal(
            "too_large", f"{frames} frames are more than the {min(frames_max, FRAMES_MAX)} of derive.frames_max"
        )
