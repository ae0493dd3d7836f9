"""The examples run as they are written, and docs/javascript.md tells what is there."""

from __future__ import annotations

import asyncio
import gzip
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from yarl import URL

from tests.support.images import make_image
from tests.support.node import STATIC, calling, copy_module, need_node
from tests.support.program import ROOT, environment
from tests.support.signing_vectors import KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

EXAMPLE = ROOT / "examples" / "javascript"
PAGE = Path("docs/javascript.md").read_text("utf-8")


async def node(script: Path, *arguments: str, **settings: str) -> list[str]:
    """Run a script to its end; return the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        need_node(),
        str(script),
        *arguments,
        env=environment(script.parent, **settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_link_that_the_example_signs_is_accepted(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin, tmp_path: Path
) -> None:
    links = [origin.gives("/a.png", make_image()), origin.gives("/b.png", make_image(seed=1)) + "?x='(1)'&y=z"]
    client = (await start(security={"signature": "always", "signing_keys": [KEY]})).client
    copy_module(tmp_path)
    script = Path(shutil.copy(EXAMPLE / "sign.mjs", tmp_path))
    address = str(client.make_url("")).rstrip("/")
    signed = await node(script, *links, security__signing_keys=f"{KEY},another", server__public_url=address)
    assert len(signed) == len(links)
    for link in signed:
        async with client.session.get(URL(link, encoded=True)) as response:
            assert response.status == 200, await response.text()
        async with client.session.get(URL(link.partition("&exp=")[0], encoded=True)) as response:
            assert response.status == 403


async def test_documented_script_prints_its_output(tmp_path: Path) -> None:
    copy_module(tmp_path)
    (code,) = re.findall(r"```javascript\n(import .*?imgkeep\.mjs.*?)```", PAGE, re.DOTALL)
    script = tmp_path / "a.mjs"
    script.write_text(code, "utf-8")
    assert await node(script) == re.findall(r"^(?:console.log.*)// (.*)$", code, re.MULTILINE)


def test_all_that_there_is_is_documented(tmp_path: Path) -> None:
    with calling(copy_module(tmp_path)) as js:
        names: list[str] = js("exports")
    types = (STATIC / "imgkeep.d.ts").read_text("utf-8")
    options = re.findall(r"^  (\w+)\??: .*;$", types, re.MULTILINE)
    assert sorted(set(re.findall(r"^export (?:declare )?function (\w+)", types, re.MULTILINE))) == names
    for name in (*names, *options):
        assert f"`{name}" in PAGE


def test_documented_size_is_right() -> None:
    module = (STATIC / "imgkeep.js").read_bytes()
    reply = re.search(r"([0-9.]+) kB, ([0-9.]+) kB compressed", PAGE)
    assert reply is not None
    for size, kilobytes in zip((len(module), len(gzip.compress(module, 9))), reply.groups(), strict=True):
        assert abs(float(kilobytes) - size / 1000) < 0.2
