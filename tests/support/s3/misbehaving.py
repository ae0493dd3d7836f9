"""Faults of requests and responses, as values that the gate carries out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Match = Callable[[str, str], bool]
    """Takes the method, and the path with its query as it was sent."""


@dataclass(frozen=True)
class Pass:
    """Forward the request."""


@dataclass(frozen=True)
class Hang:
    """Read the request and never answer."""


@dataclass(frozen=True)
class Reset:
    """Break off after so many bytes of the body, or with the head of the request (`None`)."""

    after_bytes: int | None


@dataclass(frozen=True)
class Answer:
    """Read the request and answer instead of the server."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class CutBody:
    """Break off after so many bytes of the response's body."""

    after_bytes: int
    reset: bool


@dataclass(frozen=True)
class Stall:
    """Fall silent after so many bytes of the response's body."""

    after_bytes: int


@dataclass(frozen=True)
class Drip:
    """Answer with a head that comes byte by byte and never ends, or with a body that does (`status`)."""

    interval_s: float
    status: int | None = None


@dataclass(frozen=True)
class Corrupt:
    """Flip one byte of the response's body."""

    at: int


@dataclass(frozen=True)
class SetHeader:
    """Set a field of the response; `None` removes it."""

    name: str
    value: str | None


@dataclass(frozen=True)
class Rewrite:
    """Put something shorter in the place of what a pattern finds in a piece of the response's body, and then spaces."""

    pattern: re.Pattern[bytes]
    by: bytes

    def rewrite(self, piece: bytes) -> bytes:
        return self.pattern.sub(lambda found: self.by.ljust(len(found[0])), piece)


NO_ETAG = Rewrite(re.compile(rb"<ETag>[^<]*</ETag>"), b"<ETag></ETag>")
"""Ceph RGW 16.2 at the end of an upload in parts."""

Mischief = Pass | Hang | Reset | Answer | CutBody | Stall | Drip | Corrupt | SetHeader | Rewrite


def only(method: str, path_part: str = "") -> Match:
    """Match requests of a method whose path has this part."""
    return lambda its_method, path: its_method == method and path_part in path


def s3_error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return S3's answer with an error code, as in `s3_error(403, "ExpiredToken")`."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Answer(status, {"Content-Type": "application/xml", **(headers or {})}, body.encode())
