"""
Every example of `examples/README.md`, by the commands that stand there, seen by Chromium: it shows an image through
imgkeep, and still does when the image service is gone. Only ports are replaced, by free ones.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from playwright.async_api import Error as PlaywrightError

from tests.support.browser import browsing
from tests.support.checkout import EXAMPLES, Shell, copy_checkout, read_examples
from tests.support.framework_examples import visiting
from tests.support.program import ROOT, cannot
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from playwright.async_api import Browser

    from tests.support.checkout import Example

README = (EXAMPLES / "README.md").read_text("utf-8")
MAKES_A_LINK_WHEN_OPENED = "JavaScript in a page"

IMAGES = """async () => {
  const images = [];
  for (const image of document.images) {
    await image.decode().catch(() => null);
    images.push([image.currentSrc, image.naturalWidth]);
  }
  return images;
}"""


async def images_of(browser: Browser, url: str) -> list[tuple[str, int]]:
    """Return source and width of each image that a new browser shows at a URL."""
    async with visiting(browser) as visit:
        await visit.open(url)
        with suppress(PlaywrightError):
            await visit.page.wait_for_selector("img", state="attached")
        await visit.page.wait_for_load_state("networkidle")
        shown: list[Any] = await visit.ask(IMAGES)
        assert shown, (url, visit.statuses, visit.complaints)
        return [(source, width) for source, width in shown]


async def show(browser: Browser, folder: Path, example: Example, *, times: str) -> None:
    """Check that an example shows its images through imgkeep."""
    url = example.opens
    if url.endswith(".txt"):
        url = (folder / url).read_text().strip()
    elif not example.serves:
        url = (folder / url).as_uri()
    shown = await images_of(browser, url)
    ours = [(source, width) for source, width in shown if "/img?src=" in source]
    assert ours, f"{example.name}, {times}: no image leads through imgkeep: {shown}"
    assert {width for _, width in ours} == {480}, f"{example.name}, {times}: {shown}"


async def test_example_shows_its_image_without_the_origin(tmp_path: Path, reserve_port: Callable[[], int]) -> None:
    for program in ("nginx", "node", "curl"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:  # noqa: TID251 - likewise
            cannot(f"{program} is not installed")
    checkout, shell = copy_checkout(tmp_path, reserve_port), Shell(tmp_path)
    (origin, imgkeep), examples = read_examples(checkout.readme)
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(browsing())
        await stack.enter_async_context(shell.serving(imgkeep, checkout.url("8080"), "imgkeep"))

        async def start(example: Example) -> None:
            if example.serves:
                await stack.enter_async_context(shell.serving(example.commands, example.opens, example.name))
            elif example.commands:
                await shell.run(example.commands, example.name)
            await show(browser, tmp_path, example, times="while its link is alive")

        async with shell.serving(origin, checkout.url("9000"), "origin"), asyncio.TaskGroup() as tasks:
            for example in examples:
                tasks.create_task(start(example))
        async with asyncio.TaskGroup() as tasks:
            for example in examples:
                if example.name != MAKES_A_LINK_WHEN_OPENED:
                    tasks.create_task(show(browser, tmp_path, example, times="when its link is dead"))
    seen = (tmp_path / "origin.log").read_text()
    assert "X-Amz" not in seen, "links are credentials"


async def test_links_of_the_origin_end(tmp_path: Path, reserve_port: Callable[[], int]) -> None:
    copy_checkout(tmp_path, reserve_port)
    (tmp_path / "try.py").write_text(
        "import sys; sys.path.insert(0, 'examples')\n"
        "import origin\n"
        "path, _, query = origin.link().partition('?')\n"
        "path = '/pictures' + path.partition('/pictures')[2]\n"
        "assert origin.is_alive(path, query)\n"
        "assert not origin.is_alive(path, query[:-1] + ('0' if query[-1] != '0' else '1'))\n"
        "assert not origin.is_alive(path, query.replace('X-Amz-Date=2', 'X-Amz-Date=3'))\n"
        "assert not origin.is_alive(path, '')\n"
        "now = origin.now() + origin.LIFE\n"
        "origin.now = lambda: now\n"
        "assert not origin.is_alive(path, query)\n"
    )
    await Shell(tmp_path).run("python try.py", "try")


@table("example", read_examples(README)[1], ids=lambda example: example.name)
def test_example_has_its_commands(example: Example) -> None:
    lines = example.commands.splitlines()
    paths: Sequence[str] = re.findall(r"examples/\S+\.(?:py|sh|mjs|html)", example.commands or example.opens)
    text = "".join((ROOT / path).read_text("utf-8") for path in paths)
    if not paths:
        text = (EXAMPLES / "fastapi/app.py").read_text("utf-8")
    for line in lines:
        assert re.search(rf"^(?:# |// )? *{re.escape(line)}$", text, re.MULTILINE), line


def test_every_example_is_listed() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in EXAMPLES.rglob("*")
        if path.suffix in {".py", ".sh", ".mjs", ".html"} and "__pycache__" not in path.parts
    }
    listed = set(re.findall(r"examples/\S+?\.(?:py|sh|mjs|html)\b", README)) | {"examples/fastapi/app.py"}
    assert files == listed
