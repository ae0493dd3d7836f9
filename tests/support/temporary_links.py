"""Links that expire, as AWS signs them, and what they identify."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgkeep.core.identity import identify

if TYPE_CHECKING:
    from imgkeep.core.records import Source, SourceInfo

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
"""The time of the fakes' clock."""
SIGNATURE = "08ceefc08f3fae29dfff8c7a79a964e1a5e76eda9ad06fc61fc48996415484e4"
PLAIN = "https://images.example/a.png"


def signed(date: str, *, path: str = "a.png", key: str = "AKIA") -> str:
    """Return a link by AWS Signature Version 4 that holds for an hour from `date` on."""
    credential = f"{key}%2F{date[:8]}%2Fus-west-2%2Fs3%2Faws4_request"
    return (
        f"https://bucket.s3.us-west-2.amazonaws.com/{path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}"
        f"&X-Amz-Date={date}&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature={SIGNATURE}"
    )


EXPIRED = signed("20261121T090000Z")
FRESH = signed("20261122T093000Z")
FRESHER = signed("20261122T095900Z", key="AKIB")


def by_provider_rules(source: Source) -> SourceInfo:
    """Identify a link as the provider rules do, with signatures that its host checks."""
    return replace(identify(source, NOW), enforced=True, enforced_by_host=True, permission="Signature" in source.target)


def exactly(source: Source) -> SourceInfo:
    """Identify a link by all of its URL."""
    return identify(source, NOW, exact=True)
