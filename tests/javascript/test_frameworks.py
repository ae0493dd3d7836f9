"""The loader for Next.js, the provider for @nuxt/image and the transformer for unpic write links that imgkeep takes."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from imgkeep.config import Config
from imgkeep.core.source_url import read_img_query, read_picture_query
from tests.support.node import calling
from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.node import Call

EXAMPLES = ROOT / "examples" / "javascript"
OURS = "http://127.0.0.1:8080"
SOURCE = "https://h.example/a (1).png?sig=a%2Fb&x=ü"

WRAPPER = """
import loader from "./next-loader.mjs";
import provider from "./nuxt-provider.mjs";
export { transform } from "./unpic-transformer.mjs";
export const next = loader;
export const nuxt = (src, context) => provider().getImage(src, context, {}).url;
"""
# What @nuxt/image 2 exports: a function that returns the provider.
NUXT = "export const defineProvider = (setup) => () => setup;"


@pytest.fixture(scope="module")
def js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    folder = tmp_path_factory.mktemp("frameworks")
    for name in ("next-loader.mjs", "nuxt-provider.mjs", "unpic-transformer.mjs"):
        shutil.copy(EXAMPLES / name, folder)
    (folder / "all.mjs").write_text(WRAPPER)
    write_package(folder / "node_modules/@nuxt/image")
    with calling(folder / "all.mjs") as call:
        yield call


def write_package(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"type": "module", "exports": {"./runtime": "./runtime.js"}}))
    (folder / "runtime.js").write_text(NUXT)


def options_of(link: str) -> dict[str, str]:
    """Return the options of a picture in a link of ours, as the server reads and permits them."""
    assert link.startswith(f"{OURS}/img?")
    query = read_img_query(link.partition("?")[2])
    assert query.text == SOURCE
    return dict(query.picture)


def test_loader_of_nextjs_names_width_and_quality(js: Call) -> None:
    assert options_of(js("next", {"src": SOURCE, "width": 640})) == {"w": "640", "format": "auto"}
    assert options_of(js("next", {"src": SOURCE, "width": 64, "quality": 80})) == {
        "w": "64",
        "format": "auto",
        "q": "80",
    }


def test_provider_of_nuxt_translates_modifiers(js: Call) -> None:
    def made(**modifiers: object) -> dict[str, str]:
        return options_of(js("nuxt", SOURCE, {"modifiers": modifiers, "baseURL": OURS}))

    assert made() == {"format": "auto"}
    assert made(width=700, height=None, quality="80") == {"w": "750", "format": "auto", "q": "80"}
    assert made(width=9000) == {"w": "3840", "format": "auto"}
    assert made(width=700, height=400, fit="cover", gravity="north", format="webp", background="#ffeedd") == {
        "w": "700",
        "h": "400",
        "fit": "cover",
        "gravity": "north",
        "format": "webp",
        "bg": "ffeedd",
    }


def test_transformer_of_unpic_names_the_next_width(js: Call) -> None:
    def made(**operations: object) -> dict[str, str]:
        return options_of(js("transform", SOURCE, operations, {"publicUrl": OURS}))

    assert made(width=1668, height=900) == {"w": "1920", "format": "auto"}
    assert made(width=6016, quality=70, format="avif") == {"w": "3840", "format": "avif", "q": "70"}
    assert made() == {"format": "auto"}


def test_images_of_the_site_stay_and_stored_ones_get_options(js: Call) -> None:
    def each(src: str) -> list[str]:
        return [
            js("next", {"src": src, "width": 640}),
            js("nuxt", src, {"modifiers": {"width": 640}, "baseURL": OURS}),
            js("transform", src, {"width": 640}, {"publicUrl": OURS}),
        ]

    assert each("/photo.png") == ["/photo.png"] * 3
    for link in each(f"{OURS}/images/0a.png"):
        path, _, query = link.removeprefix(OURS).partition("?")
        assert dict(read_picture_query(query, path).picture) == {"w": "640", "format": "auto"}


def test_ladder_of_the_examples_is_the_default() -> None:
    for name in ("nuxt-provider.mjs", "unpic-transformer.mjs"):
        found = re.search(r"const WIDTHS = (\[[\d,\s]+\]);", (EXAMPLES / name).read_text("utf-8"))
        assert found is not None
        assert tuple(map(int, re.findall(r"\d+", found[1]))) == Config().derive.widths
