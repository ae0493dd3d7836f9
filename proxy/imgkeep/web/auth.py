"""
Who may come in: our own signatures on `/img`, tokens on `/api`.

A token is the one proof that counts. Where a request comes from is none: a proxy on this machine makes all its clients
local, whether or not it adds fields that say so. On a loopback address browsers have a session instead (`login.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Forbidden, Unauthorized
from imgkeep.core.http_headers import client_address, passed_through_us, read_host, read_origin
from imgkeep.core.ip_ranges import client_networks, unmap
from imgkeep.core.records import OWN, Client
from imgkeep.images.context import RequestContext
from imgkeep.web import login

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from aiohttp import web

    from imgkeep.clock import Clock
    from imgkeep.core.http_headers import Fields
    from imgkeep.core.ip_ranges import Address, Network
    from imgkeep.core.signing import Signatures
    from imgkeep.core.source_url import ImgQuery
    from imgkeep.web.messages import ImageRequest

TOKEN_HELP: Final = (
    "the API needs a token: send Authorization: Bearer <token>, with one of security.api_tokens or, where none is set, "
    "with what stands in the file api-token in the data folder"
)
LOG_IN_HELP: Final = "Browsers on this machine log in by the link that `imgkeep token --login` prints"
API_CLOSED: Final = (
    "the API is closed, because the file api-token could not be made in the data folder; the log says why. Set "
    "security.api_tokens"
)

_SAFE: Final = frozenset({"GET", "HEAD"})
"""Methods that change nothing (RFC 9110, 9.2.1), for which browsers tell no `Origin` of their own accord."""
_BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of the API, as hashes: what is compared has one length, and what is held opens nothing."""

    hashes: tuple[bytes, ...]

    @classmethod
    def of(cls, tokens: Sequence[str]) -> Tokens:
        return cls(tuple(sha256(token.encode()).digest() for token in tokens))

    def include(self, token: str) -> bool:
        # Bytes of the header that are no UTF-8 come as surrogates.
        given = sha256(token.encode("utf-8", "surrogateescape")).digest()
        equal = [compare_digest(given, each) for each in self.hashes]
        return any(equal)


@dataclass(frozen=True, slots=True)
class Auth:
    """
    Judges requests by who sends them.

    Attributes:
        signature: `security.signature`.
        tokens: `security.api_tokens`, or the token of this machine; none: the API is closed.
        local_token: What browsers on this machine log in by; `None`: they do not.
        own_hosts: Names under which this machine calls us; empty: others can reach us too.
        forwarded_header: `server.forwarded_header` in lower case.
    """

    signature: Literal["off", "misses", "always"]
    signatures: Signatures
    tokens: Tokens
    local_token: str | None = field(repr=False)
    own_hosts: frozenset[str]
    trusted_proxies: tuple[Network, ...]
    forwarded_header: str
    public_base_url: str
    """`server.public_url` without a slash at its end."""
    clock: Clock

    def authorize_image(self, ask: ImageRequest, query: ImgQuery) -> RequestContext:
        """
        Tell who asks for an image, and note until when it may be shown.

        Raises:
            SignatureRequired, SignatureInvalid, SignatureExpired: This visitor may not even see what is kept.
        """

        def authorize_fetch() -> None:
            if self.signature != "off":
                self.signatures.judge(query.text, dict(query.options), self.clock().timestamp())

        if self.signature == "always":
            end = self.signatures.judge(query.text, dict(query.options), self.clock().timestamp())
            ask.request_log.permitted_until = end
        return RequestContext(
            head=ask.head,
            from_own_node=passed_through_us(ask.fields),
            authorize_fetch=authorize_fetch,
            client=self.identify_client(ask),
            wait=ask.presence.wait,
        )

    def identify_client(self, ask: ImageRequest) -> Client:
        """
        Return whose limits a request counts against: `OWN` for a token of the API, else the networks of its address. A
        peer that has no address is one client by its name.
        """
        given = ask.fields.getall("Authorization", [])
        if len(given) == 1 and self._has_token(given[0]):
            return OWN
        address = self.client_address(ask.remote, ask.fields)
        if isinstance(address, str):
            return Client((address,))
        # What a trusted proxy tells, or cannot tell, is no program of this machine, even if it says 127.0.0.1.
        is_told = bool(self.trusted_proxies) and bool(ask.fields.getall(self.forwarded_header, []))
        return Client(client_networks(address), loopback=unmap(address).is_loopback and not is_told)

    def require_api_access(self, request: web.Request) -> None:
        """
        Let into the API who may call it.

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
        session = request.cookies.get(login.COOKIE)
        if self.local_token is None:
            raise Unauthorized(TOKEN_HELP)
        if session is None:
            raise Unauthorized(f"{TOKEN_HELP}. {LOG_IN_HELP}")
        self._require_own_page(request)
        if not login.holds(session, self.local_token, "session", self.clock()):
            raise Unauthorized(f"the session has ended; {TOKEN_HELP}")

    def log_in(self, request: web.Request) -> str | None:
        """
        Return a session for the log-in link that was opened; `None`: it is wrong or has ended.

        Raises:
            Unauthorized: It was not opened under a name of this machine.
        """
        if self.local_token is None or not self._is_own_host(request.headers.get("Host", "")):
            raise Unauthorized("browsers log in on this machine only, where server.host is a loopback address")
        now = self.clock()
        if not login.holds(request.query.get("ticket", ""), self.local_token, "link", now):
            return None
        return login.make_ticket(self.local_token, "session", int(now.timestamp()) + login.SESSION_LIFETIME_S)

    def _require_own_page(self, request: web.Request) -> None:
        """
        Let a cookie count where no page but our own can have had the browser send it.

        Raises:
            Unauthorized: One can.
        """
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if not self._is_own_host(host):
            raise Unauthorized(f"a session does not hold under this name; {TOKEN_HELP}")
        is_ours = request.method in _SAFE if origin is None else origin.lower() == f"http://{host}".lower()
        if not is_ours or request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
            raise Unauthorized(f"a session does not hold for pages of other servers; {TOKEN_HELP}")

    def _has_token(self, authorization: str) -> bool:
        given = _BEARER.fullmatch(authorization)
        return given is not None and self.tokens.include(given[1])

    def require_own_host(self, host: str | None) -> None:
        """
        Refuse to show what is stored or counted under a name that is not ours, where only this machine can ask.

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
        Return what stands before our paths: `server.public_url`, or the name by which this machine calls us.

        Empty where others can reach us: `Host` is the client's word, and would get into other people's databases.
        """
        host = request.headers.get("Host", "")
        return self.public_base_url or (f"http://{host}" if self._is_own_host(host) else "")

    def _is_own_host(self, authority: str) -> bool:
        return read_host(authority) in self.own_hosts

    def client_address(self, peer: str, fields: Fields) -> Address | str:
        """Return the address of the client of a request, as far as its peer is trusted to tell it."""
        return client_address(peer, fields, self.trusted_proxies, self.forwarded_header)
