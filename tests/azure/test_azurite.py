"""The server of the tests for Azure behaves as these expect."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.azure.azurite import Azurite


async def test_blob_is_listed_and_read_until_deleted(azurite: Azurite) -> None:
    assert await azurite.objects() == {}
    for name in ("v1/b", "v1/a", "v2/c"):
        await azurite.put(name, name.encode())
    assert await azurite.objects("v1/") == {"v1/a": b"v1/a", "v1/b": b"v1/b"}
    assert await azurite.get("v2/c") == b"v2/c"
    await azurite.delete("v2/c")
    assert (await azurite.get("v2/c"), await azurite.head("v2/c")) == (None, None)
    assert set(await azurite.objects()) == {"v1/a", "v1/b"}


async def test_containers_share_nothing(azurite: Azurite) -> None:
    await azurite.put("a", b"body")
    assert await azurite.with_container().objects() == {}


async def test_azurite_checks_signatures(azurite: Azurite) -> None:
    with pytest.raises(HttpResponseError) as refused:
        await replace(azurite, key="d3Jvbmc=").put("a", b"body")
    assert refused.value.status_code == 403


async def test_stopped_azurite_starts_again_on_its_port_without_its_blobs(azurite: Azurite) -> None:
    azurite.stop()
    azurite.start()
    assert await azurite.with_container().objects() == {}
