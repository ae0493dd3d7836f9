"""
The check of a picture that a derive process has written.

A hostile original may have taken the process over, and the process makes pictures of other originals too. What it says
about a picture has to fit the file: its size in bytes, and its first bytes, which have to be of the picture's format.
So no such process turns an image into a page with a script, or into a marker.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imgkeep.core.formats import HEAD_BYTES_MAX, Spent, measure, sniff

if TYPE_CHECKING:
    from imgkeep.core.records import Format
    from imgkeep.derived.messages import Derived


def is_as_stated(answer: Derived, format_: Format, side_max: int, descriptor: int) -> bool:
    """Return whether a file is a picture of a format, of the stated size, with sides up to `side_max`."""
    if not 0 < answer.size == os.fstat(descriptor).st_size:
        return False
    head = os.pread(descriptor, HEAD_BYTES_MAX, 0)
    try:
        if sniff(head, ended=len(head) == answer.size) is not format_:
            return False
        size = measure(format_, head)  # `None`: behind long metadata that the request wants to keep
    except Spent:
        return False
    return size is None or max(size.width, size.height) <= side_max
