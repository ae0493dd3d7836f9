"""Flow control: what the kernel holds for a client depends on how fast that reads."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from imgkeep.web.connection import Connection
from imgkeep.web.flow_control import FAST_UNSENT_BYTES_MAX, UNSENT_BYTES_MAX

from tests.support.pictures import picture_of

if TYPE_CHECKING:
    from tests.conftest import Imgkeep
    from tests.support.origins import FakeOrigin


async def test_kernel_holds_little_unless_the_client_is_fast(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", picture_of(8_000_000))
    for _ in range(3):
        response = await imgkeep.img(url)
        await response.read()
    runner = imgkeep.client.server.runner
    assert runner is not None
    assert runner.server is not None
    (connection,) = runner.server.connections
    assert isinstance(connection, Connection)
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")
    flow = connection._flow
    left, _ = flow._backlog
    assert left > UNSENT_BYTES_MAX, "most of the last response waited"
    now = asyncio.get_running_loop().time
    for size, seconds, limit in (
        (left, 60, UNSENT_BYTES_MAX),
        (left, 0, FAST_UNSENT_BYTES_MAX),
        (1000, 60, FAST_UNSENT_BYTES_MAX),  # so few bytes tell nothing
        (left, 60, UNSENT_BYTES_MAX),
    ):
        connection.pause_writing()
        flow._backlog = (size, now() - seconds)
        connection.resume_writing()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == limit
