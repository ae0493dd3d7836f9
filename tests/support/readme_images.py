"""
Screenshots for the README: the page of `imgkeep demo` once its links have ended, in light and in dark.

    python -m tests.support.readme_images
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from PIL import Image
from playwright.async_api import ViewportSize  # noqa: TC002 - evaluated

from tests.support.browser import browsing
from tests.support.demo import demonstrating
from tests.support.program import ROOT

VIEW: Final[ViewportSize] = {"width": 1000, "height": 580}
COLORS: Final = 256
BYTES_MAX: Final = 60_000
SCHEMES: Final[dict[str, Literal["light", "dark"]]] = {"demo.png": "light", "demo-dark.png": "dark"}


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with demonstrating(Path(folder), "--life", "10s") as demo, browsing() as browser:
            for name, scheme in SCHEMES.items():
                page = await browser.new_page(viewport=VIEW, color_scheme=scheme)
                await page.goto(demo.url)
                await page.wait_for_selector(".ended")
                await page.wait_for_load_state("networkidle")
                take(await page.screenshot(), ROOT / "docs/images" / name)


def take(screenshot: bytes, path: Path) -> None:
    """Write what is seen, in colors of its own, mixed by dots: the skies stay smooth."""
    image = Image.open(BytesIO(screenshot)).convert("RGB")
    palette = image.quantize(COLORS, kmeans=3)
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    assert path.stat().st_size <= BYTES_MAX, f"{path} is too large"


if __name__ == "__main__":
    asyncio.run(main())
