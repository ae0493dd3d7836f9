"""
Strict reading of the header fields of a request, before the fast path answers it in place of aiohttp.

Rules:
- Only certain things are read. A strict reading does not cover a body, an upgrade, a field of odd form, or a second
  request behind the first: the full parser gets these, so that the two can never disagree about where a request ends
  (RFC 9112, 11.2).
- The result depends on the bytes alone, so a connection may remember it by them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multidict import CIMultiDict

from imgkeep.core.http_headers import read_host
from imgkeep.web.fastpath.response_variants import read_class

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

HEAD_BYTES_MAX: Final = 16_384
"""Maximum size of a head that the fast path waits for; aiohttp reads a longer one from its beginning."""
BLOCK_BYTES_MAX: Final = 8192
"""Maximum size of all header fields: a browser's, cookies included, have a tenth of it."""
FIELDS_MAX: Final = 100
"""Maximum number of header fields. A browser sends twenty; the full parser refuses too many, and says so."""

GET: Final = b"GET "
HEAD: Final = b"HEAD "
LINE_END: Final = b" HTTP/1.1\r\n"
HEAD_END: Final = b"\r\n\r\n"
TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")

_FROM_PROXY: Final = re.compile(rb"^(?:via|cdn-loop):", re.IGNORECASE | re.MULTILINE)
# RFC 9110, 5.1 and 5.5; an empty line only at the end.
_BLOCK: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")
_NOTABLE: Final = re.compile(
    rb"^(connection|content-encoding|content-length|expect|host|if-none-match|if-range|proxy-connection|range"
    rb"|transfer-encoding|upgrade):([^\r]*)\r$",
    re.IGNORECASE | re.MULTILINE,
)
_CONDITIONS: Final = frozenset({"if-none-match", "range", "if-range"})


@dataclass(frozen=True, slots=True)
class RequestConditions:
    """Conditions of a request, each field as it came; `None`: it is absent."""

    if_none_match: str | None = None
    range: str | None = None
    if_range: str | None = None


NO_CONDITIONS: Final = RequestConditions()
"""Result for every request without conditions."""


def read_conditions(block: bytes, hosts: AbstractSet[str] = frozenset()) -> RequestConditions | None:
    """
    Read the conditions in the bytes behind a request line of HTTP/1.1: header fields, and the empty line at their end.

    Returns:
        The conditions; `None` unless the block is certainly the rest of one whole request without a body, on a
        connection that stays open, and for one of the names `hosts` if there are any.
    """
    if len(block) > BLOCK_BYTES_MAX or block.count(b"\n") > FIELDS_MAX or _BLOCK.fullmatch(block) is None:
        return None
    conditions: dict[str, str] = {}
    lines_of_host = 0
    for name_bytes, value_bytes in _NOTABLE.findall(block):
        name, value = name_bytes.decode().lower(), decode(value_bytes).strip(" \t")
        if name in _CONDITIONS:
            # Its lines combined (RFC 9110, 5.3).
            conditions[name] = f"{conditions[name]}, {value}" if name in conditions else value
        elif name == "host":
            lines_of_host += 1
            host = read_host(value)
            if host is None or (hosts and host not in hosts):
                return None
        # aiohttp takes either name for the other, as old clients do.
        elif name not in {"connection", "proxy-connection"} or value.lower() not in {"keep-alive", ""}:
            return None
    if lines_of_host != 1:
        return None  # RFC 9112, 3.2
    if not conditions:
        return NO_CONDITIONS
    return RequestConditions(conditions.get("if-none-match"), conditions.get("range"), conditions.get("if-range"))


def decode(field: bytes) -> str:
    """
    Decode bytes as aiohttp does, so that a field has one meaning whichever parser has read it.

    A byte that is not UTF-8 stays recognisable: as Latin-1, 0xA0 would be a space and 0x85 a line end to `str.strip`.
    """
    return field.decode("utf-8", "surrogateescape")


def list_fields(block: bytes) -> list[tuple[str, str]]:
    """Return names and values of a block that `read_conditions` has read."""
    lines = decode(block).split("\r\n")
    return [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines) if name]


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A request whose response is not in memory: its bytes, its target, and since when it waits."""

    data: bytes
    target: bytes
    head: bool
    start: float


class RequestFields:
    """
    The header fields of one request.

    Args:
        block: The bytes behind the request line.
        own_hosts: As for `read_conditions`.
    """

    __slots__ = ("_client_class", "_parsed", "block", "conditions")

    def __init__(self, block: bytes = b"", own_hosts: AbstractSet[str] = frozenset()) -> None:
        self.block = block
        self.conditions = read_conditions(block, own_hosts)
        self._parsed: CIMultiDict[str] | None = None
        self._client_class: bytes | None = None

    @property
    def client_class(self) -> bytes:
        """The class of the client, where a response depends on `Accept`; read once."""
        if self._client_class is None:
            self._client_class = read_class(self.parse())
        return self._client_class

    def are_shareable(self) -> bool:
        """
        Tell whether other requests for the same target may have the same response.

        A request that passed a proxy may come from another node of this installation: if it waited for the response to
        another request, it could wait for itself.
        """
        return self.conditions is NO_CONDITIONS and _FROM_PROXY.search(self.block) is None

    def parse(self) -> CIMultiDict[str]:
        """Return all fields. Most requests need none of them, so this is done once, and late."""
        if self._parsed is None:
            self._parsed = CIMultiDict(list_fields(self.block))
        return self._parsed


def is_part_of_head(data: bytes) -> bool:
    """Tell whether bytes may be the beginning of a head that the fast path can answer."""
    if len(data) < len(HEAD):
        return GET.startswith(data) or HEAD.startswith(data)
    return data.startswith((GET, HEAD)) and HEAD_END not in data and len(data) <= HEAD_BYTES_MAX
