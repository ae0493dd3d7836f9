"""
Ports on loopback that stay reserved without a listener.

Another program may take a free port before its use. Worse, a free port may become the local port of a client that
connects to it, which then is connected to itself. A bound socket that does not listen prevents both: the kernel gives
its port to no other program, refuses connections to it, and lets a program listen there that sets `SO_REUSEADDR`, as
servers do.
"""

from __future__ import annotations

import socket

HOST = "127.0.0.1"


def reserve() -> socket.socket:
    """Return a socket that holds a free port until it is closed."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HOST, 0))
    return holder


def port_of(holder: socket.socket) -> int:
    return int(holder.getsockname()[1])


def listens(port: int, host: str = HOST) -> bool:
    """Tell whether a program listens on a port."""
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0
