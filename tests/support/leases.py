"""Leases in memory for tests, among processes of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgkeep.images.interfaces import LeaseRequest, LinkFailure


class LocalLeases:
    """What leases do that no other node shares; the leases themselves are the subclass's."""

    grace_s: float = 0

    def acquire(self, name: str) -> str | None:
        raise NotImplementedError(name)

    def prepare(self, _name: str, _link: bytes) -> bool:
        return False

    def request(self, _name: str, _link: bytes) -> LeaseRequest | None:
        return None

    def release(self, name: str, *, stored: bool = False) -> None:
        raise NotImplementedError(name, stored)

    async def fail(self, name: str, _failure: LinkFailure) -> None:
        self.release(name)

    def give_up_on(self, _holder: str) -> bool:
        return False


class SharedLeases(LocalLeases):
    """The leases of one worker of a machine, whose workers have `holders` together. A grace period has no end."""

    def __init__(self, holders: dict[str, str], worker: str) -> None:
        self._holders = holders
        self._worker = worker

    def acquire(self, name: str) -> str | None:
        holder = self._holders.setdefault(name, self._worker)
        return None if holder == self._worker else holder

    def release(self, name: str, *, stored: bool = False) -> None:
        if not stored and self._holders.get(name) == self._worker:
            del self._holders[name]
