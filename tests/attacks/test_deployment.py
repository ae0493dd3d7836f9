"""The files in `deploy/`: how little the service may do, and that it does its work all the same."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import re
import shutil
import struct
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from tests.support.images import make_image
from tests.support.program import ROOT, cannot, serving

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.origins import FakeOrigin

UNIT: Final = ROOT / "deploy" / "imgkeep.service"
EXPOSURE_MAX: Final = 2.0
IMAGE: Final = make_image("png")

NUMBERS: Final = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

# linux/prctl.h, linux/seccomp.h, linux/audit.h, linux/bpf_common.h
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 22, 2, 38, 65
RET_ALLOW, RET_EPERM, RET_KILL = 0x7FFF0000, 0x00050001, 0x80000000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
AUDIT_ARCH_X86_64 = 0xC000003E


def analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        cannot("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def settings() -> dict[str, list[str]]:
    """Return the settings of the unit, each with its values in their order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"([A-Z]\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_systemd_exposes_the_service_to_little() -> None:
    reply = analyze("security", "--offline=true", "--no-pager", str(UNIT))
    match = re.search(r"Overall exposure level for imgkeep\.service: ([0-9.]+)", reply)
    assert match is not None, reply
    assert float(match[1]) <= EXPOSURE_MAX, reply


def test_systemd_bounds_the_service() -> None:
    unit = settings()
    assert {"MemoryMax", "TasksMax", "LimitNOFILE"} <= unit.keys()
    assert unit["UMask"] == ["0077"]
    assert unit["SystemCallFilter"][0] == "@system-service"
    assert unit["DynamicUser"] == ["yes"]


def sets() -> dict[str, list[str]]:
    """Return systemd's sets of system calls; a set may hold others."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in analyze("syscall-filter", "--no-pager").splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            found[name].append(line.strip())
    return found


def resolve(names: Iterable[str], known: dict[str, list[str]]) -> set[str]:
    calls: set[str] = set()
    for name in names:
        calls |= resolve(known[name], known) if name.startswith("@") else {name}
    return calls


def allowed() -> set[str]:
    """Return the system calls that the unit allows."""
    known = sets()
    calls: set[str] = set()
    for line in settings()["SystemCallFilter"]:
        if line.startswith("~"):
            calls -= resolve(line[1:].split(), known)
        else:
            calls |= resolve(line.split(), known)
    # What systemd always allows, so that a program can be started.
    return calls | resolve(["@default"], known) | {"execve"}


def program_of(numbers: Iterable[int]) -> bytes:
    """Return a filter for seccomp (BPF) that lets these system calls of x86-64 through, and fails all others."""
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT_ARCH_X86_64), (RETURN, 0, 0, RET_KILL), (LOAD, 0, 0, 0)]
    for number in numbers:
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, RET_ALLOW)]
    steps.append((RETURN, 0, 0, RET_EPERM))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def wall_in(libc: ctypes.CDLL, program: ctypes.Array[ctypes.c_char]) -> None:
    """Put this process, and what it becomes, behind the walls of the unit that need no systemd."""
    os.umask(0o077)
    head = struct.pack("HxxxxxxP", (len(program) - 1) // 8, ctypes.addressof(program))
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_MDWE, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head)):
        if libc.prctl(*arguments, 0, 0) != 0 and arguments[0] != PR_SET_MDWE:  # since Linux 6.3
            os._exit(99)


async def test_service_runs_in_its_sandbox(tmp_path: Path, origin: FakeOrigin) -> None:
    if platform.machine() != "x86_64" or not NUMBERS.exists():
        cannot("the numbers of the system calls are not known: linux-libc-dev for x86-64 is not installed")
    numbers = {name: int(n) for name, n in re.findall(r"#define __NR_(\w+) (\d+)", NUMBERS.read_text())}
    calls = allowed()
    assert not calls & {"ptrace", "mount", "chroot", "setuid", "bpf", "init_module", "reboot", "mbind"}
    program = ctypes.create_string_buffer(program_of(numbers[name] for name in sorted(calls) if name in numbers))
    prepare = partial(wall_in, ctypes.CDLL(None), program)
    async with serving(tmp_path / "data", prepare=prepare, server__workers="2") as running:
        url = origin.gives("/a.png", IMAGE)
        for _ in range(3):
            answer = await running.img(url)
            assert (answer.status, answer.body) == (200, IMAGE)
        if find_spec("pyvips") is not None:
            picture = await running.get(f"/img?src={quote(url, safe='')}&w=8&format=webp")
            assert (picture.status, picture.headers["Content-Type"]) == (200, "image/webp"), picture.body
        status = await asyncio.to_thread(Path(f"/proc/{running.process.pid}/status").read_text)
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        assert (await running.get("/readyz")).status == 200
        made = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        assert made
        assert not [path for path in made if path.stat().st_mode & 0o077]


def test_container_has_no_root_and_no_installer() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = re.split(r"(?m)^FROM ", text)[1:]
    assert all(stage.startswith("${BASE}") for stage in stages)
    assert re.search(r"(?m)^ARG BASE=python:[\w.-]+@sha256:[0-9a-f]{64}$", text.partition("FROM ")[0])
    last = stages[-1]
    assert re.search(r"(?m)^USER [1-9][0-9]*:[1-9][0-9]*$", last)
    assert "ensurepip" in last
    assert "pip install" not in last
