"""
A program in the place of a derive process: it writes options and format of each job as its picture.

With the path of a pipe as its argument it begins no job before another process has opened the pipe to write.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Final

from imgkeep.derived.messages import LENGTH_BYTES, Derived, DeriveJob, Ready, decode_job, encode

COMMAND: Final = (sys.executable, str(Path(__file__)))
WRITES: Final = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")


def picture_of(stem: str, format_: str) -> bytes:
    """Return the picture that the program makes."""
    return f"{stem} as {format_}".encode()


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[-2]))
    gate = Path(sys.argv[1]) if len(sys.argv) > 3 else None
    connection.sendall(encode(Ready(version="0", reads=WRITES, writes=WRITES)))
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 65_536, 2)
        if not data:
            return
        job = decode_job(data[LENGTH_BYTES:])
        assert isinstance(job, DeriveJob)
        if gate is not None:
            os.close(os.open(gate, os.O_RDONLY))
        picture = picture_of(job.stem, job.format)
        os.pwrite(descriptors[1], picture, 0)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(encode(Derived(size=len(picture), width=1, height=1)))


if __name__ == "__main__":
    main()
