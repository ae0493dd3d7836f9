"""What can be done to requests and their responses on the way, as values that the gate carries out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Match = Callable[[str, str], bool]
    """Takes the method and the path with its query, as it is on the wire."""


@dataclass(frozen=True)
class Pass:
    """Let it through."""


@dataclass(frozen=True)
class Hang:
    """Take what comes and do nothing."""


@dataclass(frozen=True)
class Reset:
    """Break off after so many bytes of the body were passed on, or as soon as there is a request (`None`)."""

    after_bytes: int | None


@dataclass(frozen=True)
class Answer:
    """Read the request and answer in the server's stead."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class CutBody:
    """Break off after so many bytes of the response's body."""

    after_bytes: int
    reset: bool


@dataclass(frozen=True)
class Corrupt:
    """Flip one byte of the response's body."""

    at: int


@dataclass(frozen=True)
class SetHeader:
    """Give a field of the response this value; `None` takes it away."""

    name: str
    value: str | None


Mischief = Pass | Hang | Reset | Answer | CutBody | Corrupt | SetHeader


def only(method: str, path_part: str = "") -> Match:
    """Match requests of a method whose path has this part."""
    return lambda its_method, path: its_method == method and path_part in path


def s3_error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return S3's answer with an error code, as in `s3_error(403, "ExpiredToken")`."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Answer(status, {"Content-Type": "application/xml", **(headers or {})}, body.encode())
