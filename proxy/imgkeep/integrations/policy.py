"""
The policy of imgkeep in an application: from the options, or from imgkeep itself.

Rules:
- A link that imgkeep would refuse stays: the image may load unchanged, a refusal never shows it.
- A page never waits for a response of imgkeep. Until the first one, a site with `allow="ask"` rewrites no link.
- A policy holds until the next one: during an outage of imgkeep a site goes on as before, also without any policy. If
  imgkeep refuses to send the policy, the options apply.
- The client logs neither links nor the token.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from ipaddress import ip_network
from threading import Thread
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from imgkeep.core.identity import places_of
from imgkeep.core.policy import PORTS, Policy
from imgkeep.core.policy_document import read_ladder, read_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.core.identity import ProviderRules

KNOWN: Final = ("known",)
ANY: Final = ("*",)

ASK_EVERY_S: Final = 300
"""Interval between two requests: the policy changes when an operator restarts imgkeep with other settings."""
RETRY_S: Final = 15
"""Interval before a retry: a restart of imgkeep takes seconds."""
TIMEOUT_S: Final = 10
"""Timeout for a request, and for its whole response."""
ANSWER_BYTES_MAX: Final = 1 << 20
"""Maximum size of a response: some ten thousand patterns."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """
    The rules of one imgkeep.

    Attributes:
        policy: Its policy for sources.
        needs_key: Whether it refuses links without a signature.
        ladder: Its `derive.widths`, if they are known.
    """

    policy: Policy
    needs_key: bool = False
    ladder: tuple[int, ...] = ()


def make_policy(
    allow: Sequence[str],
    deny: Sequence[str],
    provider_rules: ProviderRules,
    *,
    ports: Sequence[int] = PORTS,
    networks: Sequence[str] = (),
) -> Policy:
    """
    Return a policy of patterns as in `sources.allow` and `sources.deny`.

    Raises:
        ValueError: A pattern can match nothing, or is a word that only a server understands; the message names the
            option.
    """
    for name, patterns, words in (("allow", allow, {"auto"}), ("deny", deny, {"auto", "known", "shared"})):
        if isinstance(patterns, str):
            raise ValueError(f'{name}: is a list of patterns, as in ["*.example.com"]')  # noqa: TRY004 - as elsewhere
        _check(name, patterns, words)
    try:
        read = tuple(map(ip_network, networks))
    except ValueError as error:
        raise ValueError(f"allow_networks: {error}") from None
    return Policy(
        hosts_allowed=provider_rules.resolve(allow),
        hosts_denied=tuple(deny),
        ports=frozenset(ports),
        networks=read,
        names=partial(places_of, provider_rules=provider_rules),
    )


def _check(name: str, patterns: Sequence[str], words: set[str]) -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"{name}: {pattern!r} is no pattern")  # noqa: TRY004 - as elsewhere
        if pattern.lower() in words:
            raise ValueError(f"{name}: '{pattern}' is no pattern of hosts; write them out")
        if pattern not in {"known", "shared"}:
            try:
                Policy(hosts_allowed=(pattern,), hosts_denied=(), ports=frozenset(), networks=())
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


class PolicyClient:
    """
    A client that fetches the rules of an imgkeep by `GET /api/policy` in a thread of its own.

    Args:
        server: URL of imgkeep.
        token: API token; white space around it does not count, such as the line end of a file.
        provider_rules: The application's provider rules.
        otherwise: Rules if imgkeep refuses, as for an invalid token.

    Raises:
        ValueError: `server` is no http(s) URL.
    """

    def __init__(  # noqa: PLR0913 - the intervals are for tests
        self,
        server: str,
        token: str,
        provider_rules: ProviderRules,
        otherwise: Rules,
        *,
        retry_s: float = RETRY_S,
        every_s: float = ASK_EVERY_S,
    ) -> None:
        parts = urlsplit(server)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            raise ValueError(
                "allow: to ask, imgkeep's absolute http:// or https:// URL has to be in save or public_url"
            )
        self._host, self._port, self._is_tls = parts.hostname, parts.port, parts.scheme == "https"
        self._path = f"{parts.path.rstrip('/')}/api/policy"
        self._headers = {"Authorization": f"Bearer {token.strip()}"}
        self._provider_rules, self._otherwise = provider_rules, otherwise
        self._retry_s, self._every_s = retry_s, every_s
        self._thread: Thread | None = None
        self._ask_at = 0.0
        self._failure = ""
        self._rules: Rules | None = None
        self._begin()

    @property
    def current(self) -> Rules | None:
        """Return the current rules; `None`: none yet. Start a request if they are missing or old."""
        if time.monotonic() >= self._ask_at:
            self._begin()
        return self._rules

    def _begin(self) -> None:
        # In a child of a fork, threads of its parent are not alive.
        if self._thread is not None and self._thread.is_alive():
            return
        thread = Thread(target=self._ask, name="imgkeep-policy", daemon=True)
        with suppress(RuntimeError):  # no threads at the end of a process
            thread.start()
            self._thread = thread

    def _ask(self) -> None:
        try:
            self._rules = read_rules(self._get(), self._provider_rules)
        except Exception as error:  # noqa: BLE001 - pages go on, whatever an answer holds
            # The message of another exception may contain the request, so the log has only its type.
            is_away = isinstance(error, PolicyUnavailable) and error.is_away
            self._fail(str(error) if isinstance(error, PolicyUnavailable) else type(error).__name__, is_away=is_away)
        else:
            self._failure, self._ask_at = "", time.monotonic() + self._every_s

    def _fail(self, failure: str, *, is_away: bool) -> None:
        self._ask_at = time.monotonic() + self._retry_s
        if not is_away:
            self._rules = self._rules or self._otherwise
        if failure != self._failure:
            self._failure = failure
            log.warning("policy of imgkeep not fetched: %s", failure)

    def _get(self) -> bytes:
        # No proxy and no redirect: the token is for this server alone.
        kind = HTTPSConnection if self._is_tls else HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise PolicyUnavailable(f"it answers {response.status}", is_away=response.status >= 500)
            return _read(response)
        except (OSError, HTTPException) as error:
            raise PolicyUnavailable(type(error).__name__, is_away=True) from None
        finally:
            connection.close()


class PolicyUnavailable(Exception):
    """
    A failure to fetch the policy.

    Args:
        message: The reason, without any part of the request.
        is_away: Whether a retry may succeed: no response, or a 5xx.
    """

    def __init__(self, message: str, *, is_away: bool = False) -> None:
        super().__init__(message)
        self.is_away = is_away


def read_rules(body: bytes, provider_rules: ProviderRules) -> Rules:
    """
    Parse the response to `GET /api/policy`.

    Raises:
        PolicyUnavailable: It is something else.
    """
    try:
        told = json.loads(body)
        if not isinstance(told, dict):
            raise PolicyUnavailable("its answer is no policy")
        policy, needs_key = read_policy(told, partial(places_of, provider_rules=provider_rules))
    except (ValueError, RecursionError):
        raise PolicyUnavailable("its answer is no policy") from None
    return Rules(policy, needs_key, read_ladder(told))


def _read(response: HTTPResponse) -> bytes:
    """Read a response within limits of bytes and time, however slowly it comes."""
    body, end = bytearray(), time.monotonic() + TIMEOUT_S
    while piece := response.read1(65_536):
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise PolicyUnavailable("its answer is too large")
        if time.monotonic() > end:
            raise PolicyUnavailable("its answer is too slow", is_away=True)
    return bytes(body)
