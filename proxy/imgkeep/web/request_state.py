"""State of one request: the facts for its log record, and the result of admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from imgkeep.core.errors import ImgkeepError
    from imgkeep.core.records import Source, SourceInfo

DETAIL_CHARS_MAX: Final = 300
"""Maximum length of a detail in a record: a detail may quote a client, and must not fill a log or a peer's field."""


@dataclass(slots=True)
class RequestLog:
    """
    The facts for the log record of a request.

    Attributes:
        key: The key of the image.
        outcome: The outcome of a request without a failure.
        code: The code of the failure.
        sent: Number of bytes of the body that were sent.
        host: The host of the link, stated with a failure.
        provider: The service behind the link, stated with a failure.
        detail: The description of a failure, for people.
        is_for_client: Whether the failure depends on the client, so that no other request may share it.
        permitted_until: When the permission to see the image ends, in epoch seconds; `None`: never.
    """

    key: str | None = None
    outcome: str = "none"
    code: str | None = None
    sent: int = 0
    host: str | None = None
    provider: str | None = None
    detail: str | None = None
    permitted_until: int | None = None
    is_for_client: bool = False

    def set_source(self, source: Source, info: SourceInfo) -> None:
        """Note the link of the request, as far as a record may state it."""
        self.key, self.host, self.provider = info.key, source.host, info.provider

    def fail(self, code: str, detail: str) -> None:
        """Note a failure."""
        self.code, self.detail = code, detail[:DETAIL_CHARS_MAX]

    def fail_with(self, error: ImgkeepError) -> None:
        """Note a typed failure, with details that clients do not get."""
        self.fail(error.code, error.in_full if isinstance(error, StorageError) else str(error))


class Admission(msgspec.Struct, frozen=True):
    """
    The result of `admission.py` for a request to the API, in the process that holds the client's connection.

    Attributes:
        base: Prefix of this server's own paths in the response: `Auth.base_url`.
        body_bytes: Declared size of the body, which the parser of that process enforces; `None`: the body is chunked.
    """

    base: str
    body_bytes: int | None = None


REQUEST_LOG: Final = web.RequestKey("request_log", RequestLog)
IS_IMAGE: Final = web.RequestKey("is_image", bool)
"""Set for requests that a handler of images answers: a failure may be a placeholder."""
ADMISSION: Final = web.RequestKey("admission", Admission)
"""Set for requests to the API. A handler fails without it, so a route that `admission.py` skips stays closed."""
