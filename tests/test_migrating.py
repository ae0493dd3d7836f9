"""The commands of docs/migrating.md, one after the other, as a newcomer types them."""

from __future__ import annotations

import csv
import re
import shutil
import tomllib
from typing import TYPE_CHECKING

import aiohttp
import pytest

from imgkeep.config import load
from imgkeep.core.derived.compatibility.imageproxy import read_imageproxy
from imgkeep.core.derived.compatibility.thumbor import read_thumbor
from imgkeep.core.errors import NotSupported
from tests.support.checkout import Shell
from tests.support.images import make_image
from tests.support.page_links import SIGNED
from tests.support.program import ROOT, cannot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin

SOURCE = "https://example.com/a.jpg"
PAGE = (ROOT / "docs/migrating.md").read_text("utf-8")


async def test_each_command_does_what_the_page_says(
    tmp_path: Path, origin: FakeOrigin, reserve_port: Callable[[], int]
) -> None:
    if shutil.which("curl") is None:
        cannot("curl is not installed")
    port = str(reserve_port())
    made = origin.gives("/made.png", make_image(seed=1))
    link = f"{origin.gives('/link.png', make_image(seed=2))}?{SIGNED}"
    text = PAGE.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("https://example.com/made.png", made)
    adopt, look, save, copy, move, undo = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (tmp_path / "config.toml").write_text(
        f'[server]\nport = {port}\n[store]\nfree_bytes_min = 0\n[fetch]\nallow_networks = ["127.0.0.0/8"]\n'
    )
    for folder in ("public/generated-images", "old-images"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "lighthouse.png").write_bytes(make_image())
    (tmp_path / "public/generated-images/notes.txt").write_text("not an image")
    (tmp_path / "made.png").write_bytes(make_image(seed=3))
    (tmp_path / "links.txt").write_text(f"{link}\n")
    page = tmp_path / "site" / "page.html"
    page.parent.mkdir()
    page.write_text(f'<img src="{link}">')
    shell = Shell(tmp_path)

    async with shell.serving(adopt, f"http://127.0.0.1:{port}/healthz", "adopt"):
        log = (tmp_path / "adopt.log").read_text()
        assert "1 adopted, 0 known, 1 passed over, 0 failed" in log
        await shell.run(look, "look")
        assert " 200 OK" in (tmp_path / "look.log").read_text()
        await shell.run(save, "save")
        assert (tmp_path / "save.log").read_text().count('"success":true') == 2
        await shell.run(without("aws", copy), "copy")
        with (tmp_path / "old-to-new.csv").open(newline="") as file:
            new = {row["source"]: row["url"] for row in csv.DictReader(file)}
        assert "legacy:generated-images/lighthouse.png" in new
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}{new['legacy:generated/lighthouse.png']}"
            async with session.get(url) as response:
                assert await response.read() == make_image()
        await shell.run(without("psql", move).replace("--diff site", "--diff site || [ $? = 1 ]"), "move")
        assert page.read_text().startswith('<img src="/img?src=')
        await shell.run("imgkeep verify", "verify")
        await shell.run(undo, "undo")
        assert page.read_text().replace("&amp;", "&") == f'<img src="{link}">'


@pytest.mark.parametrize("server", ["imageproxy", "thumbor", "Next.js"])
def test_configuration_of_a_mount_is_valid(server: str) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", section(server), re.DOTALL)
    derive = load(tomllib.loads(block), {}).derive
    assert getattr(derive, server.lower().replace(".", "")) in {"/", "/_next/image"}


@pytest.mark.parametrize(("server", "prefix"), [("imageproxy", ""), ("thumbor", "unsafe/")])
def test_options_of_another_server_are_what_the_page_says(server: str, prefix: str) -> None:
    text = section(server)
    rows = re.findall(r"^\| `(.+)` \| `(w=.+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 11
    for options, expected in rows:
        assert parameters(server, f"{prefix}{options}/{SOURCE}") == expected
    (refused,) = re.findall(r"^These are 501 `not_supported`: (.*?)\.\n\n", text, re.MULTILINE | re.DOTALL)
    names = re.findall(r"`(.+?)`", refused)
    assert len(names) >= 10
    for options in names:
        with pytest.raises(NotSupported):
            parameters(server, f"{prefix}{options}/{SOURCE}")


def section(server: str) -> str:
    (text,) = re.findall(rf"^## From {re.escape(server)}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def parameters(server: str, path: str) -> str:
    """Return the options of `/img` that a URL asks for."""
    request = {"imageproxy": read_imageproxy, "thumbor": read_thumbor}[server](path, None, "")
    assert request is not None
    return "&".join(f"{name}={value}" for name, value in request.parameters)


def without(program: str, block: str) -> str:
    """Return a block without the command of a program that needs an account or a database."""
    lines = [line.partition(" #")[0] for line in block.splitlines()]
    rest = [line for line in lines if not line.startswith(program)]
    assert len(rest) == len(lines) - 1
    return "\n".join(rest)
