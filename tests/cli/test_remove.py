"""`remove`, `restore` and `refetch`, in the store itself and through a running server."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from io import StringIO
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.server import SERVICES
from imgkeep.cli import remove
from imgkeep.cli.client import Client
from imgkeep.cli.errors import ServerError
from imgkeep.core.source_url import read_source
from tests.support.api_calls import save
from tests.support.images import make_image

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

TOKEN = "token-of-the-command-line"
NOWHERE = "0" * 64
WAYS = pytest.mark.parametrize("way", ["store", "server"])


def digest(seed: int) -> str:
    return sha256(make_image(seed=seed)).hexdigest()


def key_of(imgkeep: Imgkeep, url: str) -> str:
    return imgkeep.client.app[SERVICES].image_service.identify(read_source(url)).key


def target_of(imgkeep: Imgkeep, way: str) -> remove.Target:
    if way == "server":
        return remove.ServerTarget(Client(f"{imgkeep.client.make_url('/')}", imgkeep.token))
    services = imgkeep.client.app[SERVICES]
    return remove.StoreTarget(
        services.remover,
        services.refetcher,
        partial(services.image_service.describe, base=""),
        services.image_service.identify,
    )


async def tell(
    work: Callable[[remove.Kind, str], Awaitable[remove.Done]], *names: str, by_digest: bool = False
) -> list[str]:
    """Change each name; return the status, the output and the errors."""
    out, err = StringIO(), StringIO()
    status = await remove.change_each(names, work, by_digest=by_digest, out=out, err=err)
    assert status == bool(err.getvalue())
    return (out.getvalue() + err.getvalue()).splitlines()


async def store_images(imgkeep: Imgkeep, origin: FakeOrigin, number: int) -> list[str]:
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(number)]
    for url in urls:
        assert (await save(imgkeep, {"url": url}))[0] == 201
    return urls


@WAYS
async def test_restore_undoes_a_removal(imgkeep: Imgkeep, origin: FakeOrigin, way: str) -> None:
    urls, target = await store_images(imgkeep, origin, 3), target_of(imgkeep, way)
    plainly = partial(target.remove, force=False)
    assert await tell(plainly, key_of(imgkeep, urls[0]), urls[1]) == ["removed"] * 2
    assert await tell(plainly, digest(2), by_digest=True) == ["removed"]
    assert [(await imgkeep.img(url)).status for url in urls] == [410] * 3
    restoring = partial(remove.restore_name, target)
    reply = await tell(restoring, key_of(imgkeep, urls[0]), urls[1], digest(2))
    assert reply == ["restored; the bytes were deleted, and have to be fetched or uploaded again"] * 3
    assert [(await imgkeep.img(url)).status for url in urls] == [200] * 3
    reply = await tell(restoring, key_of(imgkeep, urls[0]), urls[1], digest(2), "nonsense")
    assert [line.startswith("imgkeep: ") for line in reply] == [True] * 4
    assert not any(urls[1] in line for line in reply)


@WAYS
async def test_unknown_image_is_removed_by_force_only(imgkeep: Imgkeep, origin: FakeOrigin, way: str) -> None:
    url, target = origin.gives("/a.png", make_image()), target_of(imgkeep, way)
    for force in (False, True):
        work: Callable[[remove.Kind, str], Awaitable[remove.Done]] = partial(target.remove, force=force)
        reply = [*await tell(work, url, NOWHERE), *await tell(work, digest(1), by_digest=True)]
        assert [line == "removed" for line in reply] == [force] * 3
        assert not any(url in line for line in reply)
    assert (await imgkeep.img(url)).status == 410
    assert await tell(partial(target.remove, force=True), "x", by_digest=True) == [
        "imgkeep: a digest has 64 lower-case hexadecimal digits"
    ]
    assert origin.seen == []


@WAYS
async def test_refetch_replaces_a_changed_image(imgkeep: Imgkeep, origin: FakeOrigin, way: str) -> None:
    urls, target = await store_images(imgkeep, origin, 2), target_of(imgkeep, way)
    origin.gives("/0.png", make_image(seed=9))
    by_itself = partial(target.refetch, url=None)
    replaced, unchanged = await tell(by_itself, *urls)
    assert (replaced.split()[0], unchanged.split()[0]) == ("replaced", "unchanged")
    assert replaced.endswith(f"/images/{digest(9)}.png")
    key = key_of(imgkeep, urls[0])
    assert (await tell(partial(target.refetch, url=urls[0]), key))[0].startswith("unchanged ")
    for work, name, says in (
        (partial(target.refetch, url=urls[1]), key, "another image"),
        (by_itself, NOWHERE, "no image is stored"),
        (by_itself, "nonsense", "imgkeep: "),
    ):
        (reply,) = await tell(work, name)
        assert reply.startswith("imgkeep: ")
        assert says in reply
    assert await (await imgkeep.img(urls[0])).read() == make_image(seed=9)


async def test_server_demands_its_token(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(security={"api_tokens": [TOKEN]})
    url = origin.gives("/a.png", make_image())
    await (await imgkeep.img(url)).read()
    for token in (None, "wrong"):
        server = remove.ServerTarget(Client(f"{imgkeep.client.make_url('/')}", token))
        (reply,) = await tell(partial(server.remove, force=True), url)
        assert "unauthorized" in reply
    assert await tell(partial(target_of(imgkeep, "server").remove, force=False), url) == ["removed"]


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b""])
async def test_answer_of_another_program_is_an_error(origin: FakeOrigin, answer: bytes) -> None:
    origin.gives(f"/api/images/{NOWHERE}", answer)
    server = remove.ServerTarget(Client(origin.url("/"), None))
    with pytest.raises(ServerError, match="--server"):
        await tell(partial(server.remove, force=False), NOWHERE)


async def test_client_follows_no_redirect(origin: FakeOrigin) -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.answer(b"", status="307 Temporary Redirect", headers={"Location": origin.url("/elsewhere")})

    origin.on(f"/api/images/{NOWHERE}", redirect)
    origin.gives("/elsewhere", b'{"success": true}')
    server = remove.ServerTarget(Client(origin.url("/"), TOKEN))
    with pytest.raises(ServerError):
        await server.remove("key", NOWHERE, force=False)
    assert origin.asked("/elsewhere") == 0
    assert TOKEN not in repr(server)
