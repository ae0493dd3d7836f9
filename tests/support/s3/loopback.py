"""
Ports on loopback that stay ours while nobody listens on them.

A port that was only looked for may be somebody else's by the time it is used. Worse, one that nobody holds may become
the local port of whoever tries to connect to it, which then is connected to itself. A socket that is bound and does
not listen keeps both from happening: the kernel gives its port to nobody, refuses connections to it, and lets a
program listen there that sets `SO_REUSEADDR`, as servers do.
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


def listens(port: int) -> bool:
    """Tell whether somebody listens on a port."""
    with socket.socket() as caller:
        return caller.connect_ex((HOST, port)) == 0
