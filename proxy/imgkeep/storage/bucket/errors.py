"""
Errors of a bucket, whatever its service.

No message of a service is passed on: it may hold a link, and links are credentials.
"""

from __future__ import annotations

from typing import Final

from imgkeep.core.errors import RemoteFault, StorageError

BROKEN_OFF: Final = "the bucket's answer broke off"
SILENT: Final = "the bucket does not answer within store.timeout_s"
UNREACHABLE: Final = "the bucket cannot be reached, or the connection broke off"
CHANGED: Final = "the object in the bucket changed during a read"
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


class NotPublic(StorageError):
    """
    A public URL of an object that answers with something else.

    Attributes:
        remedy: What an operator can do.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class PublicUnreachable(StorageError):
    """A public URL that this machine cannot reach: a client may reach it."""
