"""What every test can use: an origin that misbehaves, imgkeep in this process, and an alarm for a blocked loop."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer
from blockbuster import blockbuster_ctx
from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import build, make_runner
from imgkeep.config import Config, load
from imgkeep.web.auth import AUTH
from yarl import URL

from tests.support.origins import FakeOrigin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, web
    from pytest_aiohttp.plugin import AiohttpClient

pytest_plugins = ["tests.support.s3.fixtures", "tests.support.s3.remote"]

PROCESSES = 4
"""Of the whole suite, also on two cores: most tests of stores and programs wait for another process."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background ignores Ctrl-C for them, and so would every program that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run folders in several processes, and single files and tests in this one, where they start sooner."""
    names = [argument.partition("::")[0] for argument in config.args]
    return PROCESSES if any((config.rootpath / name).is_dir() for name in names) else 0


@pytest.fixture(scope="session", autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """
    Make blocking calls of ours on an event loop errors; what tests do to prepare and look is their own affair.

    Once for all tests: to change a hundred functions and back takes longer than most tests do.
    """
    with blockbuster_ctx("imgkeep"):
        yield


@pytest.fixture
async def origin() -> AsyncIterator[FakeOrigin]:
    fake = FakeOrigin()
    await fake.start()
    yield fake
    await fake.stop()


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
            **sections,
        },
        {},
    )


@pytest.fixture
def has_fast_path(request: pytest.FixtureRequest) -> bool:
    """Whether plain requests for images bypass aiohttp (`tests/support/fast_path.py`)."""
    return bool(getattr(request, "param", True))


@pytest.fixture
async def start(
    tmp_path: Path, aiohttp_client: AiohttpClient, *, has_fast_path: bool
) -> AsyncIterator[Callable[..., Awaitable[Imgkeep]]]:
    """Start an imgkeep with sections of configuration, as often as wanted: on one folder, or on that of `folder`."""
    strangers: list[ClientSession] = []

    async def start_one(
        *, platform: Platform | None = None, folder: Path | None = None, **sections: dict[str, Any]
    ) -> Imgkeep:
        place = folder or tmp_path / "data"
        config = configuration(place, **sections)
        server = Server(build(config, platform or Platform(), has_fast_path=has_fast_path))

        async def show_token(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
            if request.url.path.startswith(("/api/", "/readyz")) and "Authorization" not in request.headers:
                request.headers["Authorization"] = f"Bearer {one.token}"
            return await handler(request)

        client: TestClient[web.Request, None] = await aiohttp_client(
            server, auto_decompress=False, middlewares=(show_token,)
        )
        strangers.append(ClientSession(client.make_url("/"), auto_decompress=False))
        one = Imgkeep(cast("TestClient[web.Request, web.Application]", client), strangers[-1], config, place)
        return one

    yield start_one
    for stranger in strangers:
        await stranger.close()


@pytest.fixture
async def imgkeep(start: Callable[..., Awaitable[Imgkeep]]) -> Imgkeep:
    """An imgkeep with settings for tests."""
    return await start()
