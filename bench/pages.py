"""
Ask Chromium whether real pages are the same after rewriting, but for the links to their images.

    python -m bench.pages FOLDER...

Reads every `.html` file under the folders, moves all links to images to another host, and compares the trees. A link is
absolute here, or resolved against a host that stands for the folder. Exit status 1: a page differs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imgkeep.core.rewrite import rewrite_html
from tests.support.rewrite_browser import read_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES_AT_ONCE: Final = 4_000_000
"""What Chromium reads within its patience, and more than all but the largest pages have."""

MARK: Final = "https://moved.invalid/?"


def _mark(url: str) -> str:
    return MARK + url


def _batches(files: list[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    for file in files:
        if batch and sum(each.stat().st_size for each in (*batch, file)) > BYTES_AT_ONCE:
            yield batch
            batch = []
        batch.append(file)
    yield batch


def main() -> int:
    """Print what differs, and how many pages and links there were."""
    files = [file for folder in sys.argv[1:] for file in sorted(Path(folder).rglob("*.html"))]
    bad = links = 0
    for chosen in _batches(files):
        pages = [file.read_bytes().decode("utf-8", "replace") for file in chosen]
        after = [rewrite_html(page, _mark, url="https://pages.example/") for page in pages]
        with tempfile.TemporaryDirectory() as folder:
            readings = read_pages(pages + after, Path(folder))
        for file, page, was, now in zip(chosen, after, readings[: len(chosen)], readings[len(chosen) :], strict=True):
            changed = sum(old != new for old, new in zip(was.places, now.places, strict=False))
            marked = all(old == new or MARK in new for old, new in zip(was.places, now.places, strict=False))
            links += page.count(MARK)
            if (
                was.rest != now.rest
                or len(was.places) != len(now.places)
                or not marked
                or (MARK in page) != (changed > 0)
            ):
                bad += 1
                print(f"differs: {file}")
    print(f"{len(files)} pages, {links} links, {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
