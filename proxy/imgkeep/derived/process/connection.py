"""
The connection of a derive process with the server that started it.

A thread reads jobs, and the main thread does them one after another. So the process notices at once, also in the middle
of a job, that the server has closed the connection or is dead, and ends.
"""

from __future__ import annotations

import os
import socket
import traceback
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.derived.messages import LENGTH_BYTES, MESSAGE_BYTES_MAX, decode_job, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.derived.messages import Answer, Greeting, Job

DESCRIPTORS_MAX: Final = 2
"""Maximum number of files of a job: the original, and the one for the picture."""


class Connection:
    """The process's end of the connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._jobs: SimpleQueue[tuple[Job, list[int]]] = SimpleQueue()

    def jobs(self) -> Iterator[tuple[Job, list[int]]]:
        """Give each job with its descriptors, which the caller closes. The process ends with the connection."""
        Thread(target=self._read, name="jobs", daemon=True).start()
        while True:
            yield self._jobs.get()

    def send(self, message: Answer | Greeting) -> None:
        """Send a message."""
        self._socket.sendall(encode(message))

    def _read(self) -> None:
        """Read jobs until the connection ends, and end the process then, whatever it is doing."""
        status = 1
        try:
            while (received := self._receive()) is not None:
                self._jobs.put(received)
            status = 0
        except (OSError, EOFError, ValueError, msgspec.MsgspecError):
            traceback.print_exc()
        finally:
            os._exit(status)

    def _receive(self) -> tuple[Job, list[int]] | None:
        head, descriptors, _, _ = socket.recv_fds(self._socket, LENGTH_BYTES, DESCRIPTORS_MAX)
        if not head:
            return None
        head += self._take(LENGTH_BYTES - len(head))
        size = int.from_bytes(head, "big")
        if size > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {size} bytes is too long")
        return decode_job(self._take(size)), descriptors

    def _take(self, size: int) -> bytes:
        taken = bytearray()
        while len(taken) < size:
            piece = self._socket.recv(size - len(taken))
            if not piece:
                raise EOFError("the connection ended within a message")
            taken += piece
        return bytes(taken)
