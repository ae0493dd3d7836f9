"""The pages of a list of objects, which has to come to an end whatever the service sends."""

from __future__ import annotations

from typing import Final

from imgkeep.storage.bucket.errors import BucketError

EMPTY_PAGES_MAX: Final = 1000
"""Maximum number of pages without objects in a row; services send one now and then."""


class Pages:
    """The pages of one list that have been read so far."""

    def __init__(self) -> None:
        self._tokens: set[int] = set()
        """Hashes of the tokens, of which each leads to some thousand objects."""
        self._empty = 0

    def go_on(self, token: str | None, *, is_empty: bool) -> bool:
        """
        Tell whether a page is followed by another one, to which its `token` leads.

        Raises:
            BucketError: The list would never end.
        """
        if not token:
            return False
        self._empty = self._empty + 1 if is_empty else 0
        if hash(token) in self._tokens or self._empty > EMPTY_PAGES_MAX:
            raise BucketError("the bucket sends a list that never ends", general=False)
        self._tokens.add(hash(token))
        return True
