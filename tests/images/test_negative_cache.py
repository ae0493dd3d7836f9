"""Failed fetches, and for how long they are remembered."""

from __future__ import annotations

import gc
import weakref

import pytest

from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    LoopDetected,
    NotAnImage,
    OriginError,
    OriginRefused,
    OriginTimeout,
    SourceExpired,
    SourceForbidden,
    SourceNotFound,
    StorageError,
    TooLarge,
)
from imgkeep.core.source_url import read_source
from imgkeep.images.negative_cache import NegativeCache, failure_ttl_s
from tests.support.fakes import FakeResponse, Timer, World, read_all
from tests.support.fills import (
    IMAGE,
    OTHER,
    URL,
)

CAUSES = [
    pytest.param(SourceExpired("x", origin_status=403), 300, id="expired"),
    pytest.param(SourceNotFound("x", origin_status=404), 120, id="not found"),
    pytest.param(OriginRefused("x", origin_status=403), 60, id="refused"),
    pytest.param(NotAnImage("x"), 60, id="not an image"),
    pytest.param(TooLarge("x"), 60, id="too large"),
    pytest.param(SourceForbidden("x"), 30, id="forbidden"),
    pytest.param(OriginTimeout("x"), 5, id="timeout"),
    pytest.param(OriginError("x", origin_status=500), 5, id="500"),
    pytest.param(OriginError("x", origin_status=429, retry_after_s=17), 17, id="429"),
    pytest.param(OriginError("x", origin_status=503, retry_after_s=3000), 5, id="503"),
    pytest.param(OriginError("x"), 0, id="connection"),
    pytest.param(Busy("x"), 0, id="busy"),
    pytest.param(LoopDetected("x"), 0, id="loop"),
    pytest.param(StorageError("x"), 0, id="storage"),
]


@pytest.mark.parametrize(("error", "seconds"), CAUSES)
async def test_failure_is_remembered_by_cause_for_its_time(error: ImgkeepError, seconds: int) -> None:
    world = World()
    world.origin.gives(URL, error, IMAGE)
    with pytest.raises(type(error)) as first:
        await world.ask(URL)
    assert str(first.value) == str(error)
    if seconds:
        world.timer.seconds += seconds - 1
        with pytest.raises(type(error)) as again:
            await world.ask(URL)
        assert vars(again.value) == vars(error)
        assert again.value.code == error.code
        assert len(world.origin.asked) == 1
        world.timer.seconds += 1
    assert await world.get(URL) == ("stored", IMAGE)


async def test_failure_is_remembered_for_its_link_alone() -> None:
    world = World()
    world.origin.gives(OTHER, IMAGE)
    with pytest.raises(SourceNotFound):
        await world.ask(URL)
    assert await world.get(OTHER) == ("stored", IMAGE)
    # And what is stored wins over what is remembered.
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.origin.asked == [URL, OTHER]


async def test_remembered_failure_keeps_no_request_alive() -> None:
    class Witness:
        pass

    def fail(failures: NegativeCache) -> weakref.ref[Witness]:
        witness = Witness()
        try:
            raise SourceNotFound("gone", origin_status=404)  # noqa: TRY301 - with this frame in its traceback
        except SourceNotFound as error:
            failures.add(read_source(URL), error)
        return weakref.ref(witness)

    failures = NegativeCache(Timer())
    witness = fail(failures)
    gc.collect()
    assert witness() is None
    found = failures.find(read_source(URL))
    assert isinstance(found, SourceNotFound)
    assert found.__traceback__ is None
    assert found is not failures.find(read_source(URL))


def test_every_ttl_is_short() -> None:
    assert all(0 <= failure_ttl_s(case.values[0]) <= 3600 for case in CAUSES)  # type: ignore[arg-type]  # a table


async def test_cut_body_is_neither_remembered_nor_stored() -> None:
    world = World()
    world.origin.gives(URL, lambda: FakeResponse(len(IMAGE)).push(IMAGE[:50_000]).end(OriginError("broke off")), IMAGE)
    delivery = await world.ask(URL)
    with pytest.raises(OriginError):
        await read_all(delivery)
    await world.image_service.drain()
    assert not world.store.calls["put"]
    assert world.disk.drafts[0].closed == 1
    assert [type(error) for error in world.observer.errors] == [OriginError]
    assert await world.get(URL) == ("stored", IMAGE)
