"""Leases in memory for tests, among processes of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgkeep.images.interfaces import LinkFailure


class LocalLeases:
    """What leases do that no other node shares; the leases themselves are the subclass's."""

    grace_s: float = 0

    def acquire(self, name: str) -> str | None:
        raise NotImplementedError(name)

    def prepare(self, _name: str, _link: bytes) -> bool:
        return False

    def request(self, _name: str, _link: bytes) -> None:
        """There is no other node."""

    def release(self, name: str, *, stored: bool = False, failure: LinkFailure | None = None) -> None:
        raise NotImplementedError(name, stored, failure)

    def give_up_on(self, _holder: str) -> bool:
        return False
