"""
Every failure that a caller can meet, sorted by blame: the client's, the origin's, ours.

Rules:
- A miss is `None`; a fault is one of these; they never meet.
- A message is for people and may be sent to the client, so it names settings, limits and reasons, and never a
  source URL, a token or a path of this machine.
- `code` is for programs and never changes; `web/problems.py` turns it into a status.
"""

from __future__ import annotations

from typing import ClassVar


class ImgkeepError(Exception):
    """Base of all typed failures. `str(error)` is the detail for people."""

    code: ClassVar[str]


class SourceRejected(ImgkeepError):
    """The client asked for something that we do not do. Asking again changes nothing."""


class InvalidSource(SourceRejected):
    """`src` is missing, malformed, too long or not an absolute http(s) URL."""

    code = "invalid_source"


class SourceForbidden(SourceRejected):
    """Policy refuses the scheme of a redirect, the host, the port or an address behind it."""

    code = "source_forbidden"


class RedirectForbidden(SourceForbidden):
    """The origin redirects to what policy refuses, or to no http(s) URL."""


class SignatureRequired(SourceRejected):
    """`security.signature` wants our own signature on the URL, and there is none."""

    code = "signature_required"


class SignatureInvalid(SourceRejected):
    """None of `security.signing_keys` has signed this URL."""

    code = "signature_invalid"


class SignatureExpired(SourceRejected):
    """Our own signature is past its `exp`."""

    code = "signature_expired"


class Forbidden(SourceRejected):
    """A request that a page of another site has made a browser here send, as far as can be told."""

    code = "forbidden"


class LoopDetected(SourceRejected):
    """The source is this server, directly or through another node (RFC 8586)."""

    code = "loop_detected"


class Unauthorized(SourceRejected):
    """Who asks may not: no API token, or a wrong one."""

    code = "unauthorized"


class InvalidRequest(SourceRejected):
    """The body of a request to the API is not of the form that is documented."""

    code = "invalid_request"


class Removed(ImgkeepError):
    """An operator has removed the image, for good."""

    code = "removed"


class Busy(ImgkeepError):
    """A limit on concurrency or on a queue is reached; `retry_after_s` says when to come back."""

    code = "busy"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Busy):
    """A client has caused as many fills as `[limits]` lets it, for now."""

    code = "rate_limited"


class Yielded(Busy):
    """
    A fill that no client read was stopped, because another one waited for its place.

    A client that asks for the image at that very moment has it fetched anew, so none is ever told.
    """


class OriginError(ImgkeepError):
    """
    The origin failed: 5xx, connection, TLS, protocol error, body cut short, too many redirects.

    Attributes:
        origin_status: The status that it answered, if any.
        retry_after_s: What it asked for (RFC 9110, 10.2.3).
        refusal: The beginning of what it sent with an error, where that was asked for: hostile, and never shown as it
            is, logged or remembered.
        refusal_broke_off: Whether `refusal` is less than was asked for and sent.
        image: The media type and bytes of an image that it sent with an error, where clients are shown it
            (`fetch.show_errors`).
        elsewhere: Whether it was another host that failed, to which the link was redirected.
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
    """The origin did not connect, answer or finish within the limits of `[fetch]`."""

    code = "origin_timeout"


class OriginRefused(OriginError):
    """The origin said 401 or 403 to a link that is not known to be a temporary one."""

    code = "origin_refused"


class SourceNotFound(OriginError):
    """The origin said 404 or 410."""

    code = "source_not_found"


class SourceExpired(OriginError):
    """The origin refused a temporary link that is past its expiry, or of a signed kind."""

    code = "source_expired"


class NotAnImage(OriginError):
    """Judged by the bytes, the body is no image of a kind that we keep. `media_type` is what the origin called it."""

    code = "not_an_image"
    media_type = ""


class TooLarge(OriginError):
    """The image has more bytes or more pixels than `fetch.body_bytes_max` or `fetch.pixels_max` allows."""

    code = "too_large"


class StorageError(ImgkeepError):
    """
    A store can neither take nor give what it should. Never used for a miss.

    Attributes:
        place: Which store: its bucket, folder or database. For logs and operators, never for clients.
        cause: Why, in the words of the system, where the message does not say it. Likewise.
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


class RemoteFault(StorageError):
    """A remote store failed. `general`: as a whole, and not only for what it was asked."""

    def __init__(self, message: str, *, general: bool = True, cause: str = "") -> None:
        super().__init__(message, cause=cause)
        self.general = general


class Unreachable(StorageError):
    """
    The primary cannot be asked, and the fallback does not have it. What is fetched now may be put all the same: when
    the primary is back it is settled which image stays.
    """


class Conflict(StorageError):
    """The store works, but what lies there stays: another image under the key."""


class WrittenByNewer(Conflict):
    """What lies there stays, and cannot be read either: it is a record of a newer version."""
