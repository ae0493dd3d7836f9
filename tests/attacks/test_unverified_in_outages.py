"""Links that bring different bytes during an outage of the bucket, and what they show after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.s3.remote import replicated
from tests.support.signed_links import (
    ENFORCED,
    FOREVER,
    IMAGE,
    PLACEHOLDER,
    UNCERTAIN,
    SignedOrigin,
    good,
    invented,
    show,
    strict,
)

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote

SOURCES: dict[str, Any] = {"providers": [UNCERTAIN, ENFORCED]}


@pytest.mark.parametrize("query", [good(), strict()], ids=["unchecked", "verified"])
async def test_link_shows_same_image_during_and_after_outage(remote: Remote, origin: FakeOrigin, query: str) -> None:
    """A stranger's link was first, on another node, which this node could not know."""
    signed = SignedOrigin(origin)
    first, node = await remote.node(sources=SOURCES), await remote.node("b", sources=SOURCES)
    await show(first, signed.url(invented()))
    await remote.gate.refuse()
    assert (await show(node, signed.url(query))).body == IMAGE
    await remote.gate.open()
    await replicated(node)

    origin.gives(signed.path, b"gone", status="404 Not Found")
    for each in (node, await remote.node("c", sources=SOURCES)):
        shown = await show(each, signed.url(query))
        assert (shown.body, shown.outcome) == (IMAGE, "hit")
        assert (shown.caching == FOREVER) is (query == strict())
        assert (await show(each, signed.url(invented()))).body == PLACEHOLDER
