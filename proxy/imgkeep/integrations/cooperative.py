"""
Rewriting on an event loop that is not ours: others have their turn after each few milliseconds of work.

Light steps run where they are asked for. Heavy ones, in which a large part of a page is read at once, run in threads of
their own: not in those of the application, which a page that is made to be slow would hold.

On event loops other than asyncio's (trio) everything runs where it is asked for, because nothing that is known to all
of them lets others have a turn.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from imgkeep.integrations.response_body import GATHERED_BYTES, STEP_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

    from imgkeep.integrations.response_body import Body, Streamed, Unaltered, Whole

T = TypeVar("T")

THREADS: Final = 2
"""The interpreter has one processor: more would not be faster. One alone could be held by a single page."""


async def begin(body: Body, data: bytes, *, is_last: bool) -> Unaltered | Whole | Streamed:
    """Return what to do with a body (`Body.begin`), in steps."""
    steps = _ResultIterator(body.begin_in_steps(data, is_last=is_last))
    while await _next(body, steps):
        pass
    return steps.result


async def in_steps(body: Body, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what `Body.feed`, `close` or `abandon` yields, in pieces that are worth sending."""
    waiting: list[bytes] = []
    size = 0
    error: Exception | None = None
    while True:
        piece = None
        try:
            piece = await _next(body, pieces)
        except Exception as raised:  # noqa: BLE001 - raised again, behind what came before it
            error = raised
        if piece is not None:
            waiting.append(piece)
            size += len(piece)
        if size and (piece is None or size >= GATHERED_BYTES):
            yield b"".join(waiting)
            waiting, size = [], 0
        if error is not None:
            raise error
        if piece is None:
            return


async def _next(body: Body, steps: Iterator[T]) -> T | None:
    """Take one turn, and then let others have theirs; `None`: there are no more."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return next(steps, None)
    if not body.is_heavy:
        made = next(steps, None)
        if body.step_bytes >= STEP_BYTES:
            body.step_bytes = 0
            await asyncio.sleep(0)
        return made
    # As `asyncio.to_thread` does, but in threads of ours.
    return await loop.run_in_executor(_threads(), copy_context().run, partial(next, steps, None))


class _ResultIterator(Generic[T]):
    """An iterator over steps that tells the result of its generator."""

    result: T

    def __init__(self, steps: Generator[None, None, T]) -> None:
        self._turns = steps

    def __iter__(self) -> _ResultIterator[T]:
        return self

    def __next__(self) -> bool:
        try:
            next(self._turns)
        except StopIteration as end:
            self.result = end.value
            raise
        return True


@cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads of this process, made when they are needed first: servers fork before that."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="imgkeep-pages")
