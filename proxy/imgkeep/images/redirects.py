"""
Where clients are sent for an image: its public URL in the primary, or a presigned one.

Rules:
- Nobody is sent to what the primary was not seen to have, nor anywhere while it is away: then we serve.
- A presigned link is handed out again as long as it has half of its life left, so that browsers can keep the redirect;
  the redirect itself is forgotten by then, so nobody ever follows a link with less than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cachetools import LRUCache

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.replication.tiered_store import TieredStore
    from imgkeep.storage.s3 import S3Store

PRESIGNED_MAX: Final = 20_000
"""Presigned links kept for reuse; a kilobyte each, 20 MB."""
MAX_AGE_S: Final = 300
"""For a redirect to a public URL: so long a change of configuration may take to reach everybody."""


@dataclass(frozen=True, slots=True)
class ObjectUrl:
    """
    Where an object is, for a client.

    Attributes:
        max_age_s: For how long the client may remember it.
        private: Whether it is a credential, which only the client itself may remember.
    """

    url: str
    max_age_s: int
    private: bool = False


class ObjectUrls:
    """
    Finds object_urls by `delivery.mode`.

    Args:
        public_url: Tells the permanent URL of an object in the primary; `None`: nobody may go there.
        timer: Monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - all but three by keyword, in one place
        self,
        mode: Literal["serve", "redirect", "presign"],
        tiered_store: TieredStore,
        primary: S3Store,
        *,
        public_url: Callable[[str], str] | None,
        presign_ttl_s: int,
        timer: Callable[[], float],
    ) -> None:
        self._mode = mode
        self._tiered_store = tiered_store
        self._primary = primary
        self._public_url = public_url
        self._presign_ttl_s = presign_ttl_s
        self._timer = timer
        self._links: LRUCache[tuple[str, bool], tuple[str, float, int]] = LRUCache(PRESIGNED_MAX)

    @property
    def redirects_clients(self) -> bool:
        """Whether clients are sent away wherever that can be done, so that to serve is the exception."""
        return self._mode != "serve"

    def permanent(self, name: str) -> str | None:
        """Return the permanent URL of an object that is in the primary; `None`: our own `/images/<name>`."""
        return None if self._public_url is None else self._public_url(name)

    async def find(self, name: str, *, head: bool) -> ObjectUrl | None:
        """Return where to send a client (`head`: for a HEAD request); `None`: the image has to be served."""
        if self._mode == "serve" or not await self._tiered_store.has(name):
            return None
        if self._mode == "presign":
            return await self._presign(name, head=head)
        return None if self._public_url is None else ObjectUrl(self._public_url(name), MAX_AGE_S)

    async def _presign(self, name: str, *, head: bool) -> ObjectUrl | None:
        known = self._links.get((name, head))
        now = self._timer()
        if known is None or known[1] - now < known[2] / 2:
            try:
                url, life_s = await self._primary.presign(name, ttl_s=self._presign_ttl_s, head=head)
            except StorageError:
                return None
            known = self._links[name, head] = (url, now + life_s, life_s)
        url, ends, life_s = known
        return ObjectUrl(url, int(ends - now - life_s / 2), private=True)
