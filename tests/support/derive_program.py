"""
A program that speaks the protocol of a derive process, and misbehaves as the stem of a job says:

    done                                writes "picture" into the file for it
    slow                                waits until the original has a byte, and is done
    hang, exit0, exit3, abort           does not answer
    killed, killed-once, spent, allocate, seal
    garbage, long, greet, twice, split  answers wrong, twice, or byte by byte
    verbose                             refuses with a long reason

Its first argument says how it starts: `ok`, `unusable`, `exit`, `garbage` or `hang`.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from imgkeep.derived.messages import (
    DETAIL_CHARS_MAX,
    LENGTH_BYTES,
    MESSAGE_BYTES_MAX,
    Derived,
    DeriveJob,
    Facts,
    ProcessLimits,
    Ready,
    Refused,
    Unusable,
    decode_job,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

READY = Ready(version="8.0.0", reads=("jpeg", "png"), writes=("jpeg", "png", "webp"))
LONG = 1000
FACTS = Facts(width=1, height=1, frames=1, has_alpha=False, orientation=1, colour="000000", thumbhash="")


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[-2]))
    limits = msgspec.json.decode(sys.argv[-1], type=ProcessLimits)
    match sys.argv[1]:
        case "unusable":
            sock.sendall(encode(Unusable(detail="libvips is missing: install it")))
            return
        case "exit":
            sys.exit(3)
        case "garbage":
            sock.sendall(b"\xff" * 100)
        case "hang":
            time.sleep(1000)
    sock.sendall(encode(READY))
    while True:
        data, descriptors, _, _ = socket.recv_fds(sock, LENGTH_BYTES + MESSAGE_BYTES_MAX, 2)
        if not data:
            return
        job = decode_job(data[LENGTH_BYTES:])
        if isinstance(job, DeriveJob):
            misbehave(job.stem, sock, descriptors, limits)
        else:
            sock.sendall(encode(FACTS))
        for descriptor in descriptors:
            os.close(descriptor)


def misbehave(stem: str, sock: socket.socket, descriptors: list[int], limits: ProcessLimits) -> None:
    source, output = descriptors
    ends: dict[str, Callable[[], object]] = {
        "hang": lambda: time.sleep(1000),
        "exit0": lambda: os._exit(0),
        "exit3": lambda: os._exit(3),
        "abort": os.abort,
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "spent": lambda: os.kill(os.getpid(), signal.SIGXCPU),
        "killed-once": lambda: kill_once(source, output),
        "allocate": lambda: allocate(limits.memory_bytes_max),
        "seal": lambda: seal(output),
        "slow": lambda: wait_for_bytes(source),
    }
    says = {
        "garbage": b"\x00\x00\x00\x04\xff\xff\xff\xff",
        "long": (MESSAGE_BYTES_MAX + 1).to_bytes(LENGTH_BYTES),
        "greet": encode(READY),
        "verbose": encode(Refused(reason="unreadable", detail="x" * (DETAIL_CHARS_MAX + 1))),
    }
    if stem in ends:
        ends[stem]()
    if stem in says:
        sock.sendall(says[stem])
        time.sleep(1000)
    os.pwrite(output, b"picture", 0)
    answer = encode(Derived(size=7, width=1, height=1))
    parts = [answer[at : at + 1] for at in range(len(answer))] if stem == "split" else [answer]
    for part in parts * (2 if stem == "twice" else 1):
        sock.sendall(part)


def kill_once(source: int, output: int) -> None:
    """Write, and be killed, unless the original tells that this has happened."""
    if os.fstat(source).st_size < LONG:
        os.ftruncate(source, LONG)
        os.write(output, b"something longer")
        os.kill(os.getpid(), signal.SIGKILL)


def seal(output: int) -> None:
    """Write, let no other process change it, and end."""
    os.write(output, b"something longer")
    fcntl.fcntl(output, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    os._exit(0)


def allocate(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    bytearray(size)


def wait_for_bytes(source: int) -> None:
    while not os.fstat(source).st_size:
        time.sleep(0.001)


if __name__ == "__main__":
    main()
