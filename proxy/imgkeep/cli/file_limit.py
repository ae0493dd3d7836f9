"""The number of files that a process may have open."""

from __future__ import annotations

import resource


def raise_file_limit() -> None:
    """Use as many file descriptors as the system allows: a client and the file it reads need one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
