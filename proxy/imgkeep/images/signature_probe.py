"""
Signature probes: requests with altered signatures, which show whether an origin checks the signature of a link.

Rules:
- A probe is up to four requests, one after the other, and reads no more of an answer than the images are large.
- An answer over plain http proves nothing, unless the compared image came that way too.
- Two links with different random signatures are asked for, and then the genuine link again, as a control.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from imgkeep.core.confirmation import https_source
from imgkeep.core.dead_link import refuses
from imgkeep.core.errors import ImgkeepError, OriginError
from imgkeep.core.formats import sniff
from imgkeep.core.probe_result import ProbeResponse, judge_probe
from imgkeep.core.records import Digest, Doubt
from imgkeep.images.singleflight import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgkeep.core.probe_result import ProbeResult
    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.interfaces import LeaseRequest

SNIFFED_BYTES: Final = 4096
"""Enough of an answer to tell a page from an image."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SecondFill:
    """
    A fill by a link that may not be entitled to the stored image of its key.

    Attributes:
        source: The link.
        info: The identity of its image.
        known: The record that the link found.
        new: The record of the image that the link brought.
    """

    source: Source
    info: SourceInfo
    known: Record
    new: Record


class SignatureProbe(Call):
    """
    A probe: sends requests with altered signatures to an origin, and reports the proof.

    Args:
        second_fill: The link whose signature is in question, and both images.
        dependencies: The origin.
        alter: Returns a link with another, random signature; `None`: it carries none.
        conclude: Is given the proof; `None`: the signature cannot be altered.
        request: The request for the lease of the probe to the other nodes; `None`: there are none.
        release: Is called once at the end.
    """

    def __init__(  # noqa: PLR0913 - the lease by keyword
        self,
        second_fill: SecondFill,
        dependencies: FillDependencies,
        alter: Callable[[Source], Source | None],
        conclude: Callable[[SecondFill, ProbeResult | None], Awaitable[None]],
        *,
        request: LeaseRequest | None,
        release: Callable[[], None],
    ) -> None:
        self._second_fill = second_fill
        self._dependencies = dependencies
        self._alter = alter
        self._conclude = conclude
        self._request = request
        self._release = release

    async def run(self) -> None:
        if self._request is not None and await self._request.answer() is not None:
            return  # another node probes
        await self._conclude(self._second_fill, await self._probe())

    def fail(self, error: BaseException) -> None:
        if isinstance(error, Exception) and not isinstance(error, ImgkeepError):
            log.error("signature probe failed unexpectedly", exc_info=error)

    async def aclose(self) -> None:
        self._release()

    async def _probe(self) -> ProbeResult | None:
        subject = self._second_fill
        plaintext = Doubt.PLAINTEXT in subject.new.doubts
        genuine = subject.source if plaintext else https_source(subject.source, subject.info) or subject.source
        links = self._alter(genuine), self._alter(genuine)
        if links[0] is None or links[1] is None:
            return None
        stored, brought = subject.known.digest, subject.new.digest
        size_max = max(subject.known.size, subject.new.size)
        first = await self._fetch_digest(links[0], size_max)
        second = first
        if first not in {ProbeResponse.REFUSED, ProbeResponse.UNKNOWN, brought}:
            second = await self._fetch_digest(links[1], size_max)
        control: Digest | ProbeResponse = ProbeResponse.UNKNOWN
        if ProbeResponse.UNKNOWN not in {first, second} and brought not in {first, second}:
            control = await self._fetch_digest(genuine, size_max)
        return judge_probe(stored, brought, (first, second), control)

    async def _fetch_digest(self, source: Source, size_max: int) -> Digest | ProbeResponse:
        """Return the digest of the image that a link brings, of its first bytes where it is larger than `size_max`."""
        try:
            async with self._dependencies.origin.fetch(source, fail_fast=True) as response:
                if response.plaintext and Doubt.PLAINTEXT not in self._second_fill.new.doubts:
                    return ProbeResponse.UNKNOWN  # an attacker on the network path can have answered
                return await _hash_image(response.chunks(), size_max)
        except ImgkeepError as error:
            is_refused = isinstance(error, OriginError) and refuses(error.origin_status)
            return ProbeResponse.REFUSED if is_refused else ProbeResponse.UNKNOWN


async def _hash_image(chunks: AsyncIterator[bytes], size_max: int) -> Digest | ProbeResponse:
    digest, size, head = sha256(), 0, bytearray()
    async for chunk in chunks:
        head += chunk[: max(0, SNIFFED_BYTES - len(head))]
        piece = chunk[: size_max + 1 - size]
        digest.update(piece)
        size += len(piece)
        if size > size_max:
            break
    if sniff(head, ended=size == len(head)) is None:
        return ProbeResponse.REFUSED
    return Digest(digest.hexdigest() if size <= size_max else f">{digest.hexdigest()}")
