"""What the local store has at hand, while its files are cut and the same object is asked for under several names."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from proxy.core.stored import object_path
from proxy.storage.local import LocalStore
from tests.images import picture_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.ports import AtHand

SMALL = picture_of(20_000)
LARGE = picture_of(3_000_000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    opened = LocalStore(tmp_path, hot_bytes_max=10_000_000)
    await opened.open()
    yield opened
    await opened.aclose()


def laid(store: LocalStore, body: bytes) -> str:
    """Put an object where the store finds it; return its name."""
    name = f"{sha256(body).hexdigest()}.png"
    path = store.root / object_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return name


async def at_hand(store: LocalStore, name: str) -> AtHand:
    body = await store.fetch(name, None)
    assert body is not None
    await body.aclose()
    assert body.at_hand is not None
    return body.at_hand


@pytest.mark.parametrize("size", [2_999_990, 1_000_000, 0], ids=["within the last page", "by pages", "to nothing"])
async def test_a_mapped_file_that_was_cut_short_is_not_at_hand_any_more(store: LocalStore, size: int) -> None:
    name = laid(store, LARGE)
    handle = await at_hand(store, name)
    assert handle.whole() is not None
    os.truncate(store.root / object_path(name), size)
    assert handle.whole() is None
    assert store.shelf.mapped_bytes == 0
