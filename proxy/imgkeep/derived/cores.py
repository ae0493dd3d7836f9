"""The cores that this process may use: those that its scheduler and its container allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_GROUP: Final = Path("/proc/self/cgroup")


def count_cores(groups: Path = CGROUPS, own_group: Path = OWN_GROUP) -> int:
    """Return the number of cores, at least 1. Blocks: it reads what the kernel says of the limits of a container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_quota(groups, own_group)
    return allowed if quota is None else max(1, min(allowed, quota))


def _read_quota(groups: Path, own_group: Path) -> int | None:
    """Return the whole cores of the quota of this process's control group (cgroups version 2); `None`: it has none."""
    try:
        name = own_group.read_text("ascii").partition("0::/")[2].partition("\n")[0]
        quota, period = (groups / name / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
