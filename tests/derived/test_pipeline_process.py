"""The program of a derive process, as a server starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import pytest
import pyvips
from PIL import Image

from imgkeep.derived.messages import (
    LENGTH_BYTES,
    MESSAGE_BYTES_MAX,
    Derived,
    DeriveJob,
    Facts,
    FactsJob,
    ProcessLimits,
    Ready,
    Refused,
    decode_answer,
    decode_greeting,
    encode,
)
from imgkeep.derived.process.limits import processor_time_of
from tests.support.derive import encoded, quarters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.derived.messages import Answer, Job

MEMORY_BYTES_MAX = 268_435_456
"""The smallest value of `derive.memory_bytes_max`."""


class Program:
    """A derive process, and the server's end of its connection."""

    def __init__(self, memory_bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(60)
        settings = ProcessLimits(memory_bytes_max=memory_bytes_max, cpu_s=30)
        command = [sys.executable, "-m", "imgkeep.derived.process", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [*command, msgspec.json.encode(settings).decode()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"PATH": os.environ["PATH"], "VIPS_CONCURRENCY": "1"},  # noqa: TID251 - tests read what they run in
            )
        self.greeting = decode_greeting(self.receive())

    def receive(self) -> bytes:
        size = int.from_bytes(self.connection.recv(LENGTH_BYTES, socket.MSG_WAITALL), "big")
        return self.connection.recv(size, socket.MSG_WAITALL)

    def send(self, job: Job, *files: BinaryIO) -> None:
        socket.send_fds(self.connection, [encode(job)], [file.fileno() for file in files])

    def do(self, job: Job, original: bytes) -> tuple[Answer, bytes]:
        """Have a job done; return the answer, and the file."""
        with TemporaryFile() as source, TemporaryFile() as picture:
            source.write(original)
            source.flush()
            self.send(job, source, *([picture] if isinstance(job, DeriveJob) else []))
            answer = decode_answer(self.receive())
            picture.seek(0)
            return answer, picture.read()

    def open_files(self) -> list[str]:
        return sorted(str(each.readlink()) for each in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def close(self) -> int:
        self.connection.close()
        _, errors = self.process.communicate(timeout=60)
        assert b"Traceback" not in errors
        return self.process.returncode


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    program = Program()
    yield program
    assert program.close() == 0


def derive_job(stem: str = "w40", format_: str = "WEBP", original_format: str = "PNG") -> DeriveJob:
    return DeriveJob(
        stem=stem, format=format_, original_format=original_format, pixels_max=100_000_000, frames_max=500, timeout_s=60
    )


def test_process_tells_what_it_can_do(program: Program) -> None:
    assert isinstance(program.greeting, Ready)
    assert program.greeting.version.startswith("8.")
    assert {"JPEG", "PNG", "WEBP", "AVIF"} <= set(program.greeting.writes) <= set(program.greeting.reads)


def test_one_process_does_many_jobs(program: Program) -> None:
    original = encoded(quarters(), "PNG")
    before = program.open_files()
    for _ in range(3):
        answer, picture = program.do(derive_job(), original)
        assert answer == Derived(size=len(picture), width=40, height=30)
        facts, _ = program.do(FactsJob(original_format="PNG", pixels_max=10_000, frames_max=5), original)
        assert isinstance(facts, Facts)
        refusal, nothing = program.do(derive_job(original_format="JPEG"), original)
        assert (isinstance(refusal, Refused), nothing) == (True, b"")
    assert program.open_files() == before


def test_signals_of_a_terminal_do_not_end_it(program: Program) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        program.process.send_signal(each)
    assert isinstance(program.do(derive_job(), encoded(quarters(), "PNG"))[0], Derived)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the limits of a process on Linux")
def test_process_is_limited(program: Program) -> None:
    program.do(derive_job(), encoded(quarters(), "PNG"))  # which limits its processor time
    lines = Path(f"/proc/{program.process.pid}/limits").read_text("utf-8").splitlines()
    limits = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert limits["Max address space"] == str(MEMORY_BYTES_MAX)
    assert limits["Max core file size"] == "0"
    assert int(limits["Max open files"]) <= 64
    assert limits["Max cpu time"].isdigit()
    assert os.getpriority(os.PRIO_PROCESS, program.process.pid) == min(os.nice(0) + 10, 19)
    assert Path(f"/proc/{program.process.pid}/cwd").readlink() == Path("/")


@pytest.mark.parametrize(("allowed", "seconds"), [(21, 5), (5, 2), (1, 1), (61, 15)])
def test_svg_may_take_a_quarter_of_the_processor_time(allowed: int, seconds: int) -> None:
    """A few hundred bytes of `<use>` within `<use>` would take all of it, and a new size of it once more."""
    limits = ProcessLimits(memory_bytes_max=MEMORY_BYTES_MAX, cpu_s=allowed)
    assert processor_time_of(derive_job(original_format="SVG"), limits) == seconds
    assert processor_time_of(derive_job(), limits) == allowed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no limit of the address space")
def test_memory_above_the_limit_is_refused_and_harms_no_other_job(program: Program) -> None:
    """An interlaced picture has to be decoded whole: this one into 192 MB."""
    large = pyvips.Image.black(8000, 8000, bands=3).copy(interpretation="srgb")
    answer, _ = program.do(derive_job(), bytes(large.pngsave_buffer(interlace=True, compression=1)))
    assert isinstance(answer, Refused)
    assert (answer.reason, "derive.memory_bytes_max" in answer.detail) == ("too_large", True)
    assert isinstance(program.do(derive_job(), encoded(quarters(), "PNG"))[0], Derived)


def test_process_ends_with_its_connection_in_the_middle_of_a_job() -> None:
    program = Program(memory_bytes_max=4 * MEMORY_BYTES_MAX)
    noise = encoded(Image.effect_noise((512, 512), 90), "PNG")
    with TemporaryFile() as source, TemporaryFile() as picture:
        source.write(noise)
        source.flush()
        program.send(derive_job("w8000-contain", "AVIF"), source, picture)
        while len(program.open_files()) < 5:  # it has begun
            assert program.process.poll() is None
        assert program.close() == 0
        assert os.fstat(picture.fileno()).st_size == 0


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param((MESSAGE_BYTES_MAX + 1).to_bytes(LENGTH_BYTES, "big"), id="too long"),
        pytest.param(b"\0\0\0\3abc", id="no message"),
    ],
)
def test_broken_frame_ends_the_process(frame: bytes) -> None:
    program = Program()
    program.connection.sendall(frame)
    _, errors = program.process.communicate(timeout=60)
    assert program.process.returncode == 1
    assert b"Error" in errors
    program.connection.close()
