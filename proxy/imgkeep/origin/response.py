"""
A successful answer of an origin, and its body within the limits of `[fetch]`.

aiohttp reports a body without a declared end as complete when its connection closes; `framed` tells the two apart.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp

from imgkeep.core.errors import OriginError, OriginTimeout, TooLarge
from imgkeep.core.range_header import is_whole_range
from imgkeep.core.records import Validator
from imgkeep.origin.bounded_connection import FramingError
from imgkeep.origin.transfer_rate import TransferRate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.config import Fetch
    from imgkeep.origin.content_encoding import Decoder
    from imgkeep.origin.http1 import Http1Response

VALIDATOR_CHARS_MAX: Final = 256
"""Maximum length of a validator that is sent again; real ones have a tenth of it."""
BEGINNING_BYTES: Final = 4096
"""Maximum size of `OriginResponse.beginning`: enough to tell a page, and for what it says at its beginning."""


class OriginResponse:
    """
    A successful answer whose body has not been read.

    Attributes:
        size: Size of the body where the framing declares it (RFC 9112, 6.2).
        validator: The validator with which the origin tells whether the image has changed.
        plaintext: Whether any hop on the way to it, redirects included, was not encrypted.
        media_type: The origin's name for its type, in lower case and without parameters; empty: the origin gives none.
        is_part: Whether its status calls it a part, though the request was for the whole; it may be the whole anyway.
        beginning: The first bytes of the body, once some have come: a few kilobytes at most.
        window_slots: How many decoders with a large window its body needs.
    """

    def __init__(self, response: Http1Response, settings: Fetch, decoder: Decoder | None, *, plaintext: bool) -> None:
        self.plaintext = plaintext
        self._response = response
        self._settings = settings
        self._body_bytes_max = settings.body_bytes_max
        self._decoder = decoder
        self.size = response.content_length if decoder is None else None
        self.is_part = response.status == 206 and not is_whole_range(response.headers.get("Content-Range", ""))
        self.window_slots = 0 if decoder is None else decoder.window_slots
        self.media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.beginning = b""
        self._received = 0
        etag, modified = (_printable(response.headers.get(name)) for name in ("ETag", "Last-Modified"))
        self.validator = Validator(etag, modified) if etag or modified else None

    @property
    def is_coding_cut(self) -> bool:
        """Whether the end of a coding was not seen."""
        return self._decoder is not None and self._decoder.applied and not self._decoder.proved

    @property
    def framed(self) -> bool:
        """Whether framing or coding proved, at the end of `chunks`, that nothing is missing."""
        if self.is_part:
            return False
        if self._decoder is not None and self._decoder.applied:
            return self._decoder.proved
        # aiohttp raises when less comes than the framing says, but a connection that simply closes says nothing, and
        # so it is when anything but `chunked` comes last (RFC 9112, 6.3).
        last_coding = ",".join(self._response.headers.getall("Transfer-Encoding", [])).rpartition(",")[2]
        return self._response.content_length is not None or last_coding.strip().lower() == "chunked"

    @property
    def at_hand(self) -> int:
        """How many bytes of the body have come that `chunks` has not yielded, as far as that can be told."""
        # Decoding the bytes that have arrived has no time limit.
        return 0 if self._decoder is not None else self._response.content.total_bytes - self._received

    async def chunks(self) -> AsyncIterator[bytes]:
        """
        Yield the body as it comes.

        Raises:
            OriginError: It broke off, came too slowly, or grew beyond `fetch.body_bytes_max`.
        """
        # Both sides of a coding have a limit: a bomb comes out of little, and endless empty blocks give nothing.
        body = self._receive()
        async for chunk in body if self._decoder is None else self._decoder.decode(body):
            if self._received == 0:
                self.beginning = chunk[:BEGINNING_BYTES]
            self._received += len(chunk)
            if self._received > self._body_bytes_max:
                raise TooLarge("the image is larger than fetch.body_bytes_max")
            yield chunk
        if self._received == 0:
            raise OriginError("the origin sent an empty answer", origin_status=self._response.status)

    async def _receive(self) -> AsyncIterator[bytes]:
        received = 0
        rate = TransferRate(self._settings.bytes_per_s_min, self._settings.rate_grace_s)
        length, read, now = (
            self._response.content_length,
            self._response.content.readany,
            asyncio.get_running_loop().time,
        )
        try:
            while True:
                began = now()
                chunk = await read()
                if not chunk:
                    return
                received += len(chunk)
                if self._decoder is not None and received > self._body_bytes_max:
                    raise TooLarge("the image is larger than fetch.body_bytes_max")
                # The wait for the origin counts, and never the time that disk and readers take.
                if not rate.is_enough_after(len(chunk), now() - began) and received != length:
                    raise OriginTimeout("the origin sends more slowly than fetch.bytes_per_s_min")
                yield chunk
        except TimeoutError:
            raise OriginTimeout("the origin paused for longer than fetch.read_timeout_s") from None
        except FramingError as error:
            raise OriginError(str(error)) from None
        except (aiohttp.ClientError, OSError, RuntimeError):
            # RuntimeError: aiohttp's stream raises it if the framing became nonsense while no task was reading.
            raise OriginError("the origin's answer broke off") from None


def _printable(value: str | None) -> str | None:
    """Return a validator that can be stored and sent again; an origin may write anything."""
    sane = value is not None and len(value) <= VALIDATOR_CHARS_MAX and value.isascii() and value.isprintable()
    return value if sane else None
