"""
Time the rewriting of pages, against html.parser doing nothing but reading them in the same run.

    python -m bench.rewrite

Each figure is the best of rounds, in megabytes of HTML a second on one core. The aim is 50 for a page with few links.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from functools import partial
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Final

from imgkeep.core.rewrite import Hosts, ImgLinks, Temporary, every, rewrite_html

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS: Final = 7
PAGE_BYTES: Final = 1_000_000
IMAGES: Final = 1000

TEXT: Final = (
    '<div class="row item" id="x12" data-n="3"><p>Some text here, <a href="/a/b?c=d&amp;e=f" title="A \'title\'">a link'
    '</a> and <b>bold</b> words.</p>\n<ul><li>one</li><li style="color: rgb(1, 2, 3)">two &amp; three</li></ul></div>\n'
    '<svg viewBox="0 0 9 9"><path d="M0 0h9v9z"/></svg><!-- a comment -->\n'
)
IMAGE: Final = '<img class="a" alt="A picture" loading="lazy" src="https://h.example/2026/{}.png?w=640&amp;h=480">'


def _page(images: int) -> bytes:
    part = PAGE_BYTES // max(images, 1)
    text = TEXT * (part // len(TEXT) + 1)
    if not images:
        return text.encode()
    return "".join(IMAGE.format(n) + text[: part - len(IMAGE)].rpartition("\n")[0] for n in range(images)).encode()


def _mb_per_s(work: Callable[[bytes], object], page: bytes) -> float:
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work(page)
        best = max(best, len(page) / (time.perf_counter() - start) / 1e6)
    return best


def main() -> int:
    """Print a line for each kind of page; exit status 1: the aim is missed."""
    few, many = _page(4), _page(IMAGES)
    linkers = {
        "few links, the temporary ones": (few, ImgLinks(Temporary(datetime.now(UTC)))),  # noqa: TID251 - a real page's
        f"{IMAGES} images, none chosen": (many, ImgLinks(Hosts("other.example"))),
        f"{IMAGES} images, the temporary ones": (many, ImgLinks(Temporary(datetime.now(UTC)))),  # noqa: TID251
        f"{IMAGES} images, all": (many, ImgLinks(every)),
        f"{IMAGES} images, all, signed": (many, ImgLinks(every, key="k" * 43)),
    }
    reached = []
    for name, (page, linker) in linkers.items():
        reached.append(_mb_per_s(partial(rewrite_html, linker=linker), page))
        print(f"{name:38}{reached[-1]:8.1f} MB/s")
    for name, page in (("few links", few), (f"{IMAGES} images", many)):
        bare = _mb_per_s(lambda page: HTMLParser().feed(page.decode()), page)
        print(f"{f'html.parser, {name}':38}{bare:8.1f} MB/s")
    return 0 if reached[0] >= 50 else 1


if __name__ == "__main__":
    sys.exit(main())
