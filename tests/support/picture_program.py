"""
A program in the place of a derive process: its pictures have a head of their format, and name their options.

With the path of a pipe as its argument it begins no job before another process has opened the pipe to write.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Final

from imgkeep.derived.messages import LENGTH_BYTES, Derived, DeriveJob, Ready, decode_job, encode

HEADS: Final = {
    "JPEG": bytes.fromhex("ffd8ffc0000b080001000101011100"),
    "PNG": bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55000000004944415435af061e"),
    "GIF": b"GIF89a\1\0\1\0\0\0\0",
    "WEBP": b"RIFF\x16\0\0\0WEBPVP8L\n\0\0\0/" + bytes(9),
    "AVIF": b"\0\0\0\x10ftypmif3avif\0\0\0\x42mini\x08\x08\0\0" + b"pixels" * 9,
}
"""The shortest file of each format that imgkeep takes for one, without its end."""
ENDS: Final = {"JPEG": b"\xff\xd9", "PNG": bytes.fromhex("0000000049454e44ae426082"), "GIF": b";"}
"""The ends without which a picture of a format counts as cut off."""

COMMAND: Final = (sys.executable, str(Path(__file__)))
WRITES: Final = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")


def picture_of(stem: str, format_: str) -> bytes:
    """Return the picture that the program makes."""
    return HEADS[format_] + f"{stem} as {format_}".encode() + ENDS.get(format_, b"")


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
