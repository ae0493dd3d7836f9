"""
Cooperative rewriting on the application's event loop: other tasks run after each few milliseconds of work.

Light steps run on the event loop. Heavy steps, which parse a large part of a page at once, run in a thread pool of our
own: a page that is crafted to be slow must not block the application's threads.

On event loops other than asyncio's (trio) all steps run on the loop, because there is no common way to yield to other
tasks.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from imgkeep.integrations.response_body import GATHERED_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

    from imgkeep.integrations.response_body import Body, Streamed, Unaltered, Whole

T = TypeVar("T")

THREADS: Final = 2
"""
Number of threads. The interpreter uses one processor, so more would not be faster; one page could block a single one.
"""


async def begin(body: Body, data: bytes, *, is_last: bool) -> Unaltered | Whole | Streamed:
    """Run `Body.begin` in steps, and return its decision."""
    steps = _ResultIterator(body.begin_in_steps(data, is_last=is_last))
    while await _next(body, steps):
        pass
    return steps.result


async def in_steps(body: Body, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Run `Body.feed`, `close` or `abandon` in steps, and yield their bytes in pieces that are worth sending."""
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
    """Run one step, and then let other tasks run; return `None` behind the last step."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return next(steps, None)
    if not body.is_heavy:
        made = next(steps, None)
        if body.step_bytes >= body.step_bytes_max:
            body.step_bytes = 0
            await asyncio.sleep(0)
        return made
    # Like `asyncio.to_thread`, but with our own threads.
    return await loop.run_in_executor(_threads(), copy_context().run, partial(next, steps, None))


class _ResultIterator(Generic[T]):
    """An iterator over steps that stores the result of its generator."""

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
    """Return the thread pool of this process, made on first use: servers fork before that."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="imgkeep-pages")
