"""
The expiry of a link, in every form in which links give it.

A form takes the decoded values of its fields and returns an `Expiry`, or `None` where it cannot read them. The result
is an upper bound: sessions and delegated keys may expire sooner. An `Expiry` names a moment that stands for "never" all
the same; `-1`, an empty value and null stand for "never" without a moment.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from imgkeep.core.identity.jwt import decode_base64, read_json, read_jwt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LASTING: Final = timedelta(days=3652)
"""Maximum lifetime of a temporary link, ten years: a longer one is permanent. (Firebase's examples sign until 2491.)"""

SENTINELS: Final = frozenset({2_147_483_647, 4_294_967_295, 4_294_967_040})
"""Moments that mean "never": the largest numbers of 32 bits, signed and not, and the last of Tencent's console."""

_EPOCH: Final = re.compile(r"[0-9]{9,11}", re.ASCII)
_EPOCH_MS: Final = re.compile(r"[0-9]{13}", re.ASCII)
_EPOCH_HEX: Final = re.compile(r"[0-9A-Fa-f]{8}", re.ASCII)
_BASIC: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_ISO: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9:.,]{2,}(?:Z|[+-][0-9:]{2,8})?)?", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_LEADING: Final = re.compile(r"([0-9]{9,11})[-_]", re.ASCII)
_EDGE_AUTH: Final = re.compile(r"(?:^|~)exp=([0-9]+)~", re.ASCII)
_PACKED: Final = re.compile(r"(?:^|&)q-sign-time=([^&]*)")
_NEVER: Final = frozenset({"", "-1"})


class Expiry(NamedTuple):
    """
    The expiry that a link gives.

    Attributes:
        at: The moment, aware UTC, if the link names one.
        never: Whether it means "never".
    """

    at: datetime | None
    never: bool

    def expires_soon(self, now: datetime) -> bool:
        """Return whether the link expires within `LASTING` from now."""
        return not self.never and (self.at is None or self.at - now <= LASTING)


NEVER: Final = Expiry(None, never=True)
UNKNOWN_END: Final = Expiry(None, never=False)
"""An expiry at a moment that the link does not name."""


def later(read: Callable[..., Expiry | None], seconds: int) -> Callable[..., Expiry | None]:
    """Return a form that adds `seconds` to the moment of `read`: for links that name the time of their creation."""

    def read_later(*texts: str) -> Expiry | None:
        start = read(*texts)
        if start is None or start.at is None:
            return start
        try:
            return Expiry(start.at + timedelta(seconds=seconds), start.never)
        except OverflowError:
            return None

    return read_later


def _at(seconds: int) -> Expiry:
    return Expiry(datetime.fromtimestamp(seconds, UTC), seconds in SENTINELS)


def read_epoch(text: str) -> Expiry | None:
    """Read seconds since 1970."""
    if _EPOCH.fullmatch(text):
        return _at(int(text))
    return NEVER if text in _NEVER else None


def read_epoch_ms(text: str) -> Expiry | None:
    """Read milliseconds since 1970."""
    if _EPOCH_MS.fullmatch(text) is None:
        return NEVER if text in _NEVER else None
    return Expiry(datetime.fromtimestamp(int(text) / 1000, UTC), never=False)


def read_epoch_hex(text: str) -> Expiry | None:
    """Read hexadecimal seconds since 1970, in either case."""
    return _at(int(text, 16)) if _EPOCH_HEX.fullmatch(text) else None


def read_iso(text: str) -> Expiry | None:
    """Read extended ISO 8601: to the day, the minute, the second or less; UTC where it names no zone."""
    if _ISO.fullmatch(text) is None:
        return NEVER if text in _NEVER else None
    try:
        moment = datetime.fromisoformat(text)
        return Expiry(moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC), never=False)
    except (ValueError, OverflowError):
        return None


def read_start_seconds(start: str, seconds: str) -> Expiry | None:
    """Read `YYYYMMDDTHHMMSSZ` and a lifetime in seconds."""
    return _after(start, seconds) if _BASIC.fullmatch(start) else None


def read_interval(text: str) -> Expiry | None:
    """Read `start;end` in seconds since 1970."""
    _, separator, end = text.partition(";")
    return read_epoch(end) if separator else None


def read_leading_epoch(text: str) -> Expiry | None:
    """Read seconds since 1970, before `-` or `_` and a signature."""
    match = _LEADING.match(text)
    return match and read_epoch(match[1])


def read_edge_auth(text: str) -> Expiry | None:
    """Read Akamai's `st=...~exp=...~hmac=...`."""
    match = _EDGE_AUTH.search(text)
    return match and read_epoch(match[1])


def read_jwt_end(text: str) -> Expiry | None:
    """
    Read the claim `exp` of a JSON Web Token: a number or a text; a token without one never expires (RFC 7519, 4.1.4).
    """
    claims = read_jwt(text)
    return None if claims is None else _read_claim(claims.get("exp"))


def read_policy(text: str) -> Expiry | None:
    """Read `DateLessThan` in CloudFront's base64 policy; `DateGreaterThan` is the start."""
    statement = _member(read_json(decode_base64(text, cloudfront=True)), "Statement")
    if isinstance(statement, list):
        statement = statement[0] if statement else None
    end = _member(_member(_member(statement, "Condition"), "DateLessThan"), "AWS:EpochTime")
    return None if end is None else _read_claim(end)


def read_bce_auth(text: str) -> Expiry | None:
    """Read Baidu's `bce-auth-v1/<key>/<ISO start>/<seconds>/...`, where -1 means never."""
    parts = text.split("/")
    if len(parts) < 4 or _ISO.fullmatch(parts[2]) is None:
        return None
    return NEVER if parts[3] == "-1" else _after(parts[2], parts[3])


def read_packed_interval(text: str) -> Expiry | None:
    """Read `q-sign-time=start;end` in a value that is itself a query."""
    match = _PACKED.search(text)
    return match and read_interval(unquote(match[1]))


def read_rails(text: str) -> Expiry | None:
    """Read `_rails.exp` in base64 JSON, ISO 8601 or null; a message of another form never expires."""
    end = _member(_member(read_json(decode_base64(unquote(text))), "_rails"), "exp")
    return read_iso(end) if isinstance(end, str) else NEVER


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _after(start: str, seconds: str) -> Expiry | None:
    try:
        if _SECONDS.fullmatch(seconds):
            begin = datetime.fromisoformat(start)
            begin = begin if begin.tzinfo else begin.replace(tzinfo=UTC)  # and never this machine's own zone
            return Expiry(begin.astimezone(UTC) + timedelta(seconds=int(seconds)), never=False)
    except (ValueError, OverflowError):
        pass
    return None


def _read_claim(value: object) -> Expiry | None:
    if value is None:
        return NEVER
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value).partition(".")[0]
    return read_epoch_ms(text) if _EPOCH_MS.fullmatch(text) else read_epoch(text)


FORMS: Final[Mapping[str, tuple[int, Callable[..., Expiry | None]]]] = {
    "epoch": (1, read_epoch),
    "epoch-ms": (1, read_epoch_ms),
    "epoch-hex": (1, read_epoch_hex),
    "iso": (1, read_iso),
    "start-seconds": (2, read_start_seconds),
    "interval": (1, read_interval),
    "leading-epoch": (1, read_leading_epoch),
    "edge-auth": (1, read_edge_auth),
    "jwt": (1, read_jwt_end),
    "policy": (1, read_policy),
    "bce-auth": (1, read_bce_auth),
    "packed-interval": (1, read_packed_interval),
    "rails": (1, read_rails),
}
"""All forms by the name that rules use: the number of fields, and the function that reads them."""
