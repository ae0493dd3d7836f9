"""Records and links for tests of the core, and short names for doubts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from imgkeep.core.confirmation import FINGERPRINT_CHARS, Link
from imgkeep.core.records import Digest, Doubt, Format, Key, PixelSize, Provenance, Record, Validator

UNSIGNED, SIGNATURE, SCHEME, ENDED = Doubt.UNSIGNED, Doubt.SIGNATURE, Doubt.SCHEME, Doubt.ENDED
PLAINTEXT, CONTESTED, SPLIT = Doubt.PLAINTEXT, Doubt.CONTESTED, Doubt.SPLIT
STORED, OTHER, THIRD = (Digest(char * 64) for char in "abc")
MINE, THEIRS = "1" * FINGERPRINT_CHARS, "2" * FINGERPRINT_CHARS

KEY = Key("ab" * 32)
DIGEST = Digest("cd" * 32)
WHEN = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)

RECORD = Record(
    key=KEY,
    identity="https://example.com/a.png?size=2",
    digest=DIGEST,
    format=Format.PNG,
    size=1234,
    pixel_size=PixelSize(640, 480),
    etag='"00ff"',
    stored_at=WHEN,
    validator=Validator('W/"7"', None),
    provenance=Provenance(
        host="example.com", provider="Example", temporary=True, expires_at=datetime(2026, 11, 22, 11, 0, tzinfo=UTC)
    ),
)


def record(*doubts: Doubt, digest: Digest = STORED, by: str = THEIRS) -> Record:
    """Return a record with doubts, stored through the link `by`."""
    return replace(
        RECORD,
        identity="//a.example/p.png",
        digest=digest,
        trust=replace(RECORD.trust, doubts=frozenset(doubts), brought_by=by if doubts else ""),
    )


def link(kind: str = "signed", *, secure: bool = True, shares_https_key: bool = True, by: str = MINE) -> Link:
    """Return what the core knows of a link: `bare`, `signed`, `shaped`, `verified` or `ended`."""
    return Link(
        by,
        signed=kind != "bare",
        enforced=kind in {"verified", "shaped"},
        known=kind == "verified",
        ended=kind == "ended",
        secure=secure,
        shares_https_key=shares_https_key,
        folded=True,
    )
