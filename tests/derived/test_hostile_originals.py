"""Originals that are made to do harm, in a real derive process: each is an answer, and the next picture is made."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from typing import TYPE_CHECKING, Final

from PIL import Image

from imgkeep.core.errors import DeriveFailed
from imgkeep.core.records import Format
from imgkeep.derived.messages import Derived, Facts, Refused
from tests.support import image_files as images
from tests.support.derive_pool import open_real_pool
from tests.support.hostile_images import WORST, laughs

if TYPE_CHECKING:
    from tests.support.derive_pool import Pool

SIZE: Final = 100_000
"""Size of the worst files: the costs of larger ones are bounded by the timeout."""
GOOD: Final = images.saved("PNG")
MIBIBYTES: Final = 1024 * 1024


def bombs() -> dict[str, tuple[Format, bytes]]:
    """Return small files that claim to be large pictures."""
    image = io.BytesIO()
    Image.new("RGB", (1, 1)).save(image, "JPEG")
    jpeg = bytearray(image.getvalue())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="1000000000" height="1000000000"/>'
    return {
        "PNG": (Format.PNG, png(30_000, 30_000)),
        "JPEG": (Format.JPEG, bytes(jpeg)),
        "GIF": (Format.GIF, gif(1, size=65_535)),
        "frames": (Format.GIF, gif(100_000)),
        "BMP": (Format.BMP, images.bmp(width=30_000, height=30_000)),
        "AVIF": (Format.AVIF, avif(30_000)),
        "TIFF": (Format.TIFF, tiff(10_100)),
        "ICO": (Format.ICO, images.ico((0, 0, png(30_000, 30_000)))),
        "SVG": (Format.SVG, svg.encode()),
    }


def png(width: int, height: int, *chunks: bytes) -> bytes:
    packer = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    rows = b"".join(packer.compress(row) for _ in range(min(height, 1_000)))
    data = images.png_chunk(b"IDAT", rows + packer.flush())
    head = images.png_header(width=width, height=height, tail=(1, 0, 0, 0, 0))
    return head + b"".join(chunks) + data + images.png_chunk(b"IEND")


def gif(frames: int, size: int = 1) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", size, size, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    one = b"!\xf9\4\0\1\0\0\0," + struct.pack("<HHHHB", 0, 0, size, size, 0) + b"\2\2D\1\0"
    return head + one * frames + b";"


def avif(side: int) -> bytes:
    image = bytearray(images.saved("AVIF"))
    at = image.index(b"ispe") + 8
    image[at : at + 8] = struct.pack(">II", side, side)
    return bytes(image)


def tiff(side: int) -> bytes:
    image = io.BytesIO()
    Image.new("1", (side, side)).save(image, "TIFF", compression="group4")
    return image.getvalue()


BOMBS: Final = bombs()


async def ask(pool: Pool, original: Format, source: bytes, *, facts: bool = False) -> object:
    """Return the answer to a job, or its failure."""
    try:
        return await pool.run("w400", source=source, original=original, picture=None if facts else Format.WEBP)
    except DeriveFailed as failure:
        return failure


async def test_large_pictures_are_refused_by_their_headers() -> None:
    async with open_real_pool() as pool:
        answers = {name: await ask(pool, *bomb) for name, bomb in BOMBS.items()}
        frames = answers.pop("frames")
        assert isinstance(frames, Derived | Refused)
        assert not isinstance(frames, Derived) or frames.frames <= 500
        assert isinstance(answers.pop("SVG"), Derived | Refused)
        reasons = {name: getattr(answer, "reason", answer) for name, answer in answers.items()}
        assert set(reasons.values()) == {"too_large"}, reasons
        facts = {name: await ask(pool, *bomb, facts=True) for name, bomb in BOMBS.items()}
        assert all(isinstance(answer, Facts | Refused) for answer in facts.values()), facts
        assert pool.count("processes_ended", cause="crashed") == 0


async def test_worst_files_of_each_parser_are_answered() -> None:
    async with open_real_pool() as pool:
        for (original, trick), make in WORST.items():
            answer = await ask(pool, original, make(SIZE))
            assert isinstance(answer, Derived | Refused | DeriveFailed), (original, trick)
        assert isinstance(await ask(pool, Format.PNG, GOOD), Derived)


async def test_compressed_profile_and_text_cost_little() -> None:
    zeros = zlib.compress(bytes(200 * MIBIBYTES), 9)
    chunks = [images.png_chunk(b"iCCP", b"x\0\0" + zeros), images.png_chunk(b"zTXt", b"x\0\0" + zeros)]
    async with open_real_pool() as pool:
        for chunk in chunks:
            assert isinstance(await ask(pool, Format.PNG, png(64, 64, chunk)), Derived | Refused)
        await asyncio.to_thread(pool.processes.sample_memory)
        assert pool.processes.memory_bytes < 256 * MIBIBYTES


async def test_process_whose_memory_stays_is_replaced() -> None:
    elements = WORST[Format.SVG, "elements"]
    async with open_real_pool() as pool:
        await ask(pool, Format.SVG, elements(400_000))
        assert isinstance(await ask(pool, Format.PNG, GOOD), Derived)
        assert pool.count("processes_ended", cause="recycled") == 1


async def test_picture_that_takes_too_long_is_given_up() -> None:
    async with open_real_pool(timeout_s=0.5) as pool:
        answer = await ask(pool, Format.SVG, laughs())
        assert isinstance(answer, DeriveFailed | Refused)
        assert isinstance(await ask(pool, Format.PNG, GOOD), Derived)
