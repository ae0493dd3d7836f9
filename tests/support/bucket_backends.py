"""
Stores in buckets as tests open them: over the client of a service, with a gate before its server.

`opening` makes the backend of any service. Each service has a module `tests/support/<service>/backends.py`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from imgkeep.storage.bucket.request_limits import REQUESTS_MAX, RequestLimits
from imgkeep.storage.bucket.store import PROBE, BucketStore
from imgkeep.storage.local.disk import Disk
from tests.support.loopback import HOST
from tests.support.s3.gate import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from pathlib import Path

    from imgkeep.storage.bucket.client import BucketClient
    from tests.support.s3.misbehaving import Answer

TIMEOUT_S = 10
"""Timeout for a request, which a busy machine needs."""

_NUMBERS = count(1)
_PROBED: dict[str, bool] = {}
"""By server: whether it has a conditional PUT."""


class SpooledBucket(BucketStore):
    """A bucket, and a disk for drafts on their way to it."""

    spool: Disk


@dataclass(frozen=True)
class Refusal:
    """
    A refusal in the words of a service, and what the client makes of it.

    Attributes:
        answer: The response.
        error_code: `BucketError.error_code`.
        general: `BucketError.general`.
        remedy: Part of `BucketError.remedy`; empty: there is none.
    """

    answer: Answer
    error_code: str
    general: bool = True
    remedy: str = ""


@dataclass
class BucketBackend:
    """
    A store in a bucket, behind a gate. A backend of the contract of all stores (`tests.storage.test_contract`).

    Attributes:
        objects: Returns all objects whose name begins with a prefix, past the gate.
        prefix: The prefix of the store, with its slash.
        missing: Returns a client, not yet open, of a bucket that is not there.
    """

    store: SpooledBucket
    gate: Gate
    objects: Callable[[str], Awaitable[Mapping[str, bytes]]]
    prefix: str
    missing: Callable[[], BucketClient]
    _breaking: asyncio.Task[None] | None = None

    def left(self) -> dict[str, list[str]]:
        # In another thread: the server is another process, and the caller is no coroutine.
        with ThreadPoolExecutor(1) as pool:
            paths = sorted(pool.submit(asyncio.run, self.stored()).result())
        found: dict[str, list[str]] = {"objects": [], "records": [], "other": []}
        for path in paths:
            kind = path.split("/")[1] if path.startswith("v1/") else "other"
            found[kind].append(path.rpartition("/")[2])
        found["other"] += [path.name for path in (self.store.spool.root / "partial").iterdir()]
        return found

    def break_it(self) -> None:
        self._breaking = asyncio.ensure_future(self.gate.refuse())

    async def stored(self) -> dict[str, bytes]:
        """Return what is stored, by its path in the stored layout, without the object of the probe."""
        found = {name.removeprefix(self.prefix): body for name, body in (await self.objects(self.prefix)).items()}
        found.pop(PROBE, None)
        return found

    @property
    def slots_taken(self) -> int:
        """The number of requests that have a slot."""
        return REQUESTS_MAX - guard_of(self.store.client)._slots._value


def guard_of(client: BucketClient) -> RequestLimits:
    """Return the limits of a client, which has it, or whose connection has it."""
    holders: list[Any] = [client, *vars(client).values()]
    found = [value for holder in holders for value in vars_of(holder) if isinstance(value, RequestLimits)]
    assert found, f"{type(client).__name__} has no RequestLimits"
    return found[0]


def vars_of(holder: object) -> list[object]:
    return list(getattr(holder, "__dict__", {}).values())


def new_prefix() -> str:
    return f"contract-{next(_NUMBERS)}"


@asynccontextmanager
async def opening(
    server: str,
    port: int,
    make: Callable[[str, str, bool], BucketClient],
    objects: Callable[[str], Awaitable[Mapping[str, bytes]]],
    folder: Path,
) -> AsyncGenerator[BucketBackend]:
    """
    Open a store under a prefix of its own.

    Args:
        server: Name of the server. The first store on it is probed: what it can do holds for all of them.
        port: Its port on loopback.
        make: Returns the client, not yet open, from the address of the gate and from the prefix. It is of a bucket that
            is there, or of one that is not.
        objects: As in `BucketBackend`.
        folder: For drafts.
    """
    gate = Gate(HOST, port)
    await gate.start()
    prefix = new_prefix()
    store = SpooledBucket(make(gate.endpoint, prefix, True))
    store.spool = Disk(folder)
    await store.spool.open()
    await store.open()
    if server not in _PROBED:
        await store.probe()
        _PROBED[server] = store.client.features.conditional_put
    store.client.features.conditional_put = _PROBED[server]
    backend = BucketBackend(store, gate, objects, f"{prefix}/", lambda: make(gate.endpoint, prefix, False))
    yield backend
    await store.aclose()
    assert backend.slots_taken == 0
    await store.spool.aclose()
    await gate.stop()
