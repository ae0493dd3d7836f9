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
from typing import Final

from proxy.core.rewrite import rewrite_html
from tests.core.rewrite.browser import read_pages

PAGES_AT_ONCE: Final = 200
MARK: Final = "https://moved.invalid/?"


def _mark(url: str) -> str:
    return MARK + url


def main() -> int:
    """Print what differs, and how many pages and links there were."""
    files = [file for folder in sys.argv[1:] for file in sorted(Path(folder).rglob("*.html"))]
    bad = links = 0
    for at in range(0, len(files), PAGES_AT_ONCE):
        chosen = files[at : at + PAGES_AT_ONCE]
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
