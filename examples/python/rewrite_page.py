"""
Rewrite a page in a program of your own. Beside examples/origin.py and imgkeep:

    curl -s -o out/python-before.html http://127.0.0.1:9000/page.html
    python examples/python/rewrite_page.py out/python-before.html > out/python.html
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from imgkeep.core.rewrite import HtmlStream, ImgLinks, Temporary, rewrite_html

PUBLIC_URL = os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080")
"""As `server.public_url`; empty for pages from the same host as imgkeep."""


def rewrite_whole(page: bytes, linker: ImgLinks) -> bytes:
    """Rewrite a page that is there as a whole."""
    return rewrite_html(page, linker)


def rewrite_in_pieces(path: Path, linker: ImgLinks) -> None:
    """Rewrite a page as it comes, in little memory."""
    stream = HtmlStream(linker)
    with path.open("rb") as file:
        while piece := file.read(65536):
            sys.stdout.buffer.write(stream.feed(piece))
    sys.stdout.buffer.write(stream.close())


def main() -> None:
    """Rewrite the links that die, and no others."""
    path = Path(sys.argv[1])
    linker = ImgLinks(Temporary(datetime.now(UTC)), public_url=PUBLIC_URL)
    if "--pieces" in sys.argv:
        rewrite_in_pieces(path, linker)
    else:
        sys.stdout.buffer.write(rewrite_whole(path.read_bytes(), linker))


if __name__ == "__main__":
    main()
