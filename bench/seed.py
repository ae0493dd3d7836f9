"""Images and stores to measure with, made once and kept for the next run."""

from __future__ import annotations

import asyncio
import random
import shutil
from datetime import UTC, datetime
from hashlib import sha1, sha256
from io import BytesIO
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from zlib import crc32

from PIL import Image

from imgkeep.core.identity import identify
from imgkeep.core.layout import encode_record, object_path, record_path
from imgkeep.core.records import Digest, Format, PixelSize, Provenance, Record
from imgkeep.core.source_url import read_source
from imgkeep.database import Database
from imgkeep.storage.local.disk import Disk
from imgkeep.storage.local.store import LocalStore
from tests.support.images import make_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

SMALL: Final = 20_480
LARGE: Final = 1_572_864
OBJECTS_SHARED: Final = 256
"""Different images among the records of a store that is large by its number of records."""
NOW: Final = datetime(2026, 11, 1, tzinfo=UTC)

_FRAME: Final = make_image(width=8, height=8)


def image(number: int, size: int = SMALL) -> bytes:
    """Return a PNG of `size` bytes that no other number has."""
    data = b"paDd" + random.Random(number).randbytes(size - len(_FRAME) - 12)
    return _FRAME[:-12] + (len(data) - 4).to_bytes(4, "big") + data + crc32(data).to_bytes(4, "big") + _FRAME[-12:]


def noise(number: int, size: int = SMALL) -> bytes:
    """
    Return a PNG that no other number has, of `size` bytes within a hundredth, all of which are its picture.

    For thumbor, which writes pictures anew: of what `image` makes it would send the few bytes that are no padding.
    Noise does not compress, so it stays as large, and it has few pixels for its bytes, which is in thumbor's favour: a
    photograph of this size has some ten times as many to decode and encode.
    """
    width = round((size / 3) ** 0.5)
    height = size // (3 * width + 1)  # three bytes a pixel, and one before each line
    picture = Image.frombytes("RGB", (width, height), random.Random(number).randbytes(3 * width * height))
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def files(folder: Path, number: int, make: Callable[[int], bytes] = image) -> Path:
    """Return a folder with `<n>.png` for each number below `number`."""
    if not (folder / f"{number - 1}.png").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(number):
            (folder / f"{n}.png").write_bytes(make(n))
    return folder


def target(origin_port: int, name: str) -> str:
    """Return the request target under which imgkeep shows what an origin has."""
    return f"/img?src={quote(f'http://127.0.0.1:{origin_port}/{name}', safe='')}"


def thumbor_target(origin_port: int, name: str) -> str:
    """Return the request target under which thumbor shows what an origin has, at its own size."""
    return f"/unsafe/http://127.0.0.1:{origin_port}/{name}"


def results(folder: Path, pictures: Path, number: int) -> Path:
    """
    Return the folder of a thumbor that has made the first `number` of `pictures`, as those of an origin.

    They lie where thumbor 7 looks for them (`result_storages/file_storage.py`), and are links to the pictures
    themselves: what Pillow wrote once it writes alike again. One that is not found there is asked of an origin that
    does not exist, so no other layout can pass for this one.
    """
    stamp = folder / f"holds-{number}"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for n in range(number):
            name = sha1(thumbor_target(1, f"{n}.png").encode()).hexdigest()
            place = folder / "results" / "default" / name[:2] / name[2:4] / name[4:]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(pictures / f"{n}.png")
        stamp.touch()
    return folder


def store(folder: Path, number: int, *, origin_port: int, objects: int) -> Path:
    """
    Return the folder of a store that holds `number` links, `/<n>.png` of an origin, to `objects` different images: link
    `n` to image `n % objects`.
    """
    stamp = folder / f"holds-{number}"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        asyncio.run(_fill(folder, number, origin_port, objects))
        stamp.touch()
    return folder


async def _fill(folder: Path, number: int, origin_port: int, objects: int) -> None:
    disk = LocalStore(Disk(folder))
    await disk.open()
    await disk.aclose()
    for kind in ("objects", "records"):
        for part in range(256):
            (folder / "v1" / kind / f"{part:02x}").mkdir(exist_ok=True)
    digests = []
    for n in range(objects):
        body = image(n)
        digests.append(Digest(sha256(body).hexdigest()))
        (folder / object_path(f"{digests[-1]}.png")).write_bytes(body)
    database = Database(f"sqlite:///{folder}/imgkeep.db", lambda: NOW)

    async def written() -> AsyncIterator[Record]:
        for record in _records(number, origin_port, digests):
            (folder / record_path(record.key)).write_bytes(encode_record(record))
            yield record

    await database.image_index.rebuild(written())
    await database.aclose()


def _records(number: int, origin_port: int, digests: list[Digest]) -> Iterator[Record]:
    for n in range(number):
        source = read_source(f"http://127.0.0.1:{origin_port}/{n}.png")
        info = identify(source, NOW)
        yield Record(
            key=info.key,
            identity=info.identity,
            digest=digests[n % len(digests)],
            format=Format.PNG,
            size=SMALL,
            pixel_size=PixelSize(8, 8),
            etag=f'"{n:032x}"',
            stored_at=NOW,
            provenance=Provenance(host=source.host),
        )
