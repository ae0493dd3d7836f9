"""What every test can use: an origin that misbehaves, imgkeep in this process, and an alarm for a blocked loop."""

from __future__ import annotations

import gc
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest
from aiohttp import ClientSession
from blockbuster import blockbuster_ctx

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import build
from tests.support.loopback import port_of, reserve
from tests.support.origins import FakeOrigin
from tests.support.server import Imgkeep, Server, configuration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
    from pathlib import Path

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, web
    from aiohttp.test_utils import TestClient
    from pytest_aiohttp.plugin import AiohttpClient

pytest_plugins = [
    "tests.support.azure.fixtures",
    "tests.support.gcs.fixtures",
    "tests.support.postgresql",
    "tests.support.s3.fixtures",
    "tests.support.s3.remote",
    "tests.support.cloudinary.fixtures",
]

PROCESSES = 4
"""Of the whole suite, also on two cores: most tests of stores and programs wait for another process."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background ignores Ctrl-C for them, and so would every program that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run folders in several processes, and single files and tests in this one, where they start sooner."""
    names = [argument.partition("::")[0] for argument in config.args]
    return PROCESSES if any((config.rootpath / name).is_dir() for name in names) else 0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """
    Collect the tests without the garbage collector, and exempt them from it.

    Each of some 14,000 tests is many objects that stay until the end: every later full collection would visit them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture
def reserve_port() -> Iterator[Callable[[], int]]:
    """Return a function that returns a free port on loopback, reserved until the end of the test."""
    with ExitStack() as stack:
        yield lambda: port_of(stack.enter_context(reserve()))


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
