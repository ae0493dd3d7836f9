"""
The result of a probe of a signature: two requests with invalid signatures, and one with the genuine link afterwards.

Rules:
- An origin that answers both invalid signatures alike, and unlike the genuine one, checks signatures.
- A failure that may pass proves nothing, and neither does an origin that refuses the genuine link, too.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgkeep.core.records import Digest


class ProbeResult(Enum):
    """The result of requests with invalid signatures."""

    DIFFERENCE = "the signature makes a difference"
    PLACEHOLDER = "an invalid signature brings the stored bytes"
    NO_DIFFERENCE = "an invalid signature brings the bytes of the link"
    NOTHING = "nothing"


class ProbeResponse(Enum):
    """An origin's response to a request of a probe, where it sent no image."""

    REFUSED = "refused"
    UNKNOWN = "unknown"


def judge_probe(
    stored: Digest,
    brought: Digest,
    invalid: tuple[Digest | ProbeResponse, Digest | ProbeResponse],
    control: Digest | ProbeResponse,
) -> ProbeResult:
    """
    Evaluate a probe.

    Args:
        stored: Digest of the stored bytes.
        brought: Digest of the bytes that the link brought; the same or another one.
        invalid: Responses to two different invalid signatures.
        control: Response to the genuine link afterwards: an origin that refuses everything for now proves nothing.
    """
    first, second = invalid
    if ProbeResponse.UNKNOWN in invalid:
        return ProbeResult.NOTHING
    if brought in invalid:
        return ProbeResult.NO_DIFFERENCE
    if control != brought:
        return ProbeResult.NOTHING
    if first == second == stored:
        return ProbeResult.PLACEHOLDER
    # A placeholder that differs each time says nothing about equal bytes, but does about other bytes.
    return ProbeResult.DIFFERENCE if first == second or stored != brought else ProbeResult.NOTHING
