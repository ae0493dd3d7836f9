"""
Limits that a derive process sets for itself before it sees the first picture.

A file that makes a decoder run away costs this process, and neither the machine's memory nor a client of another image.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imgkeep.core.records import Format
from imgkeep.derived.messages import PICTURE_BYTES_MAX

if TYPE_CHECKING:
    from imgkeep.derived.messages import Job, ProcessLimits

OPEN_FILES_MAX: Final = 64
"""Maximum number of open files: libraries, the socket, and the two files of a job."""

OUT_OF_MEMORY_SCORE: Final = Path("/proc/self/oom_score_adj")
"""Where a process says how soon the kernel may kill it for want of memory: 1000, before all others."""

SVG_SHARE: Final = 4
"""
An SVG may take a quarter of the processor time: some hundred bytes draw a shape millions of times, by `<use>` within
`<use>`, and librsvg cannot be stopped meanwhile. A map of megabytes takes a second or two.
"""
SVG_CPU_S_MIN: Final = 2

_M_ARENA_MAX: Final = -8
"""Option of glibc's `mallopt`: each thread's arena would reserve 64 MiB of the address space."""
_ARENAS_MAX: Final = 2


def set_limits(limits: ProcessLimits) -> None:
    """Limit this process for the rest of its life, and leave its end to the connection."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    _lower(resource.RLIMIT_FSIZE, PICTURE_BYTES_MAX)
    if sys.platform == "linux":  # macOS refuses a limit of the address space
        with suppress(AttributeError):  # not every C library has it
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS_MAX)
        _lower(resource.RLIMIT_AS, limits.memory_bytes_max)
    with suppress(OSError):  # a sandbox may forbid it; then the process has the priority of its server
        os.nice(limits.niceness)
    if limits.idle and hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        OUT_OF_MEMORY_SCORE.write_text("1000", "ascii")
    os.chdir("/")
    # A terminal, or a service manager, sends these to all processes of the server; its own closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def processor_time_of(job: Job, limits: ProcessLimits) -> int:
    """Return the processor time that a job may take, in seconds."""
    if job.original_format != Format.SVG.name:
        return limits.cpu_s
    return min(limits.cpu_s, max(SVG_CPU_S_MIN, limits.cpu_s // SVG_SHARE))


def allow_processor_time(seconds: int) -> None:
    """Let the next job take as much processor time; the kernel ends the process behind that (SIGXCPU)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _lower(limit: int, value: int) -> None:
    """Set a limit, unless a lower one is in force."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
