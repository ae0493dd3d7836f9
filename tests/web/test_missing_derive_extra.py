"""A server without the extra `derive`: options are an error with a remedy, and originals are served."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

from imgkeep.bootstrap.server import SERVICES
from tests.support.images import make_image

if TYPE_CHECKING:
    import pytest

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

IMAGE = make_image()


async def test_options_name_the_extra_and_originals_are_served(
    imgkeep: Imgkeep, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)  # as if it were not installed
    url = origin.gives("/a.png", IMAGE)
    for _ in range(2):
        answer = await imgkeep.client.get(f"/img?src={quote(url, safe='')}&w=8&format=webp")
        problem = await answer.json()
        assert (answer.status, problem["code"]) == (501, "not_supported")
        assert "pip install 'imgkeep[server,derive]'" in problem["detail"]
    original = await imgkeep.img(url)
    assert (original.status, await original.read()) == (200, IMAGE)
    assert (await imgkeep.client.get("/readyz")).status == 200
    assert imgkeep.client.app is not None
    assert imgkeep.client.app[SERVICES].derived.processes.pids == []
