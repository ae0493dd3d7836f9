"""The program of a derive process: `python -m imgkeep.derived.process DESCRIPTOR LIMITS`, started by a server."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import msgspec

from imgkeep.derived.messages import DeriveJob, ProcessLimits, Ready, Unusable
from imgkeep.derived.process.connection import Connection
from imgkeep.derived.process.limits import allow_processor_time, processor_time_of, set_limits
from imgkeep.derived.process.memory import Memory

if TYPE_CHECKING:
    from imgkeep.derived.messages import Answer, Job


def main(arguments: list[str]) -> int:
    """Do jobs until the server closes the connection."""
    limits = msgspec.json.decode(arguments[1], type=ProcessLimits)
    connection = Connection(socket.socket(fileno=int(arguments[0])))
    set_limits(limits)
    try:
        from imgkeep.derived.process import library  # noqa: PLC0415 - libvips may be missing, and limits come before it

        library.prepare()
        library.start_threads()
    except (ImportError, OSError) as error:
        connection.send(Unusable(detail=f"libvips cannot be loaded ({error}); pip install 'imgkeep[server,derive]'"))
        return 1
    connection.send(
        Ready(
            version=library.version(),
            reads=tuple(each.name for each in library.readable()),
            writes=tuple(each.name for each in library.writable()),
        )
    )
    memory = Memory(limits.memory_bytes_max)
    for job, descriptors in connection.jobs():
        allow_processor_time(processor_time_of(job, limits))
        try:
            answer = _answer(job, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(answer)
        if memory.is_worn:
            break
    return 0


def _answer(job: Job, descriptors: list[int]) -> Answer:
    from imgkeep.derived.process.facts import find_facts  # noqa: PLC0415 - as above
    from imgkeep.derived.process.pictures import derive  # noqa: PLC0415
    from imgkeep.derived.process.refusals import Refusal  # noqa: PLC0415

    try:
        if isinstance(job, DeriveJob):
            return derive(job, *descriptors)
        return find_facts(job, descriptors[0])
    except Refusal as refusal:
        return refusal.answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
