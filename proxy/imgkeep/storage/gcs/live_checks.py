"""The steps of the live check that Google Cloud Storage has besides those of every service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.shared_live_checks import ServiceChecks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgkeep.storage.bucket.client import BucketClient, Check

NO_CONDITION: Final = "this emulator does not have it, so imgkeep reads each record again after its PUT"
NO_KEY: Final = "these credentials cannot sign links, so delivery.mode presign does not work with them: docs/gcs.md"


class OwnChecks(ServiceChecks):
    """The steps, and what the operator should know of credentials that sign no links."""

    def __init__(
        self, client: BucketClient, copy: Callable[[str, str, str], Awaitable[bool]], *, path: str, image: bytes
    ) -> None:
        super().__init__(client, copy, path=path, image=image, no_condition=NO_CONDITION)

    def steps(self) -> Sequence[Check]:
        steps: list[Check] = [("copy", self.copy), ("conditional-put", self.put_conditionally)]
        return steps if self._client.features.presign else [*steps, ("presign", self.tell_no_key)]

    async def tell_no_key(self) -> str:
        return NO_KEY
