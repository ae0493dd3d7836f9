"""
Access: signatures of this server on `/img`, tokens on `/api`.

A token is the one proof that counts. The address of a request proves nothing: a proxy on this machine makes all its
clients local, whether or not it adds fields that say so. On a loopback address browsers have a session instead
(`login.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.core.errors import Forbidden, Unauthorized
from imgkeep.core.http_headers import client_address, passed_through_us, read_host, read_origin
from imgkeep.core.ip_ranges import client_networks, unmap
from imgkeep.core.records import OWN, Client
from imgkeep.images.request_context import RequestContext, allow_fetch
from imgkeep.web import login_tickets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal

    from imgkeep.clock import Clock
    from imgkeep.core.http_headers import Fields
    from imgkeep.core.ip_ranges import Address, Network
    from imgkeep.core.signing import Signatures
    from imgkeep.core.source_url import ImgQuery
    from imgkeep.web.request_response import ImageRequest

ACCESS_HELP: Final = (
    "the API needs a token: send Authorization: Bearer <token>, with one of security.api_tokens or, where none is set, "
    "with what stands in the file api-token in the data folder"
)
LOG_IN_HELP: Final = "Browsers on this machine log in by the link that `imgkeep token --login` prints"
API_CLOSED: Final = (
    "the API is closed, because the file api-token could not be made in the data folder; the log says why. Set "
    "security.api_tokens"
)

_SAFE: Final = frozenset({"GET", "HEAD"})
"""Methods that change nothing (RFC 9110, 9.2.1), for which browsers send no `Origin` of their own accord."""
_BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of the API, as hashes: all that is compared has one length, and no hash opens the API."""

    hashes: tuple[bytes, ...]

    @classmethod
    def of(cls, tokens: Sequence[str]) -> Tokens:
        """Return these tokens."""
        return cls(tuple(sha256(token.encode()).digest() for token in tokens))

    def include(self, token: str) -> bool:
        """
        Tell whether a token is one of them. Each comparison takes the same time, so an attacker learns nothing from it.
        """
        # Bytes of the header that are no UTF-8 come as surrogates.
        given = sha256(token.encode("utf-8", "surrogateescape")).digest()
        equal = [compare_digest(given, each) for each in self.hashes]
        return any(equal)


@dataclass(frozen=True, slots=True)
class Auth:
    """
    Judges requests by the client that sends them.

    Attributes:
        signature: `security.signature`.
        tokens: `security.api_tokens`, or the token of this machine; none: the API is closed.
        local_token: Token that browsers on this machine log in by; `None`: they cannot.
        own_hosts: Names under which this machine calls the server; empty: other machines can reach it too.
        forwarded_header: `server.forwarded_header` in lower case.
        public_base_url: `server.public_url` without a slash at its end.
    """

    signature: Literal["off", "misses", "always"]
    signatures: Signatures
    tokens: Tokens
    local_token: str | None = field(repr=False)
    own_hosts: frozenset[str]
    trusted_proxies: tuple[Network, ...]
    forwarded_header: str
    public_base_url: str
    clock: Clock

    def authorize_image(self, request: ImageRequest, query: ImgQuery) -> RequestContext:
        """
        Return the context of a request for an image, and note until when the client may see the image.

        Raises:
            SignatureRequired, SignatureInvalid, SignatureExpired: The client may not even see stored images.
        """

        def authorize_fetch() -> None:
            if self.signature != "off":
                self._judge(query)

        if self.signature == "always":
            request.request_log.permitted_until = self._judge(query)
        return self.make_context(request, authorize_fetch)

    def make_context(self, request: ImageRequest, authorize_fetch: Callable[[], None] = allow_fetch) -> RequestContext:
        """Return the context of a request that may see stored images."""
        return RequestContext(
            head=request.head,
            from_own_node=passed_through_us(request.fields),
            authorize_fetch=authorize_fetch,
            client=self.identify_client(request),
            wait=request.presence.wait,
        )

    def _judge(self, query: ImgQuery) -> int | None:
        """Return when the permission of a URL ends. Raises as `authorize_image`."""
        if query.foreign is not None:
            return query.foreign.ends
        return self.signatures.judge(query.text, dict(query.options), self.clock().timestamp())

    def identify_client(self, request: ImageRequest) -> Client:
        """
        Return the client whose limits a request counts against: `OWN` for a token of the API, else the networks of its
        address. A peer without an address is one client by its name.
        """
        given = request.fields.getall("Authorization", [])
        if len(given) == 1 and self._has_token(given[0]):
            return OWN
        address = self.client_address(request.remote, request.fields)
        if isinstance(address, str):
            return Client((address,))
        # What a trusted proxy states, or cannot state, is no program of this machine, even if it says 127.0.0.1.
        is_stated = bool(self.trusted_proxies) and bool(request.fields.getall(self.forwarded_header, []))
        return Client(client_networks(address), loopback=unmap(address).is_loopback and not is_stated)

    def require_api_access(self, request: web.Request) -> None:
        """
        Require that the client may call the API.

        Raises:
            Forbidden: The `Origin` is malformed, which that of no browser is.
            Unauthorized: There is no token or a wrong one, and no session of a browser on this machine.
        """
        origin = request.headers.get("Origin", "null")
        if origin != "null" and read_origin(origin) is None:
            raise Forbidden("the Origin of the request is malformed")
        if not self.tokens.hashes:
            raise Unauthorized(API_CLOSED)
        given = request.headers.get("Authorization")
        if given is not None and self._has_token(given):
            return
        session = request.cookies.get(login_tickets.COOKIE)
        if self.local_token is None:
            raise Unauthorized(ACCESS_HELP)
        if session is None:
            raise Unauthorized(f"{ACCESS_HELP}. {LOG_IN_HELP}")
        self._require_own_page(request)
        if not login_tickets.is_valid_ticket(session, self.local_token, "session", self.clock()):
            raise Unauthorized(f"the session has ended; {ACCESS_HELP}")

    def log_in(self, request: web.Request) -> str | None:
        """
        Return a session for the log-in link of a request; `None`: the link is wrong or has ended.

        Raises:
            Unauthorized: The request came under a name that is not this machine's.
        """
        if self.local_token is None or not self._is_own_host(request.headers.get("Host", "")):
            raise Unauthorized("browsers log in on this machine only, where server.host is a loopback address")
        now = self.clock()
        if not login_tickets.is_valid_ticket(request.query.get("ticket", ""), self.local_token, "link", now):
            return None
        ends = int(now.timestamp()) + login_tickets.SESSION_LIFETIME_S
        return login_tickets.make_ticket(self.local_token, "session", ends)

    def _require_own_page(self, request: web.Request) -> None:
        """
        Require that only pages of this server can have made the browser send a cookie.

        Raises:
            Unauthorized: Another page can have done so.
        """
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if not self._is_own_host(host):
            raise Unauthorized(f"a session does not hold under this name; {ACCESS_HELP}")
        is_ours = request.method in _SAFE if origin is None else origin.lower() == f"http://{host}".lower()
        if not is_ours or request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
            raise Unauthorized(f"a session does not hold for pages of other servers; {ACCESS_HELP}")

    def _has_token(self, authorization: str) -> bool:
        given = _BEARER.fullmatch(authorization)
        return given is not None and self.tokens.include(given[1])

    def require_own_host(self, host: str | None) -> None:
        """
        Require a name of this machine, where only this machine can reach the server.

        Args:
            host: The `Host` of the request; `None`: HTTP/1.0, which no browser speaks.

        Raises:
            Forbidden: A page elsewhere may have made a browser here ask, under a name of its own (DNS rebinding).
        """
        if self.own_hosts and host is not None and not self._is_own_host(host):
            raise Forbidden(
                "this server answers this machine under its own names (localhost, 127.0.0.1): "
                "set server.public_url for another name, or server.trusted_proxies for a proxy in front"
            )

    def base_url(self, request: web.Request) -> str:
        """
        Return the prefix of this server's own paths: `server.public_url`, or the name by which this machine calls the
        server.

        Empty where other machines can reach the server: a client chooses `Host`, which would then get into other
        people's databases.
        """
        host = request.headers.get("Host", "")
        return self.public_base_url or (f"http://{host}" if self._is_own_host(host) else "")

    def _is_own_host(self, authority: str) -> bool:
        return read_host(authority) in self.own_hosts

    def client_address(self, peer: str, fields: Fields) -> Address | str:
        """Return the address of the client of a request, as far as its peer is trusted to state it."""
        return client_address(peer, fields, self.trusted_proxies, self.forwarded_header)


AUTH: Final = web.AppKey("auth", Auth)
