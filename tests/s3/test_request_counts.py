"""Requests to a bucket for each way of delivery: docs/scale.md says what a million of them cost."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from tests.support.images import png_of
from tests.support.s3.remote import get, make_public

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote

IMAGE = png_of(20_000)
FILL = {"GET": 2, "PUT": 2}
"""A new image: its record and its block are asked for, object and record are stored."""
FIRST_HIT = {"GET": 2}
"""The first hit on a node with a database of its own: the record, and the object or one byte of it."""


def count_requests(remote: Remote) -> Counter[str]:
    """Return the requests for the image so far, by method; those of health and of new removals come when they may."""
    digest = sha256(IMAGE).hexdigest()
    names = (f"/v1/objects/{digest[:2]}", "/v1/records/", f"/v1/refused/{digest[:2]}")
    return Counter(seen.method for seen in remote.gate.seen if any(name in seen.path for name in names))


@pytest.mark.parametrize("mode", ["serve", "redirect", "presign"])
async def test_requests_of_a_new_image_and_of_its_hits(remote: Remote, origin: FakeOrigin, mode: str) -> None:
    await make_public(remote.server)
    first, other = await remote.node("a", mode=mode), await remote.node("b", mode=mode)
    url = origin.gives("/a.png", IMAGE)
    for node, cost in ((first, FILL), (first, {}), (other, FIRST_HIT), (other, {})):
        before = count_requests(remote)
        response, _ = await get(node, url)
        assert response.status == (200 if mode == "serve" else 302) or cost == FILL
        assert count_requests(remote) - before == cost
