"""
Authentication of requests between nodes: an HMAC under `cluster.secret`, in a header field of each request.

The field `Imgkeep-Peer` has five parts, separated by spaces: `v1`, the id of the member that asks, the time in seconds
since the epoch with three decimals, a nonce of 32 hexadecimal digits, and the MAC. The MAC is HMAC-SHA-256, in
hexadecimal digits, under `cluster.secret` as ASCII, of these lines, joined by LF:

    imgkeep-peer-v1
    the advertise_url of the node that is asked, without a slash at its end
    the id of the member that asks
    the time
    the nonce
    the method
    the path and the query, as in the request line
    SHA-256 of the body, in hexadecimal digits

The field `Imgkeep-Peer-Answer` of the response is HMAC-SHA-256, under the same key, of `imgkeep-peer-answer-v1`, the
MAC of the request and the status, joined by LF: it proves that the other end knows the secret, and which request it
answers. It does not cover the body: TLS does (`docs/security.md`).

Rules:
- The time is that of the database (`Membership.now`), so no clock of a node counts.
- A time is good for `WINDOW_S` in either direction. A nonce counts once: each process remembers those that it has
  accepted for as long as their time is good. Past `NONCES_MAX` it forgets the oldest, and refuses all requests of
  that time or an earlier one: the window shrinks, and no replay gets in.
- Only a good MAC costs memory, so only a member can fill it.
- The advertise_url makes a request good for one node. Its workers remember apart, so within the window a captured
  request may be accepted once by each of them; it says no more than it said to the first.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST_FIELD: Final = "Imgkeep-Peer"
ANSWER_FIELD: Final = "Imgkeep-Peer-Answer"
WINDOW_S: Final = 60
"""Maximum difference between the time of a request and the receiver's: the database's clock for both, read apart."""
NONCES_MAX: Final = 65_536
"""Maximum number of nonces that a process remembers: 300 bytes each, 20 MB."""
NONCE_BYTES: Final = 16

_VERSION: Final = "v1"
_FIELD: Final = re.compile(
    rf"{_VERSION} ([!-~]{{1,128}}) ([0-9]{{1,12}}\.[0-9]{{3}}) ([0-9a-f]{{32}}) ([0-9a-f]{{64}})"
)


class RequestRefused(Exception):
    """A request that no member of this cluster has made, or one that was made before; `reason`: for the metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """
    The proof of a request.

    Attributes:
        field: The value of `REQUEST_FIELD`.
        mac: The MAC in it, by which the answer refers to the request.
    """

    field: str
    mac: str


class RequestSigner:
    """
    Signs the requests of one member.

    Args:
        secret: `cluster.secret`.
        member: The id of this member.
        now: Returns the time by the database's clock. Raises: StorageError: It is not known.
        draw_nonce: Returns `NONCE_BYTES` random bytes in hexadecimal digits.
    """

    def __init__(self, secret: str, member: str, *, now: Callable[[], float], draw_nonce: Callable[[], str]) -> None:
        self._key = secret.encode()
        self._member = member
        self._now = now
        self._draw_nonce = draw_nonce

    def sign(self, receiver: str, method: str, target: str, body: bytes = b"") -> SignedRequest:
        """
        Sign a request to the node with the advertise_url `receiver`.

        Raises:
            StorageError: The time of the cluster is not known.
        """
        time, nonce = f"{self._now():.3f}", self._draw_nonce()
        mac = _sign_request(self._key, receiver, self._member, time, nonce, method, target, body)
        return SignedRequest(f"{_VERSION} {self._member} {time} {nonce} {mac}", mac)

    def is_answer(self, request: SignedRequest, status: int, given: str) -> bool:
        """Tell whether `given` is the `ANSWER_FIELD` of a node of this cluster for this request."""
        return compare_digest(sign_answer(self._key, request.mac, status), given.encode("utf-8", "replace"))


class RequestVerifier:
    """
    Verifies the requests to one node.

    Args:
        secret: `cluster.secret`.
        receiver: The advertise_url of this node.
        now: As for `RequestSigner`.
        nonces_max: Maximum number of nonces that are remembered.
    """

    def __init__(self, secret: str, receiver: str, *, now: Callable[[], float], nonces_max: int = NONCES_MAX) -> None:
        self._key = secret.encode()
        self._receiver = receiver
        self._now = now
        self._nonces = _Nonces(nonces_max)

    def verify(self, method: str, target: str, fields: list[str], body: bytes = b"") -> str:
        """
        Return the MAC of a request, by which the answer refers to it.

        Args:
            method: The method.
            target: Path and query, as in the request line.
            fields: The values of `REQUEST_FIELD`.
            body: The body.

        Raises:
            RequestRefused: No member of this cluster has made the request now, and for this node.
            StorageError: The time of the cluster is not known.
        """
        match = _FIELD.fullmatch(fields[0]) if len(fields) == 1 else None
        # A malformed field takes as long as a wrong one.
        member, time, nonce, given = match.groups() if match is not None else ("", "0", "", "")
        expected = _sign_request(self._key, self._receiver, member, time, nonce, method, target, body)
        if not compare_digest(expected, given):
            raise RequestRefused("signature")
        now = self._now()
        if abs(now - float(time)) > WINDOW_S:
            raise RequestRefused("time")
        if not self._nonces.add(nonce, float(time), now):
            raise RequestRefused("replay")
        return expected

    def prove(self, mac: str, status: int) -> str:
        """Return the `ANSWER_FIELD` of an answer with `status` to the request of this MAC."""
        return sign_answer(self._key, mac, status).decode()


def sign_answer(key: bytes, mac: str, status: int) -> bytes:
    """Return the MAC of an answer, in hexadecimal digits."""
    return digest(key, f"imgkeep-peer-answer-{_VERSION}\n{mac}\n{status}".encode(), "sha256").hex().encode()


def _sign_request(  # noqa: PLR0913, PLR0917 - the lines in their order
    key: bytes, receiver: str, member: str, time: str, nonce: str, method: str, target: str, body: bytes
) -> str:
    lines = (f"imgkeep-peer-{_VERSION}", receiver, member, time, nonce, method, target, sha256(body).hexdigest())
    return digest(key, "\n".join(lines).encode("utf-8", "surrogateescape"), "sha256").hex()


class _Nonces:
    """The nonces that were accepted, within a budget."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._known: set[str] = set()
        self._by_time: list[tuple[float, str]] = []
        """A heap, the oldest first."""
        self._forgotten_until = float("-inf")
        """The latest time among the nonces that were forgotten too early."""

    def add(self, nonce: str, time: float, now: float) -> bool:
        """Remember a nonce; `False`: it is known already, or may have been forgotten."""
        while self._by_time and self._by_time[0][0] < now - WINDOW_S:
            self._known.discard(heapq.heappop(self._by_time)[1])
        if nonce in self._known or time <= self._forgotten_until:
            return False
        self._known.add(nonce)
        heapq.heappush(self._by_time, (time, nonce))
        if len(self._by_time) > self._size_max:
            self._forgotten_until, oldest = heapq.heappop(self._by_time)
            self._known.discard(oldest)
        return True
