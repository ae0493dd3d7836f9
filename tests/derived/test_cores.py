"""The number of cores that a container allows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from imgkeep.derived.cores import count_cores

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("max 100000", ALLOWED),
        (f"{(ALLOWED + 7) * 100000} 100000", ALLOWED),
        ("garbage", ALLOWED),
        ("1 0", ALLOWED),
    ],
)
def test_quota_of_container_limits_cores(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service/cpu.max").write_text(f"{quota}\n")
    own_group = tmp_path / "cgroup"
    own_group.write_text("0::/service\n")
    assert count_cores(tmp_path, own_group) == cores


def test_machine_without_control_groups_has_its_cores(tmp_path: Path) -> None:
    assert count_cores(tmp_path / "none", tmp_path / "none") == ALLOWED
