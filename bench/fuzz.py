"""
Feed the rewriter whatever atheris finds, guided by the code that it reaches.

    uv run --with atheris python -m bench.fuzz [FOLDER] [-max_total_time=60]

Needs atheris and installs nothing. What has to hold: no exception; nothing changes where there is no link to an image;
how a page is cut does not matter; rewriting twice changes nothing.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["imgkeep.core.rewrite"]):
    from imgkeep.core.rewrite import HtmlStream, ImgLinks, every, rewrite_html, rewrite_markdown

LINKER = ImgLinks(every)


def check(data: bytes) -> None:
    """Check one input: its first byte says how it is cut, the rest is the page."""
    step, page = (data[0] if data else 0) % 64 + 1, data[1:]
    once = rewrite_html(page, LINKER)
    assert rewrite_html(once, LINKER) == once
    assert rewrite_html(page, lambda _: None) == page
    stream = HtmlStream(LINKER)
    pieces = [stream.feed(page[at : at + step]) for at in range(0, len(page), step)]
    assert b"".join((*pieces, stream.close())) == once
    once = rewrite_markdown(page, LINKER)
    assert rewrite_markdown(once, LINKER) == once


def main() -> None:
    """Fuzz until something breaks or time is up."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
