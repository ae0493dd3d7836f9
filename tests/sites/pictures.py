"""
Makes the pictures in the README: a page when its links have expired, and the same behind the middleware.

    python -m tests.sites.pictures
"""

from __future__ import annotations

import asyncio
import colorsys
import tempfile
from datetime import UTC, datetime
from html import escape
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from tests.browser import browsing
from tests.origins import FakeOrigin
from tests.program import ROOT, serving
from tests.sites.examples import running, visiting

if TYPE_CHECKING:
    from tests.origins import Exchange
    from tests.sites.examples import Visit

SIZE = {"width": 520, "height": 330}
COLORS = 64
BYTES_MAX = 60_000

STYLE = """
body {margin: 0; padding: 20px 24px; font: 15px sans-serif; background: #f6f5f2; color: #333}
h1 {margin: 0 0 12px; font-size: 20px}
main {display: grid; grid-template-columns: repeat(3, 150px); gap: 11px}
img {width: 150px; height: 112px; border-radius: 4px; background: #e6e4df}
figure {margin: 0} figcaption {font-size: 12px; color: #777}
"""
TITLES = ("lighthouse", "two moons", "early fog", "dunes", "harbour", "last light")


def landscape(seed: int) -> bytes:
    """Return a picture of hills under a sky."""
    random = Random(seed)
    hue = random.random()

    def color(turn: float, saturation: float, value: float) -> tuple[int, ...]:
        return tuple(round(255 * part) for part in colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))

    image = Image.new("RGB", (300, 224))
    draw = ImageDraw.Draw(image)
    for y in range(0, 224, 16):
        draw.rectangle((0, y, 300, y + 16), fill=color(0.1 - y / 2000, 0.6 - y / 500, 0.7 + y / 900))
    x, y, radius = random.randint(60, 240), random.randint(30, 90), random.randint(14, 26)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color(0.12, 0.2, 1))
    for layer in range(4):
        height = 110 + 26 * layer
        ridge = [(at, height + random.randint(-14, 14)) for at in range(0, 301, 30)]
        draw.polygon([(0, 224), *ridge, (300, 224)], fill=color(-0.08 * layer, 0.5 + layer / 10, 0.55 - layer / 9))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def page(origin: FakeOrigin) -> str:
    """Return a page with links that die."""
    now = datetime.now(UTC)  # noqa: TID251 - imgkeep looks at the same clock
    signed = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F{now:%Y%m%d}%2Fus-east-1%2Fs3%2Faws4_request"
    signed += f"&X-Amz-Date={now:%Y%m%dT%H%M%SZ}&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={'5' * 64}"
    figures = []
    for number, title in enumerate(TITLES):
        link = origin.gives(f"/{number}.png", landscape(number + 5))
        figures.append(
            f'<figure><img src="{escape(f"{link}?{signed}")}" alt="{title}"><figcaption>{title}</figcaption></figure>'
        )
    return (
        f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><h1>Made this morning</h1><main>{''.join(figures)}"
    )


async def main() -> None:
    origin = FakeOrigin()
    await origin.start()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page(origin))
        async with (
            browsing() as browser,
            serving(Path(folder) / "data") as program,
            running("flask", file, program) as url,
            visiting(browser, viewport=SIZE) as visit,
        ):
            await visit.open(url)

            async def expired(exchange: Exchange) -> None:
                await exchange.answer(b"Request has expired", status="403 Forbidden")

            origin.scripts = dict.fromkeys(origin.scripts, expired)
            await visit.open(file.as_uri())
            await take(visit, "before")
            await visit.open(url)
            await take(visit, "after")
    await origin.stop()


async def take(visit: Visit, name: str) -> None:
    """Keep what is seen, in few colors."""
    image = Image.open(BytesIO(await visit.page.screenshot())).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    path = ROOT / f"docs/images/{name}.png"
    image.save(path, optimize=True)
    assert path.stat().st_size <= BYTES_MAX, f"{path} is too large"


if __name__ == "__main__":
    asyncio.run(main())
