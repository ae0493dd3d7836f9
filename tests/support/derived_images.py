"""
Pictures for docs/derived.md: an original of `imgkeep demo`, and what imgkeep makes of it.

    python -m tests.support.derived_images
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from imgkeep.cli.demo_images import draw
from tests.support.program import ROOT, serving

FOLDER: Final = ROOT / "docs" / "images" / "derived"
SCENE: Final = "dawn"
PICTURES: Final = {
    "inside.webp": "w=240&format=webp",
    "cover.webp": "w=160&h=160&fit=cover&format=webp",
    "attention.webp": "w=160&h=160&fit=cover&gravity=attention&format=webp",
    "contain.webp": "w=160&h=160&fit=contain&bg=1b4965&format=webp",
    "rotate.webp": "h=160&rotate=90&format=webp",
    "blur.webp": "w=240&blur=4&format=webp",
}
"""Options by the name of the file."""


async def main() -> None:
    original = draw(SCENE)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "original.png").write_bytes(original)
    with TemporaryDirectory() as folder:
        async with serving(Path(folder) / "data") as imgkeep:
            url = f"http://{imgkeep.address}"
            async with imgkeep.session.post(f"{url}/api/save-image", data={"file": BytesIO(original)}) as saved:
                name = (await saved.json())["url"].rpartition("/")[2]
            for file, options in PICTURES.items():
                async with imgkeep.session.get(f"{url}/images/{name}?{options}") as response:
                    response.raise_for_status()
                    (FOLDER / file).write_bytes(await response.read())


if __name__ == "__main__":
    asyncio.run(main())
