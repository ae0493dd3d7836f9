"""
Every typed failure, sorted by blame: the client's, the origin's, ours.

Rules:
- A miss is `None`; a fault is one of these exceptions.
- A message is for people, and a response may contain it: it names settings, limits and reasons, and never a source URL,
  a token or a path of this machine.
- `code` is for programs and never changes; `web/error_to_problem.py` maps it to a status.
"""

from __future__ import annotations

from typing import ClassVar


class ImgkeepError(Exception):
    """Base of all typed failures. `str(error)` is the detail for people."""

    code: ClassVar[str]


class SourceRejected(ImgkeepError):
    """A request that imgkeep refuses. A retry changes nothing."""


class InvalidSource(SourceRejected):
    """`src` is missing, malformed, too long or not an absolute http(s) URL."""

    code = "invalid_source"


class SourceForbidden(SourceRejected):
    """The policy refuses the host, its port, one of its addresses, or the scheme of a redirect."""

    code = "source_forbidden"


class RedirectForbidden(SourceForbidden):
    """The origin redirects to a URL that the policy refuses, or to no http(s) URL."""


class SignatureRequired(SourceRejected):
    """`security.signature` requires our own signature on the URL, and the URL has none."""

    code = "signature_required"


class SignatureInvalid(SourceRejected):
    """None of `security.signing_keys` has signed this URL."""

    code = "signature_invalid"


class SignatureExpired(SourceRejected):
    """Our own signature is past its `exp`."""

    code = "signature_expired"


class Forbidden(SourceRejected):
    """A request that a page of another site probably made a browser send."""

    code = "forbidden"


class LoopDetected(SourceRejected):
    """The source is this server, directly or through another node (RFC 8586)."""

    code = "loop_detected"


class Unauthorized(SourceRejected):
    """The client has no API token, or an invalid one."""

    code = "unauthorized"


class InvalidRequest(SourceRejected):
    """The body of a request to the API does not have the documented form."""

    code = "invalid_request"


class InvalidOption(SourceRejected):
    """An option of a derived picture is unknown, malformed, out of range, repeated or without effect."""

    code = "invalid_option"


class OptionsForbidden(SourceRejected):
    """`derive.allow` lets this client ask for no derived picture with these options."""

    code = "options_forbidden"


class NotSupported(SourceRejected):
    """imgkeep knows what is asked for, and this installation of it cannot do it."""

    code = "not_supported"


class DeriveFailed(ImgkeepError):
    """The original is stored, and no picture can be made of it."""

    code = "derive_failed"


class Removed(ImgkeepError):
    """An operator has permanently removed the image."""

    code = "removed"


class Busy(ImgkeepError):
    """A limit on concurrency or on a queue is reached; the client may retry after `retry_after_s`."""

    code = "busy"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Busy):
    """A client has reached its limit of fills in `[limits]`."""

    code = "rate_limited"


class Yielded(Busy):
    """
    A fill without a reader was stopped, because another fill waited for its place.

    If a client requests the image at that moment, a new fill starts; so no response contains this failure.
    """


class FilledByPeer(Busy):
    """
    A fill did not begin, because another node fetches the image.

    A client's request follows that node; so no response contains this failure.

    Attributes:
        holder: The member that has the lease.
        lease: The name of the lease.
    """

    def __init__(self, message: str = "another node fetches the image", *, holder: str = "", lease: str = "") -> None:
        super().__init__(message)
        self.holder = holder
        self.lease = lease


class OriginError(ImgkeepError):
    """
    The origin failed: 5xx, connection, TLS, protocol error, body cut short, too many redirects.

    Attributes:
        origin_status: Status of its response, if any.
        retry_after_s: Its `Retry-After` (RFC 9110, 10.2.3).
        refusal: The first bytes of its error body, if the caller wanted them: untrusted; never sent, logged or cached.
        refusal_broke_off: Whether `refusal` is shorter than the wanted part of the body.
        image: Media type and bytes of an image in its error response, to send to clients (`fetch.show_errors`).
        elsewhere: Whether the failing host is the target of a redirect.
    """

    code = "origin_error"

    def __init__(self, message: str, *, origin_status: int | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.origin_status = origin_status
        self.retry_after_s = retry_after_s
        self.refusal = b""
        self.refusal_broke_off = False
        self.image: tuple[str, bytes] | None = None
        self.elsewhere = False


class OriginTimeout(OriginError):
    """Connecting, the response or its body took longer than the limits of `[fetch]` allow."""

    code = "origin_timeout"


class OriginRefused(OriginError):
    """The origin answered 401 or 403, and the link is not known to be temporary."""

    code = "origin_refused"


class SourceNotFound(OriginError):
    """The origin answered 404 or 410."""

    code = "source_not_found"


class SourceExpired(OriginError):
    """The origin refused a temporary link that is past its expiry, or of a signed kind."""

    code = "source_expired"


class NotAnImage(OriginError):
    """By its bytes the body is no image of a known format. `media_type` is the origin's `Content-Type`."""

    code = "not_an_image"
    media_type = ""


class TooLarge(OriginError):
    """The image has more bytes or more pixels than `fetch.body_bytes_max` or `fetch.pixels_max` allows."""

    code = "too_large"


class StorageError(ImgkeepError):
    """
    A store failed to read or write. A miss is never a `StorageError`.

    Attributes:
        place: Bucket, folder or database of the store. For logs and operators, never for clients.
        cause: The system's own message, if it adds to ours. For logs and operators, too.
    """

    code = "storage_unavailable"

    def __init__(self, message: str, *, place: str = "", cause: str = "") -> None:
        super().__init__(message)
        self.place = place
        self.cause = cause

    @property
    def in_full(self) -> str:
        """Return the message with cause and place."""
        cause = f": {self.cause}" if self.cause else ""
        return f"{self}{cause}{f' ({self.place})' if self.place else ''}"


class Unchecked(StorageError):
    """
    The store cannot be asked, and what this process has may have been removed elsewhere: it shows and fetches nothing.
    """


class RemoteFault(StorageError):
    """A remote store failed. `general`: for all requests, and not only for this one."""

    def __init__(self, message: str, *, general: bool = True, cause: str = "") -> None:
        super().__init__(message, cause=cause)
        self.general = general


class Unreachable(StorageError):
    """
    The primary is unreachable, and the fallback store has no such image. A fill may store one all the same: when the
    primary is back, the outbox worker decides which image stays.
    """


class Conflict(StorageError):
    """The store works, but refuses to replace another image under the key."""


class WrittenByNewer(Conflict):
    """The store refuses to replace a record that a newer version of imgkeep wrote."""
