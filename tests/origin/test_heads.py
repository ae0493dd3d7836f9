"""What Chromium shows whole is stored, whatever the head in front of it looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.network import look
from tests.origin.heads import BODY, HEADS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Imgkeep
    from tests.origin.heads import Head
    from tests.origins import Exchange, FakeOrigin

    Start = Callable[..., Awaitable[Imgkeep]]


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
async def test_what_chromium_shows_is_stored(imgkeep: Imgkeep, origin: FakeOrigin, head: Head) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(head.answer)
        if head.closes:
            exchange.finish()

    seen = await look(imgkeep, origin.on("/a.png", script))
    if head.shown:
        assert (seen.status, seen.body) == (200, BODY)
        assert len(imgkeep.files("objects")) == 1
    else:
        assert seen.broken or seen.status in {422, 502}
