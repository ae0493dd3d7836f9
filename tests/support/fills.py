"""Images, links and faults of disks that tests of fills share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.errors import StorageError
from tests.support.images import png_of

if TYPE_CHECKING:
    from tests.support.fakes import World

URL = "https://images.example/a.png?sig=1"


OTHER = "https://images.example/a.png?sig=2"


IMAGE = png_of(100_000)


async def store_image(world: World, url: str = URL, body: bytes = IMAGE) -> None:
    """Have a world store `body`."""
    world.origin.gives(url, body)
    assert (await world.get(url))[0] == "stored"
    await world.image_service.drain()


def forget_memory(world: World) -> None:
    """Have a world look into image index and store again, as after a restart."""
    world.image_service.records._records.clear()


FULL = StorageError("the disk is full")


def at_begin(world: World) -> None:
    world.disk.fault = FULL


def at_the_first_write(world: World) -> None:
    world.disk.bytes_max = 0


def midway(world: World) -> None:
    world.disk.bytes_max = 60_000


def at_the_last_write(world: World) -> None:
    world.disk.bytes_max = len(IMAGE) - 1


def at_put(world: World) -> None:
    world.store.faults["put"] = FULL


DISK_FAULTS = [at_begin, at_the_first_write, midway, at_the_last_write, at_put]
