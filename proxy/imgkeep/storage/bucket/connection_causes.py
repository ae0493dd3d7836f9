"""Why a connection failed, for operators."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import aiohttp

CAUSES_MAX: Final = 8
"""Maximum number of errors in a chain of causes that are examined."""


def cause_of(error: BaseException) -> str:
    """Return why a connection failed, in the words of the system: no URL, and no words of the service."""
    for _ in range(CAUSES_MAX):
        inner = getattr(error, "kwargs", {}).get("error") or error.__cause__ or error.__context__
        if isinstance(error, (aiohttp.ClientConnectorDNSError, socket.gaierror)):
            return "the host does not resolve"
        if isinstance(error, (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)):
            return "the certificate is not valid for the host, or not trusted"
        if isinstance(error, ssl.SSLError):
            return "TLS failed"  # its number is none of the system's
        if isinstance(error, OSError) and error.errno and error.errno > 0:
            return os.strerror(error.errno)
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return "the server closed the connection"
        if inner is None:
            break
        error = inner
    return type(error).__name__
