"""
A client of imgkeep's API that saves links as pages are rewritten, so that imgkeep also stores images that no browser
requests.

Rules:
- `note` never waits and raises no error. One thread sends the links; each process starts its own with the first link,
  so the client survives forks.
- The queue and the memory of sent links are bounded. During a long outage of imgkeep the client drops and counts links:
  the next request of the page notes them again.
- The client sends each image once, however often a page signs its link anew, and however many pages show it.
- The client logs neither links nor the token.
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
"""Maximum length of the queue: the links of some hundred pages, in one or two megabytes."""
LINKS_REMEMBERED_MAX: Final = 20_000
"""Maximum number of links, and of images, that the client remembers as sent."""
BATCH_LINKS_MAX: Final = 100
"""Maximum number of links in one request."""
GATHER_S: Final = 0.2
"""Interval for gathering a batch, so that a page is one job or few; links live for minutes."""
TIMEOUT_S: Final = 10
"""Timeout for one request."""
RETRY_DELAYS_S: Final = (1.0, 4.0, 15.0)
"""Delays before retries: a restart of imgkeep takes seconds. After a longer wait, newer links are worth more."""
TELL_EVERY_S: Final = 60
"""Interval of the log records about dropped links."""
ANSWER_BYTES_MAX: Final = 1 << 16
"""Maximum number of bytes that the client reads of a response."""

log = logging.getLogger(__name__)


class _Memory:
    """A bounded set of the most recent items."""

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
    A client that saves links at one imgkeep.

    Args:
        server: URL of imgkeep.
        token: API token; white space around it does not count, such as the line end of a file.
        retry_delays_s: Delays before retries while imgkeep is unreachable or busy.

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
        # Hashes suffice for links: if two collide, imgkeep stores the second image on its first request.
        self._links, self._images = _Memory(LINKS_REMEMBERED_MAX), _Memory(LINKS_REMEMBERED_MAX)
        self._told_at = -float(TELL_EVERY_S)
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """
        Reset everything but the memory: at the start, and in a forked process, because the parent sends its links.
        """
        self._changed = Condition()
        self._waiting: deque[str] = deque()
        self._thread: Thread | None = None
        self._is_idle = True
        self._dropped = 0

    def note(self, url: str) -> None:
        """Queue a link."""
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
        """Wait until the queue is empty, and return whether it is. For programs that end."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self._is_idle, timeout_s)

    @property
    def dropped(self) -> int:
        """Return the number of links dropped since the last log record about them."""
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
        """Send the links of new images; return the reason of a failure, empty on success."""
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
            log.warning("%d links not sent to imgkeep: %s", self._dropped, failure or "too many at once")
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
        # No proxy and no redirect: links and tokens are for this server alone.
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
    """Return the client that all parts of an application share."""
    return Saver(server, token)
