"""Which links are rewritten, and how many documents at a time."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from imgkeep.bootstrap.services import make_link_selection
from imgkeep.config import load
from imgkeep.core.errors import Busy, InvalidRequest
from imgkeep.core.picture_facts import PictureFacts
from imgkeep.core.records import Format, PixelSize
from imgkeep.core.rewrite import every
from imgkeep.core.rewrite.links import ImgLinks
from imgkeep.images.inspect import make_inspector
from imgkeep.page_rewriting import (
    CHUNK_BYTES,
    DOCUMENTS_MAX,
    MARKDOWN_BYTES_MAX,
    SHORT_DOCUMENT_BYTES_MAX,
    THREADS,
    RewriteService,
    document_format_of,
    rewrite,
    shown_size,
)
from tests.support.stores import record_of

PAGE = b'<img src="https://a.example/1.png">'
OBJECT = f"v1/objects/0a/{'0a' * 32}.png"


@pytest.mark.parametrize(
    ("delivery", "objects"),
    [
        ({"base_url": "https://cdn.example/x/"}, "https://cdn.example/x/kept/"),
        ({"mode": "redirect"}, None),  # in a public bucket the URL is known
        ({}, None),
    ],
    ids=str,
)
def test_links_to_objects_of_public_bucket_stay(delivery: dict[str, object], objects: str | None) -> None:
    config = load({"store": {"url": "s3://bucket/kept"}, "delivery": delivery}, {})
    linking = make_link_selection(config, make_inspector(config, lambda: datetime(2026, 11, 22, tzinfo=UTC)))
    assert (linking.objects.url if linking.objects else None) == (f"{objects}v1/objects" if objects else None)
    linker = linking.linker("all", "")
    assert linker("https://cdn.example/x/other.png") is not None
    assert (linker(f"https://cdn.example/x/kept/{OBJECT}") is None) == (objects is not None)


def test_chunk_boundaries_do_not_show() -> None:
    page = b"<p>" + b"." * (CHUNK_BYTES - 20) + PAGE * 3
    rewritten = rewrite(page, "html", ImgLinks(every))
    assert rewritten.document.count(b"/img?src=") == 3
    assert rewritten.links == ("https://a.example/1.png",) * 3
    assert "a.example" not in repr(rewritten)


def test_too_long_markdown_is_refused() -> None:
    longest = b" " * MARKDOWN_BYTES_MAX
    assert rewrite(longest, "markdown", ImgLinks(every)).document == longest
    with pytest.raises(InvalidRequest):
        rewrite(longest + b" ", "markdown", ImgLinks(every))


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.html", "html"), ("A.HTM", "html"), ("b.md", "markdown"), ("c.markdown", "markdown"), ("html", None)],
)
def test_format_of_file_by_name(name: str, form: str | None) -> None:
    assert document_format_of(name) == form


async def test_short_documents_overtake_long_ones_and_queue_is_bounded() -> None:
    go = threading.Event()
    counted: list[tuple[str, int]] = []
    desk = RewriteService(lambda form, links: counted.append((form, links)))

    def slow(_: str) -> str:
        assert go.wait(10)
        return "https://ours.example/"

    async def have(document: bytes, linker: object = ImgLinks(every)) -> bytes:
        done = await desk.rewrite(document, "html", linker, url=None, charset=None)  # type: ignore[arg-type] # a linker
        return done.document

    try:
        long = [
            asyncio.create_task(have(PAGE + b" " * SHORT_DOCUMENT_BYTES_MAX, slow)) for _ in range(DOCUMENTS_MAX - 1)
        ]
        await asyncio.sleep(0)
        assert THREADS > 1
        assert (await have(PAGE)).count(b"/img?src=") == 1, "beside the long one"
        full = asyncio.create_task(have(PAGE, slow))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await have(PAGE)
        go.set()
        await asyncio.gather(full, *long)
        assert await have(PAGE)
    finally:
        go.set()
        desk.close()
    assert counted == [("html", 1)] * (DOCUMENTS_MAX + 2)


@pytest.mark.parametrize(
    ("format_", "facts", "size"),
    [
        (Format.PNG, False, (64, 48)),
        (Format.GIF, False, (64, 48)),
        (Format.JPEG, False, None),  # its orientation may turn it
        (Format.JPEG, True, (48, 64)),
        (Format.SVG, False, None),
    ],
)
def test_size_is_that_which_people_see(format_: Format, facts: bool, size: tuple[int, int] | None) -> None:  # noqa: FBT001
    found = PictureFacts(48, 64, 1, has_alpha=False, orientation=6, colour="ffffff", thumbhash="") if facts else None
    record = replace(record_of(b""), format=format_, pixel_size=PixelSize(64, 48, found))
    shown = shown_size(record)
    assert (None if shown is None else (shown.width, shown.height)) == size
