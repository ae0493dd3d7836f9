"""Derived pictures: found, or made once for all who ask; their failures are remembered."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.core.derived.negotiation import read_accept
from imgkeep.core.derived.options import read_options
from imgkeep.core.errors import Busy, DeriveFailed, NotSupported, Removed, StorageError
from imgkeep.core.records import Client, Format
from imgkeep.derived import pictures, written_pictures
from imgkeep.derived.failed_pictures import CRASHES_MAX, TTL_S
from imgkeep.derived.messages import Derived, Facts, NotSmaller, Refused
from imgkeep.derived.pictures import StoredOriginal
from imgkeep.images.request_context import INTERNAL, RequestContext
from imgkeep.web.client_presence import ClientPresence
from tests.support.images import make_image, png_of
from tests.support.picture_program import picture_of as fake_picture
from tests.support.pictures import picture_world
from tests.support.stores import put_image, read_all
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgkeep.core.derived.names import PictureName
    from imgkeep.derived.messages import Answer
    from tests.support.pictures import PictureWorld

IMAGE = make_image()
LARGE = png_of(300_000)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[PictureWorld]:
    async with picture_world(tmp_path) as opened:
        yield opened


async def original_in(world: PictureWorld, body: bytes = IMAGE) -> StoredOriginal:
    return StoredOriginal.of(await put_image(world.store, body))


def names_of(world: PictureWorld, original: StoredOriginal, query: str, accept: str = "") -> tuple[PictureName, ...]:
    parameters = [(name, value) for name, _, value in (part.partition("=") for part in query.split("&"))]
    return world.pictures.find_names(original, read_options(parameters), read_accept(accept))


async def picture_of(
    world: PictureWorld,
    original: StoredOriginal,
    query: str,
    accept: str = "",
    request_context: RequestContext = INTERNAL,
) -> tuple[bytes, str, bool] | None:
    """Return the bytes of a picture, its entity tag, and whether it is new."""
    picture = await world.pictures.open(original, names_of(world, original, query, accept), request_context)
    if picture is None:
        return None
    try:
        return await read_all(picture.body), picture.etag, picture.is_new
    finally:
        await picture.body.aclose()


@pytest.mark.parametrize("body", [IMAGE, LARGE], ids=["from memory", "from its file"])
async def test_picture_is_made_once_and_found_afterwards(world: PictureWorld, body: bytes) -> None:
    original = await original_in(world, body)
    made = await picture_of(world, original, "w=40&format=webp")
    assert made is not None
    assert (made[0], made[2]) == (fake_picture("w40", "WEBP"), True)
    assert await picture_of(world, original, "format=WEBP&w=20&dpr=2") == (*made[:2], False)
    [(job, seen)] = world.processes.jobs
    assert seen == body
    assert (job.stem, job.format, job.original_format, job.smaller_than) == ("w40", "WEBP", "PNG", 0)


async def test_requests_for_one_picture_share_one_job(world: PictureWorld) -> None:
    original = await original_in(world)
    world.processes.gate = asyncio.Event()
    asked = [asyncio.create_task(picture_of(world, original, "w=40")) for _ in range(50)]
    await until(lambda: world.processes.jobs)
    world.processes.gate.set()
    answers = await asyncio.gather(*asked)
    assert len({answer[:2] for answer in answers if answer is not None}) == 1
    assert [answer[2] for answer in answers if answer is not None].count(True) == 1
    assert len(world.processes.jobs) == 1


async def test_client_that_leaves_ends_neither_the_job_nor_the_waiting_of_others(world: PictureWorld) -> None:
    original = await original_in(world, LARGE)
    world.processes.gate = asyncio.Event()
    presence = ClientPresence()
    context = RequestContext(wait=presence.wait)
    leaving = asyncio.create_task(picture_of(world, original, "w=40", request_context=context))
    staying = asyncio.create_task(picture_of(world, original, "w=40"))
    await until(lambda: world.processes.jobs)
    presence.leave()
    with pytest.raises(ConnectionResetError):
        await leaving
    world.processes.gate.set()
    answer = await staying
    assert answer is not None
    assert answer[0] == fake_picture("w40", "PNG")


async def test_all_clients_leave_and_the_picture_is_there_for_the_next(world: PictureWorld) -> None:
    original = await original_in(world)
    world.processes.gate = asyncio.Event()
    presence = ClientPresence()
    context = RequestContext(wait=presence.wait)
    leaving = asyncio.create_task(picture_of(world, original, "w=40", request_context=context))
    await until(lambda: world.processes.jobs)
    presence.leave()
    with pytest.raises(ConnectionResetError):
        await leaving
    world.processes.gate.set()
    answer = await picture_of(world, original, "w=40")
    assert answer is not None
    assert len(world.processes.jobs) == 1


async def test_webp_becomes_avif_unless_it_moves(world: PictureWorld) -> None:
    original = replace(await original_in(world), format=Format.WEBP)
    accept = "image/avif,image/webp"
    still = await picture_of(world, original, "w=40&format=auto", accept)
    world.processes.answers["w41.AVIF"] = NotSmaller()
    moving = await picture_of(world, original, "w=41&format=auto", accept)
    assert still is not None
    assert moving is not None
    assert (still[0], moving[0]) == (fake_picture("w40", "AVIF"), fake_picture("w41", "WEBP"))


async def test_negotiated_picture_that_is_not_smaller_gives_way_to_the_format_of_the_original(
    world: PictureWorld,
) -> None:
    original = await original_in(world)
    world.processes.answers["full.AVIF"] = NotSmaller()
    for is_new in (True, False):
        answer = await picture_of(world, original, "format=auto", "image/avif,image/webp")
        assert answer is not None
        assert (answer[0], answer[2]) == (fake_picture("full", "PNG"), is_new)
    assert [(job.format, job.smaller_than) for job, _ in world.processes.jobs] == [
        ("AVIF", len(IMAGE)),
        ("PNG", len(IMAGE)),
    ]


async def test_named_format_is_another_picture_than_a_negotiated_one(world: PictureWorld) -> None:
    original = await original_in(world)
    world.processes.answers["w40.WEBP"] = NotSmaller()
    negotiated = names_of(world, original, "w=40&format=auto", "image/webp")
    named = names_of(world, original, "w=40&format=webp")
    assert [name.file_name for name in negotiated] == ["w40-auto.webp", "w40.png"]
    assert [name.file_name for name in named] == ["w40.webp"]
    assert [name.file_name for name in names_of(world, original, "w=40&format=auto", "*/*")] == ["w40.png"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Refused(reason="unreadable", detail="the image is damaged"), DeriveFailed),
        (Refused(reason="unsupported", detail="not with this libvips"), NotSupported),
        (DeriveFailed("the process ended"), DeriveFailed),
    ],
    ids=["refused", "unsupported", "crashed"],
)
async def test_failure_is_remembered(
    tmp_path: Path, answer: Refused | DeriveFailed, expected: type[DeriveFailed | NotSupported]
) -> None:
    now = [0.0]
    async with picture_world(tmp_path, lambda: now[0]) as world:
        original = await original_in(world)
        world.processes.answers["w40.PNG"] = answer
        for _ in range(3):
            with pytest.raises(expected):
                await picture_of(world, original, "w=40")
        assert len(world.processes.jobs) == 1
        assert await picture_of(world, original, "w=41") is not None, "another picture is another matter"
        now[0] = TTL_S
        del world.processes.answers["w40.PNG"]
        assert await picture_of(world, original, "w=40") is not None


@pytest.mark.parametrize(
    "answer",
    [
        NotSmaller(),
        Derived(size=0, width=1, height=1),
        Derived(size=1_000_000, width=1, height=1),
        Facts(width=1, height=1, frames=1, has_alpha=False, orientation=1, colour="000000", thumbhash=""),
    ],
    ids=["marker", "empty", "too short", "facts"],
)
async def test_answer_that_does_not_fit_its_picture_leaves_nothing(world: PictureWorld, answer: Answer) -> None:
    original = await original_in(world)
    world.processes.answers["w40.WEBP"] = answer
    for _ in range(2):
        with pytest.raises(DeriveFailed, match="does not fit"):
            await picture_of(world, original, "w=40&format=webp")
    assert len(world.processes.jobs) == 1, "a failure is remembered"
    assert not list((world.store.disk.root / "derived").rglob("*.webp"))


async def test_bytes_that_were_written_are_read_by_no_event_loop(
    world: PictureWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40,000 segments of a JPEG, which stay where its own bytes take the place of a picture, take 0.2 s."""
    threads: list[threading.Thread] = []
    check = written_pictures.is_as_stated

    def note(*args: Any) -> bool:
        threads.append(threading.current_thread())
        return check(*args)

    monkeypatch.setattr(pictures, "is_as_stated", note)
    assert await picture_of(world, await original_in(world), "w=40") is not None
    assert threads
    assert threading.main_thread() not in threads


async def test_image_that_ends_processes_is_given_to_no_more_of_them(world: PictureWorld) -> None:
    original = await original_in(world)
    for width in range(1, 10):
        world.processes.answers[f"w{width}.PNG"] = DeriveFailed("the process ended")
        with pytest.raises(DeriveFailed):
            await picture_of(world, original, f"w={width}")
    assert len(world.processes.jobs) == CRASHES_MAX


@pytest.mark.parametrize("gets_place", [False, True])
async def test_request_waits_a_moment_for_a_place_before_it_is_refused(
    world: PictureWorld, *, gets_place: bool
) -> None:
    original = await original_in(world)
    world.processes.has_places, world.processes.gets_place = False, gets_place
    if gets_place:
        assert await picture_of(world, original, "w=40") is not None
    else:
        with pytest.raises(Busy):
            await picture_of(world, original, "w=40")
        assert world.processes.jobs == []


async def test_refusal_of_one_client_is_none_of_another(world: PictureWorld) -> None:
    original = await original_in(world)
    world.processes.gate = asyncio.Event()
    world.processes.answers["w40.PNG"] = Busy("the queue is full of the jobs of this client")
    leader = asyncio.create_task(picture_of(world, original, "w=40"))
    await until(lambda: world.processes.jobs)
    follower = asyncio.create_task(picture_of(world, original, "w=40"))
    await until(lambda: next(iter(world.pictures.running)).followers == 2)
    world.processes.gate.set()
    with pytest.raises(Busy):
        await leader
    del world.processes.answers["w40.PNG"]
    assert await follower is not None


async def test_full_queue_refuses_no_picture_that_is_there(world: PictureWorld) -> None:
    original = await original_in(world)
    assert await picture_of(world, original, "w=40") is not None
    world.processes.has_places = False
    assert await picture_of(world, original, "w=40") is not None


async def test_busy_processes_are_not_remembered(world: PictureWorld) -> None:
    original = await original_in(world)
    world.processes.answers["w40.PNG"] = Busy("the queue is full")
    with pytest.raises(Busy):
        await picture_of(world, original, "w=40")
    del world.processes.answers["w40.PNG"]
    assert await picture_of(world, original, "w=40") is not None


async def test_client_that_asks_first_is_the_one_that_the_job_counts_against(world: PictureWorld) -> None:
    original = await original_in(world)
    client = Client(("203.0.113.7",))
    await picture_of(world, original, "w=40", request_context=replace(INTERNAL, client=client))
    assert world.processes.clients == [client]


async def test_lost_original_is_told_apart_from_a_fault(world: PictureWorld) -> None:
    original = await original_in(world)
    await world.store.delete_object(original.digest)
    assert await picture_of(world, original, "w=40") is None
    assert world.processes.jobs == []


async def test_removed_original_has_no_picture(world: PictureWorld) -> None:
    original = await original_in(world)
    assert await picture_of(world, original, "w=40") is not None
    world.blocked.add(original.digest)
    with pytest.raises(Removed):
        await picture_of(world, original, "w=40")


async def test_original_that_is_removed_while_its_picture_is_made_has_none(world: PictureWorld) -> None:
    original = await original_in(world)
    world.processes.gate = asyncio.Event()
    asked = asyncio.create_task(picture_of(world, original, "w=40"))
    await until(lambda: world.processes.jobs)
    world.blocked.add(original.digest)
    world.processes.gate.set()
    with pytest.raises(Removed):
        await asked
    assert not list((world.store.disk.root / "derived").rglob("*.png"))


async def test_shutdown_ends_a_request_that_waits_for_a_picture(world: PictureWorld) -> None:
    original = await original_in(world)
    world.processes.gate = asyncio.Event()
    asked = asyncio.create_task(picture_of(world, original, "w=40"))
    await until(lambda: world.processes.jobs)
    await world.pictures.aclose()
    with pytest.raises(StorageError, match="shut down"):
        await asked


async def test_svg_is_its_own_picture_unless_a_format_is_named(world: PictureWorld) -> None:
    original = replace(await original_in(world), format=Format.SVG)
    assert names_of(world, original, "w=40&format=auto", "image/avif") == ()
    with pytest.raises(NotSupported, match=r"derive\.svg"):
        names_of(world, original, "w=40&format=png")


def test_original_of_another_name_is_none() -> None:
    assert StoredOriginal.named("index.html") is None
    assert StoredOriginal.named(f"{'a' * 64}.png") == StoredOriginal(f"{'a' * 64}.png", "a" * 64, Format.PNG)  # type: ignore[arg-type]
