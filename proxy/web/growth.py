"""
A growing file, told of between workers: both ends of it on the wire.

An answer to a sibling that can read along has steps as its body (`ports.Trace`), each of them two numbers: how many
bytes of the image there are by now, and how many of these follow because they are not in the file. As with any body, an
end that is cut off is none.
"""

from __future__ import annotations

import asyncio
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes

import aiohttp

from proxy.core.errors import OriginError
from proxy.web.exchange import PIECE_BYTES, Answer, Part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.ports import Readable, Trace
    from proxy.web.exchange import Ask

READS_ALONG: Final = "Imgkeep-Reads-Along"
"""In requests: whoever asks can do this. A worker of an older version, during a reload, cannot."""
GROWS_IN: Final = "Imgkeep-Grows-In"
"""In answers: how many bytes the image is going to have (`-`: nobody knows), and the file, percent-encoded."""

_STEP: Final = struct.Struct(">QI")
_UNKNOWN: Final = "-"


async def lay_open(ask: Ask, answer: Answer) -> Answer:
    """Return the answer with steps in the place of its body, if whoever asks can read along, and it is worth a file."""
    part = answer.body
    if not isinstance(part, Part) or part.growing is None or answer.status != 200 or READS_ALONG not in ask.fields:
        return answer
    if part.end is not None and part.end <= PIECE_BYTES:
        return answer
    try:
        trace = await part.growing.lay_open()
        if trace is None:
            return answer
        steps = _Steps(trace, part.body)
        first = await steps.read(0, 0)
    except BaseException:
        await part.body.aclose()
        raise
    size = _UNKNOWN if part.end is None else str(part.end)
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Length"}
    headers[GROWS_IN] = f"{size} {quote(os.fsencode(trace.path), safe='/')}"
    return replace(answer, headers=headers, body=Part(steps, 0, None, first))


def read_growth(field: str) -> tuple[int | None, Path]:
    """Return what `GROWS_IN` says."""
    size, _, path = field.partition(" ")
    return None if size == _UNKNOWN else int(size), Path(os.fsdecode(unquote_to_bytes(path)))


async def read_steps(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the steps of an answer. Raises: OriginError: They broke off."""
    stream = answer.content
    try:
        while begun := await stream.read(_STEP.size):
            height, size = _STEP.unpack(begun + await stream.readexactly(_STEP.size - len(begun)))
            yield height, await stream.readexactly(size)
    except (TimeoutError, aiohttp.ClientError, asyncio.IncompleteReadError):
        raise OriginError("the image broke off on its way from another worker") from None


class _Steps:
    """The steps of a trace, as they go over the wire. Implements `ports.Readable`; `body` is kept open meanwhile."""

    def __init__(self, trace: Trace, body: Readable) -> None:
        self._steps = trace.steps
        self._body = body

    async def read(self, _offset: int, _size: int) -> bytes:
        async for height, data in self._steps:
            return _STEP.pack(height, len(data)) + data
        return b""

    async def aclose(self) -> None:
        await self._body.aclose()
