"""Dispatch: finds and runs the module of a command."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from imgkeep.cli.invocation import Invocation

Command: TypeAlias = "Coroutine[Any, Any, int]"

MODULES: Final = {
    "check": "check",
    "completion": "completion",
    "demo": "demo",
    "derive": "derive",
    "export": "import_export",
    "failures": "failures",
    "forget": "forget",
    "health": "health",
    "import": "import_export",
    "inspect": "inspect",
    "list": "list_stats",
    "migrate": "migrate",
    "refetch": "remove",
    "reindex": "verify_reindex",
    "remove": "remove",
    "restore": "remove",
    "rewrite": "rewrite",
    "save": "save",
    "serve": "serve",
    "sign": "sign",
    "stats": "list_stats",
    "token": "tokens",
    "verify": "verify_reindex",
    "warm": "derive",
}
"""The module of each command, imported by name so that no command waits for the imports of another."""


def run(invocation: Invocation) -> int | Command:
    """Run a command, and return its exit status, or the coroutine that does the rest and returns it."""
    module = import_module(f"imgkeep.cli.{MODULES[invocation.arguments.command]}")
    outcome: int | Command = module.run(invocation)
    return outcome
