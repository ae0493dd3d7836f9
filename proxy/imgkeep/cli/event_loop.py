"""The event loop of one command."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from imgkeep.cli.interruption import Terminated

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def run_coroutine(command: Coroutine[Any, Any, int], *, handles_signals: bool) -> int:
    """
    Run a command to its end; on uvloop, where it is installed. `handles_signals`: the command handles SIGTERM itself.

    Raises:
        Terminated: SIGTERM ended the command.
    """
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415 - not on every platform

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(command if handles_signals else _run_until_terminated(command))


async def _run_until_terminated(command: Coroutine[Any, Any, int]) -> int:
    """Run a command that SIGTERM cancels, as Ctrl-C does, so that it cleans up. A second SIGTERM ends the process."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()

    with suppress(ValueError):  # only the main thread handles signals
        loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await command
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise
    finally:
        with suppress(ValueError):
            loop.remove_signal_handler(signal.SIGTERM)
