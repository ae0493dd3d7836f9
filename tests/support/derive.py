"""Jobs of a derive process, done in the process of the tests, and pictures to give them."""

from __future__ import annotations

from io import BytesIO
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from PIL import Image

from imgkeep.derived.messages import DeriveJob, Facts, FactsJob, Refused
from imgkeep.derived.process import library
from imgkeep.derived.process.facts import find_facts
from imgkeep.derived.process.pictures import derive
from imgkeep.derived.process.refusals import Refusal

if TYPE_CHECKING:
    from imgkeep.derived.messages import Derived, NotSmaller

PIXELS_MAX = 100_000_000
FRAMES_MAX = 500

library.prepare()


def make(
    original: bytes, original_format: str, stem: str = "full", format_: str = "PNG", **job: Any
) -> tuple[Derived | NotSmaller | Refused, bytes]:
    """Do the job of a picture; return the answer, and the file."""
    limits = {"pixels_max": PIXELS_MAX, "frames_max": FRAMES_MAX}
    with TemporaryFile() as source, TemporaryFile() as picture:
        source.write(original)
        source.flush()
        wanted = DeriveJob(stem=stem, format=format_, original_format=original_format, **{**limits, **job})
        try:
            answer: Derived | NotSmaller | Refused = derive(wanted, source.fileno(), picture.fileno())
        except Refusal as refusal:
            answer = refusal.answer
        picture.seek(0)
        return answer, picture.read()


def picture_of(original: bytes, original_format: str, stem: str = "full", format_: str = "PNG", **job: Any) -> bytes:
    """Return a picture that can be made."""
    answer, picture = make(original, original_format, stem, format_, **job)
    assert not isinstance(answer, Refused), answer
    return picture


def open_picture(original: bytes, original_format: str, stem: str = "full", format_: str = "PNG") -> Image.Image:
    """Return a picture that can be made, as Pillow sees it."""
    return Image.open(BytesIO(picture_of(original, original_format, stem, format_)))


def refused(original: bytes, original_format: str, stem: str = "full", format_: str = "PNG", **job: Any) -> Refused:
    """Return why a picture cannot be made."""
    answer, picture = make(original, original_format, stem, format_, **job)
    assert isinstance(answer, Refused), (answer, len(picture))
    return answer


def facts_of(original: bytes, original_format: str, **job: Any) -> Facts | Refused:
    """Do the job of facts."""
    limits = {"pixels_max": PIXELS_MAX, "frames_max": FRAMES_MAX}
    with TemporaryFile() as source:
        source.write(original)
        source.flush()
        try:
            return find_facts(FactsJob(original_format=original_format, **{**limits, **job}), source.fileno())
        except Refusal as refusal:
            return refusal.answer


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Return a file of an image, as Pillow writes it."""
    file = BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def quarters(size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Image.Image:
    """Return an image whose quarters are red, green, blue and white, from the upper left one on."""
    width, height = size
    image = Image.new("RGB", size, "white")
    image.paste("red", (0, 0, width // 2, height // 2))
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    return image.convert(mode)


def corners(image: Image.Image) -> str:
    """Return the colours of an image's quarters, from the upper left one on; `-`: transparent."""
    rgba = image.convert("RGBA")
    width, height = rgba.size
    places = [(x, y) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    return "".join(_name(rgba.getpixel(place)) for place in places)


def _name(pixel: Any) -> str:
    red, green, blue, alpha = pixel
    if alpha < 128:
        return "-"
    return {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w", (0, 0, 0): "k"}.get(
        (red > 127, green > 127, blue > 127), "?"
    )
