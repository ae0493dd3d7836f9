"""
Errors of a bucket, whatever its service.

No message of a service is passed on: it may hold a link, and links are credentials.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import aiohttp

from imgkeep.core.errors import RemoteFault

CAUSES_MAX: Final = 8
"""Maximum number of errors in a chain of causes that are examined."""

BROKEN_OFF: Final = "the bucket's answer broke off"
SILENT: Final = "the bucket does not answer within store.timeout_s"
UNREACHABLE: Final = "the bucket cannot be reached, or the connection broke off"
NOT_TAKEN: Final = "the bucket does not have what it said it took"


class BucketError(RemoteFault):
    """
    An error of the bucket, or a missing answer.

    Attributes:
        error_code: The code of the service, where there is one.
        remedy: What an operator can do, in the service's own terms; `None`: that is not known.
    """

    def __init__(
        self,
        message: str,
        error_code: str = "",
        *,
        general: bool = True,
        cause: str = "",
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, general=general, cause=cause)
        self.error_code = error_code
        self.remedy = remedy


class AlreadyThere(BucketError):
    """A conditional PUT found an object, or another PUT that was quicker. The bucket works."""

    def __init__(self) -> None:
        super().__init__("the bucket has an object of this name already", general=False)


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
