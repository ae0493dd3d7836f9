"""What aiohttp's parser of requests needs of a connection."""

from __future__ import annotations

import asyncio


class ParserPeer(asyncio.Protocol):
    """As much of a connection as the parser needs."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
