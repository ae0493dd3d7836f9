"""
CachedResponse answers: what was decided once for a request target is not decided again.

A hit is decided by the handlers (`images.py`, `delivery.py`), once. What they decided is kept here under the raw
request target, and later requests for it are answered from one look-up: no parsing, no task, no SQL, one write.

What may change an answer takes it away again:
- an image that is removed or replaced, or arrives in the store: `drop`, by its key;
- bytes that are not at hand any more, because they were removed, altered or not asked for: their handle is empty;
- a signature that ends (`CachedResponse.until`);
- anything else, in this process or another: nothing stays prepared for longer than `FRESHNESS_LIFETIME_S`.

Whatever is not here takes the long way, so to lose an answer is never wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from email.utils import formatdate
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from imgkeep.core.http_headers import Span, etag_matches, range_applies, read_range
from imgkeep.web.fastpath.request_head import PLAIN
from imgkeep.web.image_headers import SERVER_NAME, YEAR_S

if TYPE_CHECKING:
    from asyncio import WriteTransport
    from collections.abc import Iterable, Mapping

    from imgkeep.clock import Clock
    from imgkeep.storage.local.memory_cache import Bytes, CacheEntry
    from imgkeep.web.fastpath.request_head import RequestConditions

FRESHNESS_LIFETIME_S: Final = 600
"""So often the long way is taken all the same: it notes what is in use, and sees what nobody told us of."""
BYTES_MAX: Final = 134_217_728
"""For all prepared answers: some 120,000 of them."""
TARGETS_MAX: Final = 256
"""For one key. Anybody can make up links to a picture: they must not crowd out others, nor make `drop` long."""
STATUS_LINES: Final = {200: b"OK", 206: b"Partial Content", 304: b"Not Modified"}
ENTRY_BYTES: Final = 820
"""What one takes besides its target and its fields: itself, its handle, two places in dictionaries (measured)."""


@dataclass(slots=True)
class CachedResponse:
    """
    The answer to one request target.

    Attributes:
        route: What it counts as.
        key: What it shows: the key of a record or, under a permanent URL, the object's name.
        fields: The header fields that are its own, encoded.
        media_type: The one that a 304 goes without, encoded.
        fresh_until: When it is decided anew, by the timer.
        until: When the permission to see it ends, in epoch seconds; `None`: never.
        max_age_s: For how long a client may keep it; a year is for ever.
        vector: Whether it is an SVG image, which has a policy of its own.
    """

    route: str
    key: str
    etag: str
    fields: bytes
    media_type: bytes
    size: int
    cache_entry: CacheEntry
    fresh_until: float
    until: int | None
    max_age_s: int = YEAR_S
    vector: bool = False


class ResponseCache:
    """
    The table, and who writes what is in it.

    `common` are the header fields that all answers have, `Cache-Control` among them; of SVG images those in
    `vector_common` have another value.
    """

    def __init__(
        self,
        common: Mapping[str, str],
        clock: Clock,
        *,
        vector_common: Mapping[str, str] = MappingProxyType({}),
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._common = {name: value for name, value in common.items() if name != "Cache-Control"}
        self._encoded = encode_fields(self._common.items())
        self._vector_encoded = encode_fields({**self._common, **vector_common}.items())
        self._forever = encode_fields([("Cache-Control", common["Cache-Control"])])
        self._clock = clock
        self._bytes_max = bytes_max
        self._answers: OrderedDict[bytes, CachedResponse] = OrderedDict()
        self._targets: dict[str, list[bytes]] = {}
        """By key: what has to go together."""
        self.bytes = 0
        self._openings: dict[int, bytes] = {}
        self._vector_openings: dict[int, bytes] = {}
        self._signature = b""
        self._dated_until = 0.0

    def __len__(self) -> int:
        return len(self._answers)

    def prepare(self, target: bytes, answer: CachedResponse) -> None:
        """Keep the answer to a request target."""
        self._forget(target)
        together = self._targets.get(answer.key, [])
        if len(together) >= TARGETS_MAX:
            self._forget(together[0])
        self._answers[target] = answer
        self._targets.setdefault(answer.key, []).append(target)
        self.bytes += _weight(target, answer)
        while self.bytes > self._bytes_max:
            self._forget(next(iter(self._answers)))

    def drop(self, key: str) -> None:
        """What is shown under a key has changed."""
        for target in list(self._targets.get(key, ())):
            self._forget(target)

    def specific_fields(self, headers: Mapping[str, str]) -> bytes:
        """Return the fields that not all answers have, encoded."""
        own = [(name, value) for name, value in headers.items() if name not in self._common]
        return encode_fields((name, value) for name, value in own if name != "Cache-Control")

    def find(self, target: bytes, now: float) -> CachedResponse | None:
        """Return the answer to a request target, if there is one that holds at `now`, by the timer."""
        answer = self._answers.get(target)
        if answer is None:
            return None
        if now >= answer.fresh_until:
            self._forget(target)
            return None
        self._answers.move_to_end(target)
        return answer

    def write(
        self, answer: CachedResponse, asked: RequestConditions, transport: WriteTransport, now: float, *, head: bool
    ) -> tuple[int, int] | None:
        """
        Write an answer, head and body in one go; return its status, and how many bytes its body has.

        `None`: nothing was written, and the long way has to be taken.
        """
        whole = answer.cache_entry.read_now()
        caching = self._forever if answer.until is None and answer.max_age_s == YEAR_S else self._caching_for(answer)
        if whole is None or caching is None:
            return None
        if now >= self._dated_until:
            self.sign(now)
        openings = self._vector_openings if answer.vector else self._openings
        if asked is not PLAIN:
            if etag_matches(asked.if_none_match or "", answer.etag):
                transport.write(b"".join((openings[304], caching, answer.fields, b"\r\n")))
                return 304, 0
            if asked.range is not None and not head and range_applies(asked.if_range, answer.etag):
                span = read_range(asked.range, answer.size)
                if span == "unsatisfiable":
                    return None
                if span is not None:
                    return self._write_span(answer, span, whole, transport, openings[206] + caching)
        length = b"Content-Length: %d\r\n\r\n" % answer.size
        opening = b"".join((openings[200], caching, answer.fields, answer.media_type, length))
        if head:
            transport.write(opening)
            return 200, 0
        transport.writelines((opening, whole))
        return 200, answer.size

    def _write_span(
        self,
        answer: CachedResponse,
        span: Span,
        whole: Bytes,
        transport: WriteTransport,
        fields: bytes,
    ) -> tuple[int, int]:
        size = span.end - span.start
        extent = b"Content-Range: bytes %d-%d/%d\r\n" % (span.start, span.end - 1, answer.size)
        length = b"Content-Length: %d\r\n\r\n" % size
        opening = b"".join((fields, answer.fields, answer.media_type, extent, length))
        transport.writelines((opening, memoryview(whole)[span.start : span.end]))
        return 206, size

    def _caching_for(self, answer: CachedResponse) -> bytes | None:
        seconds = answer.max_age_s
        if answer.until is not None:
            seconds = min(seconds, int(answer.until - self._clock().timestamp()))
        if seconds >= YEAR_S:
            return self._forever
        return b"Cache-Control: public, max-age=%d\r\n" % seconds if seconds > 0 else None

    def sign(self, now: float) -> bytes:
        """Return the fields that say who answers, and when. They hold until the second is over."""
        if now >= self._dated_until:
            time = self._clock().timestamp()
            self._dated_until = now + 1 - time % 1
            self._signature = encode_fields([("Date", formatdate(time, usegmt=True)), ("Server", SERVER_NAME)])
            for status, reason in STATUS_LINES.items():
                opening = b"HTTP/1.1 %d %b\r\n%b" % (status, reason, self._signature)
                self._openings[status] = opening + self._encoded
                self._vector_openings[status] = opening + self._vector_encoded
        return self._signature

    def _forget(self, target: bytes) -> None:
        answer = self._answers.pop(target, None)
        if answer is None:
            return
        self.bytes -= _weight(target, answer)
        together = self._targets[answer.key]
        together.remove(target)
        if not together:
            del self._targets[answer.key]


def encode_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """Write header fields as they go over the wire, each with its end of line."""
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode()


def _weight(target: bytes, answer: CachedResponse) -> int:
    return ENTRY_BYTES + len(target) + len(answer.fields)
