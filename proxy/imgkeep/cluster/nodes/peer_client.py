"""
Requests to the peer APIs of other nodes: signed, over TCP, with limits.

Rules:
- A request goes to the advertise_url of a live member, with the names of a lease or of an object alone.
- An answer counts if its proof shows that its sender knows `cluster.secret` (`authentication.py`).
- A node that is not reached within `CONNECT_TIMEOUT_S`, or refuses, is `Busy`: the caller does without it.
- A machine that is gone sends no reset. Keepalive probes of the kernel notice that within 11 s, even while a peer
  has nothing to send; a process that hangs is noticed when the peer is silent for longer than any fill is.
"""

from __future__ import annotations

import logging
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from imgkeep.cluster.nodes.authentication import ANSWER_FIELD, REQUEST_FIELD
from imgkeep.core.errors import Busy, StorageError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable
    from typing import Any

    from imgkeep.cluster.nodes.authentication import RequestSigner
    from imgkeep.cluster.nodes.member import Member

CONNECT_TIMEOUT_S: Final = 2
"""Timeout for a connection to a node, with the wait for one of `CONNECTIONS_MAX`."""
CONNECTIONS_MAX: Final = 256
"""Maximum number of connections of a process to one node: as many images it follows there at a time."""
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 5, 2, 3
"""When the kernel begins to probe a silent connection, how often, and when it gives up."""

_REFUSED_HINT: Final = (
    "what answers at its cluster.advertise_url has another cluster.secret or cluster.advertise_url, or is no node of "
    "this cluster"
)

log = logging.getLogger(__name__)


class PeerClient:
    """
    The connections of one process to the other nodes.

    Args:
        signer: Signs the requests.
        stall_timeout_s: Timeout for the next bytes of a peer.
        ssl_context: Verifies the certificates of https:// URLs; `None`: by the authorities of this machine.
        count: Callback with the outcome of each request: `answered`, `refused` or `unreachable`.
    """

    def __init__(
        self,
        signer: RequestSigner,
        *,
        stall_timeout_s: float,
        ssl_context: ssl.SSLContext | None = None,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._count = count
        self._signer = signer
        self._stall_timeout_s = stall_timeout_s
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None
        self._failing: set[str] = set()
        """The nodes whose last request failed: each is logged once."""

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def get(self, member: Member, target: str) -> AsyncGenerator[aiohttp.ClientResponse]:
        """
        Send a GET request to a node, and read its answer within the block.

        Raises:
            Busy: The node cannot be reached, refuses the request, or is none of this cluster.
            aiohttp.ClientError, TimeoutError: The answer breaks off within the block.
        """
        response = await self._request(member, target)
        try:
            yield response
        finally:
            response.close()

    async def _request(self, member: Member, target: str) -> aiohttp.ClientResponse:
        try:
            signed = self._signer.sign(member.advertise_url, "GET", target)
            response = await self._open_session().get(
                URL(member.advertise_url + target, encoded=True),
                headers={REQUEST_FIELD: signed.field},
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, StorageError, ValueError) as error:  # ValueError: no URL
            self._note_failure(member, "unreachable", "node not reached", cause=type(error).__name__)
            raise Busy("the node that fetches this image cannot be reached") from None
        if self._signer.is_answer(signed, response.status, response.headers.get(ANSWER_FIELD, "")):
            self._count("answered")
            self._failing.discard(member.node)
            return response
        response.close()
        self._note_failure(member, "refused", "node refused a request", hint=_REFUSED_HINT)
        raise Busy("the node that fetches this image refuses the request")

    def _note_failure(self, member: Member, outcome: str, message: str, **facts: str) -> None:
        """Count a failure, and log the first one of a node."""
        self._count(outcome)
        if member.node not in self._failing:
            self._failing.add(member.node)
            log.warning(message, extra={"node": member.node, "url": member.advertise_url, **facts})

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=CONNECTIONS_MAX,
                    ssl=True if self._ssl_context is None else self._ssl_context,
                    socket_factory=_open_socket,
                ),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=CONNECT_TIMEOUT_S,
                    sock_connect=CONNECT_TIMEOUT_S,
                    sock_read=self._stall_timeout_s,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


def _open_socket(address: tuple[int, int, int, str, Any]) -> socket.socket:
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock
