"""`derive` and `warm`: pictures into files, and ahead of the clients that will ask for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.support.program import run, run_here

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """Give a store with two images."""
    source = tmp_path / "pictures"
    source.mkdir()
    for n in range(2):
        Image.linear_gradient("L").rotate(90 * n).convert("RGB").save(source / f"{n}.png")
    assert (await run(tmp_path / "data", "import", str(source), "--mount", "old"))[0] == 0
    return tmp_path / "data"


async def keys_of(folder: Path) -> list[str]:
    _, out, _ = await run_here(folder, "list", "--json")
    return [json.loads(line)["key"] for line in out.splitlines()]


async def test_picture_is_written_whole(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[derive.presets]\nthumb = "w=20&format=webp"\n')
    key = (await keys_of(folder))[0]
    file = tmp_path / "picture.webp"
    status, out, errors = await run(folder, "derive", key, "--preset", "thumb", "--options", "dpr=2", "-o", str(file))
    assert (status, errors) == (0, "")
    assert out.startswith(f"{file}: image/webp, ")
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == ("WEBP", (40, 40))


async def test_pictures_are_made_once(folder: Path) -> None:
    status, out, errors = await run(folder, "warm", "--options", "w=20&format=auto", "--json")
    assert (status, errors) == (0, "")
    first = [json.loads(line) for line in out.splitlines()]
    assert sorted(each["key"] for each in first) == sorted(await keys_of(folder))
    assert all(each["created"] and each["picture"].startswith("v1/derived/") for each in first)
    status, out, errors = await run(folder, "warm", "--options", "format=auto&w=20")
    assert (status, out, errors) == (0, "0 made, 2 known, 0 originals, 0 failed\n", "")
    status, out, _ = await run(folder, "warm", "--options", "w=20&format=auto", "--since", "2100-01-01")
    assert (status, out) == (0, "0 made, 0 known, 0 originals, 0 failed\n")


async def test_image_beyond_a_limit_fails_alone(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "more"
    source.mkdir()
    Image.new("RGB", (300, 300)).save(source / "large.png")
    await run(folder, "import", str(source), "--mount", "old")
    status, out, errors = await run(folder, "warm", "--options", "w=20&format=webp", derive__pixels_max="70000")
    assert (status, out) == (1, "2 made, 0 known, 0 originals, 1 failed\n"), errors
    assert errors.startswith("failed  ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name a picture"),
        (("--preset", "none"), "--preset, --options: "),
        (("--options", "w=0"), "--preset, --options: w"),
        (("--options", "nonsense"), "nonsense is not an option of a picture"),
    ],
)
async def test_mistake_opens_nothing(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    status, out, errors = await run_here(tmp_path / "data", "warm", *arguments)
    assert (status, out) == (2, "")
    assert says in errors
    assert not (tmp_path / "data").exists()


async def test_image_that_is_not_stored_is_named(folder: Path) -> None:
    status, _, errors = await run(folder, "derive", "https://example.com/a.png", "--options", "w=9", "-o", "-")
    assert status == 1
    assert "no image is stored under https://example.com/a.png" in errors
