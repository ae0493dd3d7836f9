"""`derive`: writes a derived picture into a file. `warm`: makes pictures before a client asks for them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.bootstrap.preflight import require_owner, require_store
from imgkeep.cli.printing import print_json, printable, readable_bytes
from imgkeep.cli.progress import progress
from imgkeep.config import ConfigError
from imgkeep.core.derived.negotiation import read_accept
from imgkeep.core.derived.options import split_options
from imgkeep.core.errors import ImgkeepError, InvalidOption, NotSupported
from imgkeep.core.records import Key, Wanted
from imgkeep.core.source_url import read_source
from imgkeep.derived.cores import count_cores
from imgkeep.derived.original_file import PIECE_BYTES
from imgkeep.derived.pictures import StoredOriginal
from imgkeep.images.request_context import INTERNAL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from imgkeep.bootstrap.services import Services
    from imgkeep.cli.invocation import Invocation
    from imgkeep.cli.progress import Bar
    from imgkeep.core.derived.negotiation import Accepted
    from imgkeep.core.derived.options import PictureOptions
    from imgkeep.core.records import Record
    from imgkeep.derived.pictures import Picture
    from imgkeep.storage.interfaces import Body

PAGE: Final = 500
"""Maximum number of images in one statement."""
_KEY: Final = re.compile("[0-9a-f]{64}")


async def run(invocation: Invocation) -> int:
    from imgkeep.bootstrap.command_services import open_command_services  # noqa: PLC0415 - after the arguments' checks

    arguments, config = invocation.arguments, invocation.config
    options = read_picture_options(invocation)
    accepted = read_accept(arguments.accept)
    await asyncio.to_thread(require_store, config)
    await asyncio.to_thread(partial(require_owner, config, server_helps=True))
    async with open_command_services(config) as services:
        maker = PictureMaker(services, options, accepted)
        try:
            await services.derived.processes.check()
        except NotSupported as error:
            raise ConfigError(str(error)) from None
        if arguments.command == "derive":
            return await derive(maker, arguments.name, arguments.output, as_json=arguments.json)
        tasks = config.derive.processes or await asyncio.to_thread(count_cores)
        warming = Warming(maker, arguments.since, tasks, as_json=arguments.json)
        return await warming.run(sys.stdout, sys.stderr)


def read_picture_options(invocation: Invocation) -> PictureOptions:
    """Return the options that the arguments name. Raises: ConfigError: They are none."""
    arguments = invocation.arguments
    parameters = [] if arguments.preset is None else [("preset", arguments.preset)]
    try:
        if arguments.options is not None:
            parameters += split_options(arguments.options)
        options = invocation.config.derive_policy().read(parameters)
    except InvalidOption as error:
        raise ConfigError(f"--preset, --options: {error}") from None
    if not parameters:
        raise ConfigError('--preset or --options: name a picture, as --options "w=400&format=webp"')
    return options


@dataclass(frozen=True, slots=True)
class PictureMaker:
    """The maker of pictures with the same options, which finds those that are there."""

    services: Services
    options: PictureOptions
    accepted: Accepted

    async def open(self, record: Record) -> Picture | None:
        """
        Open the picture of an image; `None`: the original itself is the answer.

        Raises:
            ImgkeepError: It cannot be made, or its original is gone.
        """
        pictures, original = self.services.derived.pictures, StoredOriginal.of(record)
        names = pictures.find_names(original, self.options, self.accepted)
        if not names:
            return None
        picture = await pictures.open(original, names, INTERNAL)
        if picture is None:
            raise ImgkeepError("the bytes of the image are not in the store: see `imgkeep verify`")
        return picture


async def derive(maker: PictureMaker, name: str, output: str, *, as_json: bool) -> int:
    """Write the picture of one image, which has a key or a source URL as its name. 1 if there is none."""
    services = maker.services
    key = Key(name) if _KEY.fullmatch(name) else services.image_service.identify(read_source(name)).key
    record = await services.image_service.find(key)
    if record is None:
        sys.stderr.write(f"imgkeep: no image is stored under {printable(name)}\n")
        return 1
    try:
        picture = await maker.open(record)
        body, media_type = await _open(services, record, picture)
    except ImgkeepError as error:
        sys.stderr.write(f"imgkeep: {error}\n")
        return 1
    data = await _read(body)
    if output == "-":
        sys.stdout.buffer.write(data)
        return 0
    await asyncio.to_thread(_write, Path(output), data)
    if as_json:
        print_json(sys.stdout, {"key": key, "file": output, "content_type": media_type, "size": len(data)})
    else:
        sys.stdout.write(f"{printable(output)}: {media_type}, {readable_bytes(len(data))}\n")
    return 0


@dataclass(slots=True)
class Warming:
    """
    The making of pictures of many images.

    Attributes:
        maker: The maker of the pictures.
        since: Time from which on images were stored that get pictures; `None`: all do.
        tasks: Number of pictures at a time.
        as_json: Whether to print one JSON object for each image.
    """

    maker: PictureMaker
    since: datetime | None
    tasks: int
    as_json: bool
    counts: dict[str, int] = field(default_factory=lambda: {"made": 0, "known": 0, "originals": 0, "failed": 0})

    async def run(self, out: TextIO, err: TextIO) -> int:
        """Make the pictures, newest image first. 1 if one is not made."""
        index = self.maker.services.storage.database.image_index
        total = None if self.since is not None else (await index.count_images())[0]
        queue: asyncio.Queue[Record | None] = asyncio.Queue(self.tasks)
        with progress("making pictures", total, err) as bar:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.tasks):
                    group.create_task(self._work(queue, bar, out))
                async for record in self._walk():
                    await queue.put(record)
                for _ in range(self.tasks):
                    await queue.put(None)
        await self.maker.services.derived.store.wait_until_uploaded()
        if not self.as_json:
            out.write(", ".join(f"{number} {fate}" for fate, number in self.counts.items()) + "\n")
        return 1 if self.counts["failed"] else 0

    async def _walk(self) -> AsyncGenerator[Record]:
        index = self.maker.services.storage.database.image_index
        after: tuple[int, str] | None = None
        while page := await index.page(limit=PAGE, after=after, wanted=Wanted(since=self.since)):
            for record in page:
                yield record
            await self.maker.services.derived.store.wait_until_uploaded()
            after = (int(page[-1].stored_at.timestamp()), page[-1].key)

    async def _work(self, queue: asyncio.Queue[Record | None], bar: Bar, out: TextIO) -> None:
        while (record := await queue.get()) is not None:
            facts: dict[str, object] = {"key": record.key, "picture": None, "created": False, "error": None}
            try:
                picture = await self.maker.open(record)
            except ImgkeepError as error:
                self.counts["failed"] += 1
                facts["error"] = {"code": error.code, "detail": str(error)}
                if not self.as_json:
                    bar.say(f"failed  {record.key}: {error}")
            else:
                self.counts["originals" if picture is None else "made" if picture.is_new else "known"] += 1
                if picture is not None:
                    facts |= {"picture": picture.name.path, "created": picture.is_new}
                    await picture.body.aclose()
                    self.maker.services.derived.store.put_later(picture.name)
            if self.as_json:
                print_json(out, facts)
            bar.advance(1)


async def _open(services: Services, record: Record, picture: Picture | None) -> tuple[Body, str]:
    """Return the body to write, and its type: the picture's, or the original's where that is the answer."""
    if picture is not None:
        return picture.body, picture.name.format.media_type
    body = await services.storage.store.fetch(record.object_name, record.size)
    if body is None:
        raise ImgkeepError("the bytes of the image are not in the store: see `imgkeep verify`")
    return body, record.format.media_type


async def _read(body: Body) -> bytes:
    data = bytearray()
    try:
        while piece := await body.read(len(data), PIECE_BYTES):
            data += piece
    finally:
        await body.aclose()
    return bytes(data)


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Blocks. Raises: OSError."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial_path.write_bytes(data)
        partial_path.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial_path.unlink()
