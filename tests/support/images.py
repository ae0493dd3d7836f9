"""Small real images, made once."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from zlib import crc32

from PIL import Image


@cache
def make_image(form: str = "PNG", *, width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    """Return an image in a format of Pillow's, different for every seed, noisy enough not to compress to nothing."""
    noise = Image.effect_noise((width, height), 64).convert("RGB")
    noise.putpixel((0, 0), (seed % 256, seed // 256 % 256, 7))
    file = BytesIO()
    noise.save(file, form)
    return file.getvalue()


@cache
def png_of(size: int, *, seed: int = 0) -> bytes:
    """Return a PNG of exactly `size` bytes: a small one with a padding chunk."""
    small = make_image(width=8, height=8, seed=seed)
    end = small[-12:]
    padding = size - len(small) - 12
    assert padding >= 0
    return small[:-12] + _chunk(b"paDd", b"\0" * padding) + end


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + crc32(kind + data).to_bytes(4, "big")
