"""
The URLs that clients are redirected to for an image: its public URL in the primary, or a presigned one.

Rules:
- A client is redirected only to an object that the primary was seen to have, and not while the primary is unreachable:
  then the image is served.
- A client is redirected to a public URL only as long as public URLs are known to work (`PublicAccess`).
- A presigned URL is handed out again as long as it has half of its life left, so that browsers can keep the redirect. A
  browser forgets the redirect by then, so no client follows a URL with less than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cachetools import LRUCache

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PRESIGNED_MAX: Final = 20_000
"""Maximum number of presigned URLs for reuse; a kilobyte each, 20 MB."""
MAX_AGE_S: Final = 300
"""Lifetime of a redirect to a public URL: within it a change of configuration reaches every client."""


@dataclass(frozen=True, slots=True)
class ObjectUrl:
    """
    A URL of an object, for a client.

    Attributes:
        max_age_s: For how long the client may remember it.
        private: Whether it is a credential, which only the client itself may remember.
    """

    url: str
    max_age_s: int
    private: bool = False


class ObjectUrls:
    """
    Finds the URLs by `delivery.mode`.

    Args:
        has_object: Tells whether the primary can be reached and was seen to have an object recently.
        presign: Returns a URL that works for a while, and for how many seconds, as `BucketStore.presign`.
        public_url: Returns the permanent URL of an object in the primary; `None`: the configuration names none.
        is_public: Tells whether clients may be redirected to such URLs.
        timer: Gives monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - all but one by keyword
        self,
        mode: Literal["serve", "redirect", "presign"],
        *,
        has_object: Callable[[str], Awaitable[bool]],
        presign: Callable[[str, int, bool], Awaitable[tuple[str, int]]],
        public_url: Callable[[str], str] | None,
        is_public: Callable[[], bool],
        presign_ttl_s: int,
        timer: Callable[[], float],
    ) -> None:
        self._mode = mode
        self._has_object = has_object
        self._presign_object = presign
        self._public_url = public_url
        self._is_public = is_public
        self._presign_ttl_s = presign_ttl_s
        self._timer = timer
        self._presigned: LRUCache[tuple[str, bool], tuple[str, float, int]] = LRUCache(PRESIGNED_MAX)

    @property
    def redirects_clients(self) -> bool:
        """Whether clients are redirected where that is possible, so that an image served is the exception."""
        return self._mode != "serve"

    def permanent(self, name: str) -> str | None:
        """Return the permanent URL of an object that is in the primary; `None`: `/images/<name>` of this server."""
        return None if self._public_url is None else self._public_url(name)

    async def find(self, name: str, *, head: bool) -> ObjectUrl | None:
        """Return where to redirect a client (`head`: for a HEAD request); `None`: the image has to be served."""
        if self._mode == "serve" or not await self._has_object(name):
            return None
        if self._mode == "presign":
            return await self._presign(name, head=head)
        if self._public_url is None or not self._is_public():
            return None
        return ObjectUrl(self._public_url(name), MAX_AGE_S)

    async def _presign(self, name: str, *, head: bool) -> ObjectUrl | None:
        known = self._presigned.get((name, head))
        now = self._timer()
        if known is None or known[1] - now < known[2] / 2:
            try:
                url, life_s = await self._presign_object(name, self._presign_ttl_s, head)
            except StorageError:
                return None
            known = self._presigned[name, head] = (url, now + life_s, life_s)
        url, ends, life_s = known
        return ObjectUrl(url, int(ends - now - life_s / 2), private=True)
