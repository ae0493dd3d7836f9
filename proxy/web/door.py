"""
Who may come in: our own signatures on `/img`, tokens on `/api`.

Without a token the API answers only where none but this machine can ask: on a loopback bind, to requests that no proxy
forwarded, under a name that is ours, and from no page of another site. The name is against DNS rebinding, where a page
elsewhere makes a browser here ask under a name of its own; the rest against what a page can send across sites without
asking (WHATWG Fetch, "CORS-safelisted request").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from proxy.core.address import client_networks
from proxy.core.errors import Unauthorized
from proxy.core.headers import client_address, passed_through_us
from proxy.core.model import Client
from proxy.service.visit import Visit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from aiohttp import web

    from proxy.core.address import Network
    from proxy.core.signing import Signatures
    from proxy.core.source import ImgQuery
    from proxy.ports import Clock
    from proxy.web.exchange import Ask

FORWARDING_FIELDS: Final = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")

THIS_MACHINE: Final = Client()

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]+)?")
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
class Door:
    """
    Judges requests by who sends them.

    Attributes:
        signature: `security.signature`.
        own_hosts: Names under which the API may be called without a token; empty: it may not be.
    """

    signature: Literal["off", "misses", "always"]
    signatures: Signatures
    tokens: Tokens
    own_hosts: frozenset[str]
    trusted_proxies: tuple[Network, ...]
    public_base: str
    """`server.public_url` without a slash at its end."""
    clock: Clock

    def admit(self, ask: Ask, query: ImgQuery) -> Visit:
        """
        Tell who asks for an image, and note until when it may be shown.

        Raises:
            SignatureRequired, SignatureInvalid, SignatureExpired: This visitor may not even see what is kept.
        """

        def insist() -> None:
            if self.signature != "off":
                self.signatures.judge(query.text, dict(query.options), self.clock().timestamp())

        if self.signature == "always":
            end = self.signatures.judge(query.text, dict(query.options), self.clock().timestamp())
            ask.notes.permitted_until = end
        return Visit(
            head=ask.head,
            came_from_us=passed_through_us(ask.fields),
            insist=insist,
            address=self._find_payer(ask),
            client=self.find_client(ask),
            joins_only=ask.site.is_side_door,
            wait=ask.presence.wait,
        )

    def find_client(self, ask: Ask) -> Client:
        """
        Return whose share of common resources a request takes. A peer that has no address is one client by its name;
        this machine's own programs have no limit, and neither has what a proxy on it passes on that is not trusted.
        """
        address = client_address(ask.remote, ask.fields, self.trusted_proxies)
        if isinstance(address, str):
            return Client((address,))
        return THIS_MACHINE if address.is_loopback else Client(client_networks(address))

    def insist_on_access(self, request: web.Request) -> None:
        """
        Let into the API who may call it.

        Raises:
            Unauthorized: There is no token or a wrong one, or the request is not certainly this machine's own.
        """
        if self.tokens.hashes:
            given = _BEARER.fullmatch(request.headers.get("Authorization", ""))
            if given is None:
                raise Unauthorized("the API needs a token: send Authorization: Bearer <token>")
            if not self.tokens.include(given[1]):
                raise Unauthorized("the token is none of security.api_tokens")
            return
        if not self.own_hosts:
            raise Unauthorized("the API needs a token where others reach this server: set security.api_tokens")
        if any(name in request.headers for name in FORWARDING_FIELDS):
            raise Unauthorized("the API needs a token for requests that were forwarded: set security.api_tokens")
        if not self._is_ours(request.headers.get("Host", "")):
            raise Unauthorized("the API does not answer under this name without a token: use server.host's own")
        origin = request.headers.get("Origin")
        strange = origin is not None and not self._is_ours(urlsplit(origin).netloc)
        if strange or request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
            raise Unauthorized("the API does not answer pages of other sites without a token")

    def own_base(self, request: web.Request) -> str:
        """
        Return what stands before our paths: `server.public_url`, or the name by which this machine calls us.

        Nothing where others can reach us: `Host` is the visitor's word, and would get into other people's databases.
        """
        host = request.headers.get("Host", "")
        return self.public_base or (f"http://{host}" if self._is_ours(host) else "")

    def _is_ours(self, authority: str) -> bool:
        host = _HOST.fullmatch(authority)
        return host is not None and host[1].strip("[]").lower() in self.own_hosts

    def _find_payer(self, ask: Ask) -> str | None:
        """
        Return whose allowance a fill counts against: an address, or the network of an IPv6 one, for its last 64 bits
        are its owner's to choose (RFC 4291, 2.5.4). `None`: this machine's own programs, unless they pass others' on.
        """
        address = client_address(ask.remote, ask.fields, self.trusted_proxies)
        if isinstance(address, str):
            return address
        if address.is_loopback:
            return str(address) if any(name in ask.fields for name in FORWARDING_FIELDS) else None
        return str(address) if address.version == 4 else f"{address.exploded[:19]}::/64"
