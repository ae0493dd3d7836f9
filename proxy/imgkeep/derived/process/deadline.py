"""The end of a job's time, and libvips' errors as answers."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pyvips

from imgkeep.derived.process.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHARE: Final = 0.9
"""Part of the time after which a job gives up; then the server kills the process."""
_DETAIL_CHARS_MAX: Final = 160


class Deadline:
    """The time at which a job gives up."""

    def __init__(self, timeout_s: float) -> None:
        self.has_passed = False
        self._watched: list[pyvips.Image] = []
        self._end = time.monotonic() + timeout_s * _SHARE

    def watch(self, image: pyvips.Image) -> None:
        """Stop the work on an image, and on what is made of it, at the end."""
        self._watched.append(image)  # pyvips drops the callback with the object, and libvips would still call it
        image.set_progress(True)
        image.signal_connect("eval", self._look)

    def _look(self, image: pyvips.Image, _progress: object) -> None:
        if time.monotonic() > self._end:
            self.has_passed = True
            image.set_kill(True)


@contextmanager
def refused_by(deadline: Deadline) -> Iterator[None]:
    """Raise what libvips raises as a `Refusal`."""
    try:
        yield
    except pyvips.Error as error:
        text = str(error.detail or error.message)
        if deadline.has_passed:
            refusal = Refusal("too_slow", "the picture takes longer than derive.timeout_s; ask for a smaller one")
        elif re.search(r"too (?:large|big)|exceeds? ", text, re.IGNORECASE):
            refusal = Refusal("too_large", f"the image is larger than libvips reads: {_readable(text)}")
        elif re.search(r"memory|encoder plugin", text, re.IGNORECASE):  # of AVIF; a failed write may follow
            refusal = Refusal(
                "too_large", "the picture needs more memory than derive.memory_bytes_max; ask for a smaller one"
            )
        elif re.search(r"write error|write failed", text, re.IGNORECASE):
            refusal = Refusal("too_large", "there is no room for the picture")
        elif re.search(r"unsupported|not supported|not been built in", text, re.IGNORECASE):
            refusal = Refusal("unsupported", f"libvips cannot read this kind of image: {_readable(text)}")
        else:
            refusal = Refusal("unreadable", f"libvips cannot read the image: {_readable(text)}")
        raise refusal from error
    except MemoryError as error:
        raise Refusal(
            "too_large", "the picture needs more memory than derive.memory_bytes_max; ask for a smaller one"
        ) from error


def _readable(text: str) -> str:
    """Return the line of a text that says what went wrong: the first one of a decoder; others follow from it."""
    lines = text.strip().splitlines()
    line = next((each for each in lines if not each.startswith("source:")), "it does not say why")
    return "".join(each if each.isprintable() else "?" for each in line)[:_DETAIL_CHARS_MAX]
