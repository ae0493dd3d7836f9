"""
Changes of pixels, frame by frame.

libvips holds the frames of an animation one below the other in one image. What looks at a pixel's neighbours or moves
pixels has to see one frame at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyvips

from imgkeep.core.derived.options import Gravity
from imgkeep.core.derived.plan import place
from imgkeep.core.records import PixelSize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DIRECT_BLUR_MAX: Final = 6
"""Maximum standard deviation of a blur at full size: the time of a blur grows with it."""
_OPAQUE: Final = 255
_WHITE: Final = (255, 255, 255)


class Frames:
    """The frames of a picture, in sRGB with eight bits, with or without alpha."""

    def __init__(self, image: pyvips.Image, count: int) -> None:
        self.image = image
        self.count = count

    @property
    def size(self) -> PixelSize:
        """Return the size of a frame."""
        return PixelSize(self.image.width, self.image.height // self.count)

    def hold(self) -> None:
        """Decode the pixels into memory: a decoder gives them once, from top to bottom."""
        self.image = self.image.copy_memory()

    def rotate(self, degrees: int) -> None:
        """Rotate clockwise."""
        self._each(lambda frame: frame.rot(f"d{degrees}"))

    def scale(self, size: PixelSize) -> None:
        """Change the size, and the ratio of the sides too."""
        self._each(lambda frame: frame.thumbnail_image(size.width, height=size.height, size="force", auto_rotate=False))

    def cut(self, size: PixelSize, gravity: Gravity) -> None:
        """Keep a part of each frame, the same of all."""
        if gravity is Gravity.ATTENTION:
            first = self.image.crop(0, 0, self.size.width, self.size.height)
            found = first.smartcrop(size.width, size.height, interesting="attention")
            left, top = -found.xoffset, -found.yoffset
        else:
            left, top = place(self.size, size, gravity)
        self._each(lambda frame: frame.crop(left, top, size.width, size.height))

    def blur(self, sigma: float) -> None:
        """Blur with a Gaussian function."""
        self._each(lambda frame: _without_dark_edges(frame, lambda image: _blur(image, sigma)))

    def pad(self, size: PixelSize, gravity: Gravity, colour: Sequence[int]) -> None:
        """Fill up to a size with a colour of four numbers, the last one its opacity."""
        left, top = place(size, self.size, gravity)
        if colour[3] < _OPAQUE and not self.image.hasalpha():
            self.image = self.image.addalpha()
        background = colour if self.image.hasalpha() else colour[:3]
        self._each(
            lambda frame: frame.embed(left, top, size.width, size.height, extend="background", background=background)
        )

    def lay_on(self, colour: Sequence[int]) -> None:
        """Fill what is transparent with a colour of four numbers."""
        if not self.image.hasalpha():
            return
        if colour[3] == _OPAQUE:
            self.image = self.image.flatten(background=list(colour[:3]))
        elif colour[3] > 0:
            ground = (self.image.new_from_image(list(colour))).copy(interpretation="srgb")
            mixed = ground.composite2(self.image, "over").cast("uchar")
            self.image = self._like_before(mixed)

    def flatten(self) -> None:
        """Fill what is transparent with white."""
        self.lay_on((*_WHITE, _OPAQUE))

    def _each(self, change: Callable[[pyvips.Image], pyvips.Image]) -> None:
        if self.count == 1:
            self.image = change(self.image)
            return
        width, height = self.size.width, self.size.height
        changed = [change(self.image.crop(0, n * height, width, height)) for n in range(self.count)]
        joined = pyvips.Image.arrayjoin(changed, across=1)
        self.image = self._like_before(joined, changed[0].height)

    def _like_before(self, image: pyvips.Image, height: int | None = None) -> pyvips.Image:
        """Return an image with the facts of the animation."""
        if self.count == 1:
            return image
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, "page-height", height or self.size.height)
        for name in ("delay", "loop", "n-pages"):
            if self.image.get_typeof(name):
                image.set_type(self.image.get_typeof(name), name, self.image.get(name))
        return image


def _without_dark_edges(image: pyvips.Image, change: Callable[[pyvips.Image], pyvips.Image]) -> pyvips.Image:
    """Change an image so that the colour of transparent pixels does not mix with that of others."""
    if not image.hasalpha():
        return change(image)
    return change(image.premultiply()).unpremultiply().cast("uchar")


def _blur(image: pyvips.Image, sigma: float) -> pyvips.Image:
    if sigma <= _DIRECT_BLUR_MAX:
        return image.gaussblur(sigma)
    factor = _DIRECT_BLUR_MAX / sigma
    small = image.resize(max(factor, 1 / image.width), vscale=max(factor, 1 / image.height), kernel="linear")
    small = small.gaussblur(_DIRECT_BLUR_MAX)
    large = small.resize(image.width / small.width, vscale=image.height / small.height, kernel="linear")
    return large.cast(image.format)
