"""
An image service on this machine for the examples. Its links are signed and die after a minute, as those of others do.

    python examples/origin.py

- `/link` answers with a new link, as text.
- `/page.html` is a page with a picture under a new link, and one under a link that does not die.
- `/pictures/NAME.png` is a picture; once its link has ended, 403.
"""

from __future__ import annotations

import hmac
import secrets
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from imgkeep.cli.demo_images import draw

PORT = 9000
LIFE = timedelta(seconds=60)
SECRET = secrets.token_bytes(32)
TIME_FORMAT = "%Y%m%dT%H%M%SZ"

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Pictures that stay</title>
<link rel="icon" href="data:,">
<h1>Pictures that stay</h1>
<!-- A link that dies is rewritten, another stays as it is. -->
<img alt="temporary" width="480" height="320" src="{temporary}">
<img alt="permanent" width="480" height="320" src="{permanent}">
"""


def now() -> datetime:
    """Return the time by the clock of this machine."""
    return datetime.now(UTC)


def sign(path: str, time: str) -> str:
    """Return the signature of a link that was made at `time`."""
    return hmac.new(SECRET, f"{time} {path}".encode(), sha256).hexdigest()


def link(path: str = "/pictures/dusk.png") -> str:
    """Return a link that dies, in the form of Amazon S3's."""
    time = now().strftime(TIME_FORMAT)
    scope = f"EXAMPLE%2F{time[:8]}%2Feu-central-1%2Fs3%2Faws4_request"
    return (
        f"http://127.0.0.1:{PORT}{path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={scope}&X-Amz-Date={time}"
        f"&X-Amz-Expires={int(LIFE.total_seconds())}&X-Amz-SignedHeaders=host&X-Amz-Signature={sign(path, time)}"
    )


def page() -> str:
    """Return a page with a new link."""
    return PAGE.format(temporary=escape(link()), permanent=f"http://127.0.0.1:{PORT}/pictures/noon.png")


def is_alive(path: str, query: str) -> bool:
    """Whether a link was made here, and has not ended."""
    given = {name: values[0] for name, values in parse_qs(query).items()}
    time = given.get("X-Amz-Date", "")
    if not hmac.compare_digest(given.get("X-Amz-Signature", "").encode(), sign(path, time).encode()):
        return False
    return now() < datetime.strptime(time, TIME_FORMAT).replace(tzinfo=UTC) + LIFE


@cache
def picture(name: str) -> bytes:
    """Return a picture as PNG."""
    return draw(name)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def do_GET(self) -> None:
        """Answer with a link, a page or a picture."""
        url = urlsplit(self.path)
        match url.path:
            case "/link":
                self.answer(200, "text/plain", link().encode())
            case "/page.html":
                self.answer(200, "text/html; charset=utf-8", page().encode())
            case "/pictures/noon.png":
                self.answer(200, "image/png", picture("noon"))
            case "/pictures/dusk.png" if is_alive(url.path, url.query):
                self.answer(200, "image/png", picture("dusk"))
            case "/pictures/dusk.png":
                self.answer(403, "application/xml", b"<Error><Message>Request has expired</Message></Error>")
            case _:
                self.answer(404, "text/plain", b"There are /link, /page.html and /pictures/noon.png\n")

    def answer(self, status: int, media_type: str, body: bytes) -> None:
        """Send an answer that no browser stores."""
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - as the library has it
        """Print what was asked for, without the query: a link is a credential."""
        sys.stderr.write(f"origin: {urlsplit(self.path).path} {int(code)}\n")


def main() -> None:
    """Serve until Ctrl-C."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    except OSError as error:
        sys.exit(f"origin: port {PORT}: {error.strerror}")
    with suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
