"""
Hands links to a running imgkeep as they are rewritten, so that images nobody opens are kept too.

Rules:
- Whoever notes a link waits for nothing and hears of no error. One thread does the rest; it begins with the first link,
  in each process that has one, so it survives forks.
- What waits is bounded, and so is what is remembered. Where imgkeep is away for long, links are dropped and counted:
  pages that are shown again hand them again.
- An image is handed once, however often its link is signed anew, and however many pages show it.
- Neither links nor the token are logged.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict, deque
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Condition, Thread
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from weakref import WeakSet

from imgkeep.core.errors import SourceRejected
from imgkeep.core.http_headers import read_retry_after
from imgkeep.core.identity import identify_url

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

LINKS_WAITING_MAX: Final = 2_000
"""The links of some hundred pages, which are one or two megabytes."""
LINKS_REMEMBERED_MAX: Final = 20_000
BATCH_LINKS_MAX: Final = 100
GATHER_S: Final = 0.2
"""So that a page is one job, or few; links live for minutes."""
TIMEOUT_S: Final = 10
RETRY_DELAYS_S: Final = (1.0, 4.0, 15.0)
"""A restart of imgkeep takes seconds. When links of minutes have waited longer, newer ones are worth more."""
TELL_EVERY_S: Final = 60
ANSWER_BYTES_MAX: Final = 1 << 16

log = logging.getLogger(__name__)


class _Memory:
    """What came lately, up to a number."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._known: OrderedDict[Hashable, None] = OrderedDict()

    def knows(self, each: Hashable) -> bool:
        known = each in self._known
        if known:
            self._known.move_to_end(each)
        return known

    def add(self, each: Hashable) -> None:
        self._known[each] = None
        if len(self._known) > self._size_max:
            self._known.popitem(last=False)

    def forget(self, each: Hashable) -> None:
        self._known.pop(each, None)


class Saver:
    """
    Hands links to one imgkeep.

    Args:
        server: Its URL.
        token: For its API; white space around it, as a file ends with, does not count.
        retry_delays_s: Between tries, when it cannot be reached or is busy.

    Raises:
        ValueError: `server` is no http(s) URL.
    """

    def __init__(
        self, server: str, token: str | None = None, *, retry_delays_s: Sequence[float] = RETRY_DELAYS_S
    ) -> None:
        parts = urlsplit(server)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            raise ValueError("save: is not an absolute http:// or https:// URL")
        self._host, self._port, self._is_tls = parts.hostname, parts.port, parts.scheme == "https"
        self._path = f"{parts.path.rstrip('/')}/api/save-images"
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token.strip()}"
        self._delays = tuple(retry_delays_s)
        # A hash will do for links: where two are alike, one image is kept when it is first shown.
        self._links, self._images = _Memory(LINKS_REMEMBERED_MAX), _Memory(LINKS_REMEMBERED_MAX)
        self._told_at = -float(TELL_EVERY_S)
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Be as new, but for what is remembered: at first, and in a process that was forked, whose parent goes on."""
        self._changed = Condition()
        self._waiting: deque[str] = deque()
        self._thread: Thread | None = None
        self._is_idle = True
        self._dropped = 0

    def note(self, url: str) -> None:
        """Take a link, to be handed soon."""
        with self._changed:
            if self._links.knows(hash(url)):
                return
            if len(self._waiting) >= LINKS_WAITING_MAX or not self._runs():
                self._dropped += 1
                return
            self._links.add(hash(url))
            self._waiting.append(url)
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits any more; say whether that came in time. For programs that end."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self._is_idle, timeout_s)

    @property
    def dropped(self) -> int:
        """Return how many links were dropped since that was last logged."""
        return self._dropped

    def _runs(self) -> bool:
        if self._thread is None:
            thread = Thread(target=self._run, name="imgkeep-saver", daemon=True)
            with suppress(RuntimeError):  # no threads at the end of a process
                thread.start()
                self._thread = thread
        return self._thread is not None

    def _run(self) -> None:
        while True:
            batch = self._take()
            failure = ""
            try:
                failure = self._hand(batch)
            except Exception as error:  # noqa: BLE001 - the thread goes on, and the next batch may be different
                failure = type(error).__name__
            self._finish(batch, failure)

    def _take(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            self._is_idle = False
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH_LINKS_MAX, GATHER_S)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_LINKS_MAX))]

    def _hand(self, batch: list[str]) -> str:
        """Hand links whose images were not handed before; return why that failed, if it did."""
        now = datetime.now(UTC)  # noqa: TID251 - there is no app.py to ask
        images: dict[str, str] = {}
        for url in batch:
            with suppress(SourceRejected):
                images.setdefault(identify_url(url, now).key, url)
        new = {key: url for key, url in images.items() if not self._images.knows(key)}
        failure = self._post(list(new.values())) if new else ""
        if not failure:
            for key in new:
                self._images.add(key)
        return failure

    def _finish(self, batch: list[str], failure: str) -> None:
        with self._changed:
            self._is_idle = not self._waiting
            if failure:
                for url in batch:
                    self._links.forget(hash(url))
                self._dropped += len(batch)
            self._log_dropped(failure)
            self._changed.notify_all()

    def _log_dropped(self, failure: str) -> None:
        if self._dropped and time.monotonic() >= self._told_at + TELL_EVERY_S:
            self._told_at = time.monotonic()
            log.warning("%d links were not handed to imgkeep: %s", self._dropped, failure or "too many at once")
            self._dropped = 0

    def _post(self, urls: list[str]) -> str:
        body = json.dumps({"urls": urls, "wait": False}).encode()
        failure = ""
        for delay_s in (*self._delays, None):
            wait_s = None
            try:
                status, retry_after = self._ask(body)
            except (OSError, HTTPException) as error:
                failure = type(error).__name__
            else:
                if status in {200, 202}:
                    return ""
                failure = f"it answers {status}"
                if status < 500 and status != 429:
                    break
                wait_s = read_retry_after(retry_after, datetime.now(UTC))  # noqa: TID251 - as above
            if delay_s is not None:
                time.sleep(min(delay_s if wait_s is None else wait_s, max(self._delays)))
        return failure

    def _ask(self, body: bytes) -> tuple[int, str | None]:
        # Neither proxies nor redirects: links and tokens are for this server alone.
        kind = HTTPSConnection if self._is_tls else HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            response.read(ANSWER_BYTES_MAX)
            return response.status, response.getheader("Retry-After")
        finally:
            connection.close()


_all: WeakSet[Saver] = WeakSet()


def _restart_all() -> None:
    for saver in list(_all):
        saver._begin()  # noqa: SLF001 - of the same module


os.register_at_fork(after_in_child=_restart_all)


@cache
def saver_for(server: str, token: str | None) -> Saver:
    """Return the one that all parts of an application share."""
    return Saver(server, token)
