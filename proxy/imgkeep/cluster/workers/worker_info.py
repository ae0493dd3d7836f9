"""Worker info: the name, slot and secret that the supervisor gives each worker, and the layout of the shared folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """
    One worker among several, as its supervisor has started it.

    Attributes:
        name: The name of the process. The supervisor never uses it again: a lease or a socket with this name belongs
            to this process alone.
        slot: The number of the worker, from 0 on. The process that replaces it has the same slot.
        workers: The number of workers.
        folder: The folder that the workers share while they run: their sockets and their leases.
        secret: The secret of this run, by which each request to a peer proves itself.
    """

    name: str
    slot: int
    workers: int
    folder: str
    secret: str = field(repr=False)

    @property
    def shared_folder(self) -> SharedFolder:
        return SharedFolder(Path(self.folder))


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The layout of the folder that the workers of one run share."""

    path: Path

    @property
    def leases(self) -> Path:
        """The folder of the leases, a symbolic link a key (`leases.py`)."""
        return self.path / "leases"

    @property
    def leader(self) -> Path:
        """The symbolic link to the name of the leader (`leader.py`)."""
        return self.path / "leader"

    @property
    def leader_lock(self) -> Path:
        """The file whose lock the leader holds."""
        return self.path / "leader.lock"

    @property
    def ended(self) -> Path:
        """The folder of the counters of ended workers, a file a slot."""
        return self.path / "ended"

    def socket(self, name: str) -> Path:
        """Return the socket of a worker's peer API."""
        return self.path / f"{name}.sock"

    def sockets(self) -> dict[str, Path]:
        """Return the sockets of all workers by their names."""
        return {path.name.removesuffix(".sock"): path for path in self.path.glob("*.sock")}
