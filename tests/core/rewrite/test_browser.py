"""What we take for a link to an image is what Chromium takes for one, and what we change is nothing else to it."""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING

from imgkeep.core.rewrite import rewrite_html
from tests.support.rewrite_browser import read_pages
from tests.support.rewrite_cases import HTML
from tests.support.tag_soup import HERE, THERE, make_page, move

if TYPE_CHECKING:
    from pathlib import Path

PAGES = 2000
LINK = re.compile(rf"(?<!=){HERE}")
"""What stands behind an equals sign is a relative link that holds one."""


def test_browser_sees_other_links_and_else_the_same(tmp_path: Path) -> None:
    random = Random(20260110)
    pages = [make_page(random, number) for number in range(PAGES)] + [source for source, _ in HTML.values()]
    pages = [page for page in pages if "noscript" not in page]  # a parser without scripts reads on in it
    after = [rewrite_html(page, move) for page in pages]
    readings = read_pages(pages + after, tmp_path)
    places = 0
    for page, before, now in zip(pages, readings[: len(pages)], readings[len(pages) :], strict=True):
        places += len(before.places)
        assert now.rest == before.rest, page
        assert now.places == [LINK.sub(THERE, place) for place in before.places], page
    assert places > PAGES
