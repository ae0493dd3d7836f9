"""An imgkeep that runs in the process of the tests, and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from imgkeep.bootstrap.server import make_runner
from imgkeep.config import Config, load
from imgkeep.web.auth import AUTH

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import ClientResponse, ClientSession, web


@dataclass
class Imgkeep:
    """A running imgkeep, a client for it, which has a token for the API, and one without."""

    client: TestClient[web.Request, web.Application]
    stranger: ClientSession
    config: Config
    folder: Path

    @property
    def token(self) -> str:
        """A token that the API takes."""
        assert self.client.app is not None
        return self.config.security.api_tokens[0] if self.config.security.api_tokens else local_token(self.client.app)

    async def img(self, url: str, **how: Any) -> ClientResponse:
        """Ask for `/img?src=` with the URL percent-encoded."""
        method = how.pop("method", "GET")
        # `encoded`: the test says what goes on the wire.
        target = URL(f"/img?src={quote(url, safe='')}", encoded=True)
        return await self.client.request(method, target, **how)

    def files(self, kind: str) -> list[Path]:
        """Return the files under `objects`, `records` or `partial`."""
        folder = self.folder / "partial" if kind == "partial" else self.folder / "v1" / kind
        return sorted(path for path in folder.rglob("*") if path.is_file())


Start = "Callable[..., Awaitable[Imgkeep]]"


def local_token(app: web.Application) -> str:
    token = app[AUTH].local_token
    assert token is not None
    return token


class Server(TestServer):
    """Serves as `imgkeep serve` does, on connections of ours."""

    async def _make_runner(self, **_kwargs: Any) -> web.AppRunner:
        return make_runner(self.app)


def configuration(folder: Path, **sections: dict[str, Any]) -> Config:
    """Return a configuration for tests: loopback origins allowed, on open addresses too, everything under `folder`."""
    return load(
        {
            "store": {"url": f"file:{folder}", "free_bytes_min": 0, **sections.pop("store", {})},
            "database": {"url": f"sqlite:{folder}/imgkeep.db", **sections.pop("database", {})},
            "fetch": {"allow_networks": ["127.0.0.0/8"], "retries_max": 0, **sections.pop("fetch", {})},
            "sources": {"allow": ["*"], **sections.pop("sources", {})},
            "derive": {"facts": False, **sections.pop("derive", {})},  # a process more in each test would be slow
            **sections,
        },
        {},
    )
