"""Commands that run in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable

Command = Callable[..., tuple[int, str, str]]
"""Runs a command with its arguments; returns exit status, standard output and standard error."""
