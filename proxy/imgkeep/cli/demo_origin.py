"""
The origin of `demo`: its links die, and its page shows them directly and through imgkeep.

Rules:
- It behaves as a real origin: a link carries an expiry and a signature (HMAC-SHA-256); afterwards the answer is 403.
- It has no state: a round is the expiry of its links, which stands in the address of its page.
- Its imgkeep is the one that `serve` starts, but may fetch from this one address and port, and from nowhere else.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from importlib import resources
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from aiohttp import web

from imgkeep.cli.demo_images import SCENES, draw

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

HOST: Final = "127.0.0.1"
PROVIDER: Final = "imgkeep demo"
MILLISECONDS_MAX: Final = 13
"""Maximum number of digits of an expiry: up to the year 2286."""
NAMES: Final = tuple(SCENES)
DENIED: Final = (
    '<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>\n'
)


def settings(folder: str) -> Mapping[str, Any]:
    """Return the configuration of the demonstration, as `config.toml` would hold it."""
    example = f"http://{HOST}/pictures/0/dawn.png?expires=1768050000000&signature={'0a' * 32}"
    return {
        "server": {"host": HOST, "port": 0},
        "store": {"url": f"file:{folder}", "fallback": f"file:{folder}", "free_bytes_min": 0},
        "database": {"url": f"sqlite:{folder}/imgkeep.db"},
        "sources": {
            "allow": [HOST],
            "providers": [
                {
                    "name": PROVIDER,
                    "source": "proxy/imgkeep/cli/demo_origin.py",
                    "date": "2026-11-30",
                    "hosts": [HOST],
                    "paths": ["/pictures/*"],
                    "signed_by": {"signature": "hex64", "expires": "epoch-ms"},
                    "expires": ["epoch-ms expires"],
                    "enforced": True,
                    "examples": [example],
                    "counterexamples": [f"http://{HOST}/"],
                }
            ],
        },
        "fetch": {"allow_networks": [f"{HOST}/32"], "retries_max": 0},
        "log": {"level": "warning", "access": False},
    }


def connect_only_to(port: int, open_socket: Callable[[Any], socket.socket]) -> Callable[[Any], socket.socket]:
    """Return a socket factory that refuses connections to all but the origin of the demonstration."""

    def opening(info: Any) -> socket.socket:
        address, to = info[4][:2]
        if ip_address(address) != ip_address(HOST) or to != port:
            raise PermissionError(errno.EACCES, "a demonstration fetches from its own origin only")
        return open_socket(info)

    return opening


@dataclass(slots=True)
class DemoOrigin:
    """
    The origin and its page.

    Attributes:
        life_ms: The life of each link, from the first load of its page.
        now_ms: Returns the time in epoch milliseconds.
        imgkeep: The URL of imgkeep, once it is known.
    """

    life_ms: int
    now_ms: Callable[[], int]
    imgkeep: str = ""
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _drawn: dict[str, bytes] = field(default_factory=dict, repr=False)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1024)
        app.router.add_get("/", self.start_round)
        app.router.add_get(f"/{{round:[0-9]{{1,{MILLISECONDS_MAX}}}}}", self.page)
        app.router.add_get("/pictures/{round}/{name}.png", self.image)
        return app

    async def start_round(self, _: web.Request) -> web.Response:
        """Begin a round, whose links no cache has stored yet."""
        ends = self.now_ms() + self.life_ms
        return web.Response(status=303, headers={"Location": f"/{ends}", "Cache-Control": "no-store"})

    async def page(self, request: web.Request) -> web.Response:
        """Show the same links twice."""
        ends, now = int(request.match_info["round"]), self.now_ms()
        if ends > now + self.life_ms:
            raise web.HTTPNotFound(text="no such round")
        nonce = secrets.token_urlsafe(16)
        base = f"http://{request.host}"
        links = {name: self.link(base, str(ends), name) for name in NAMES}
        policy = (
            f"default-src 'none'; img-src 'self' data: {self.imgkeep}; connect-src 'self' {self.imgkeep}; "
            f"style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        text = self._render(links, max(0, ends - now), nonce)
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def image(self, request: web.Request) -> web.Response:
        """Answer as object stores do: the image until the expiry of its link, 403 afterwards."""
        number, name = request.match_info["round"], request.match_info["name"]
        ends, signature = request.query.get("expires", ""), request.query.get("signature", "")
        headers = {"Cache-Control": "no-store"}
        good = name in SCENES and hmac.compare_digest(signature.encode(), self._sign(number, name, ends).encode())
        if not good or not self.now_ms() < int(ends):
            return web.Response(status=403, text=DENIED, content_type="application/xml", headers=headers)
        if name not in self._drawn:
            self._drawn[name] = await asyncio.to_thread(draw, name)
        return web.Response(body=self._drawn[name], content_type="image/png", headers=headers)

    def link(self, base: str, number: str, name: str) -> str:
        """Return a link that expires with its round."""
        signature = self._sign(number, name, number)
        return f"{base}/pictures/{number}/{name}.png?expires={number}&signature={signature}"

    def _sign(self, number: str, name: str, ends: str) -> str:
        return hmac.new(self._secret, f"{number} {name} {ends}".encode(), sha256).hexdigest()

    def _render(self, links: Mapping[str, str], left_ms: int, nonce: str) -> str:
        ended = left_ms == 0
        seconds = self.life_ms // 1000
        shown = {
            "left_ms": str(left_ms),
            "life_ms": str(self.life_ms),
            "refresh": str(left_ms // 1000 + 1 if left_ms else 86_400),
            "nonce": nonce,
            "state": "ended" if ended else "alive",
            "title": "The links have ended" if ended else f"These links live for {seconds} seconds",
            "words": "imgkeep fetched the pictures while their links worked, and shows them from now on."
            if ended
            else "Wait and see: the page loads once more when they end.",
            "direct_code": escape('<img src="…/dawn.png?expires=…&signature=…">'),
            "imgkeep_code": escape('<img src="/img?src=…%2Fdawn.png%3Fexpires%3D…">'),
            "direct_images": _images(links),
            # Another spelling after the end: the images then come from imgkeep, and not from the browser's cache.
            "imgkeep_images": _images({name: self._through(link, again=ended) for name, link in links.items()}),
        }
        clock = f'<div class="clock" role="timer"><b>{-(-left_ms // 1000)}<small>s</small></b></div>'
        shown["clock"] = "" if ended else clock
        page = (resources.files(__package__) / "static" / "demo.html").read_text("utf-8")
        for name, value in shown.items():
            page = page.replace("{{" + name + "}}", value)
        return page

    def _through(self, link: str, *, again: bool) -> str:
        value = quote(link, safe="")
        return f"{self.imgkeep}/img?src={value.replace('%3A', '%3a') if again else value}"


def _images(links: Mapping[str, str]) -> str:
    return "".join(f'<img src="{escape(link)}" alt="{name}" width="480" height="320">' for name, link in links.items())
