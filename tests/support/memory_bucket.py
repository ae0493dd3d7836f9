"""A bucket in memory, and clients of it whose requests take effect in the order that a test wants."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.client import Features, ObjectResponse, ObjectStatus
from imgkeep.storage.bucket.errors import AlreadyThere
from imgkeep.storage.bucket.response_stream import ResponseStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from imgkeep.storage.bucket.client import Check, ObjectFields
    from imgkeep.storage.interfaces import Draft

ITERATIONS: Final = 15
"""Iterations of the loop in which everything that waits for no request gets on."""


class Order:
    """
    One order of the requests of several tasks: a request takes effect when it is chosen among those that wait.

    Attributes:
        taken: The requests so far, as `GET v1/records`.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self.taken: list[str] = []
        self.options: list[int] = []
        self._choices = choices
        self._waiting: list[tuple[str, asyncio.Event]] = []

    async def wait(self, request: str) -> None:
        chosen = asyncio.Event()
        self._waiting.append((request, chosen))
        await chosen.wait()

    async def run(self, *works: Awaitable[object]) -> None:
        """Run tasks to their end."""
        tasks = [asyncio.ensure_future(work) for work in works]
        while True:
            for _ in range(ITERATIONS):
                await asyncio.sleep(0)
            if not self._waiting:
                break
            place = len(self.options)
            choice = self._choices[place] if place < len(self._choices) else 0
            self.options.append(len(self._waiting))
            request, chosen = self._waiting.pop(choice)
            self.taken.append(request)
            chosen.set()
        assert all(task.done() for task in tasks), "a task waits for something else than a request"
        await asyncio.gather(*tasks)

    def next_choices(self) -> list[int] | None:
        """Return the choices of another order; `None`: this was the last one."""
        padding = len(self.options) - len(self._choices)
        choices = [*self._choices[: len(self.options)], *[0] * max(0, padding)]
        while choices and choices[-1] + 1 == self.options[len(choices) - 1]:
            choices.pop()
        return [*choices[:-1], choices[-1] + 1] if choices else None


async def in_every_order(case: Callable[[Order], Awaitable[None]]) -> int:
    """Run a case in every order of its requests; return how many there are."""
    choices: list[int] | None = []
    number = 0
    while choices is not None:
        order = Order(choices)
        await case(order)
        choices = order.next_choices()
        number += 1
    return number


@dataclass
class MemoryBucket:
    """The objects of a bucket by path; every node has a client of its own."""

    objects: dict[str, bytes] = field(default_factory=dict)
    conditional_put: bool = True


class MemoryClient:
    """
    A client of a bucket in memory. Implements `BucketClient`.

    Attributes:
        order: Chooses when a request takes effect; `None`: at once.
        is_ordered: Tells by method and path which requests the order is about; the others take effect at once.
        asked: Method and path of every request.
        faults: By method and part of a path, the error that such requests get.
        gates: By method and part of a path, an event that the next such request waits for before it takes effect.
        reached: Set when a request waits for one.
    """

    service = "memory"
    timeout_s = 5.0
    place = "bucket in memory"
    answered_at = float("-inf")

    def __init__(self, bucket: MemoryBucket) -> None:
        self.bucket = bucket
        self.features = Features(conditional_put=bucket.conditional_put)
        self.order: Order | None = None
        self.is_ordered: Callable[[str, str], bool] = lambda _method, _path: True
        self.asked: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], Exception] = {}
        self.gates: dict[tuple[str, str], asyncio.Event] = {}
        self.reached = asyncio.Event()

    def count(self, method: str, path_part: str = "") -> int:
        return sum(asked == method and path_part in path for asked, path in self.asked)

    async def open(self) -> None: ...

    async def check_settings(self) -> None: ...

    async def aclose(self) -> None: ...

    async def get(self, path: str, *, start: int = 0, end: int | None = None, etag: str = "") -> ObjectResponse | None:
        del etag
        await self._request("GET", path)
        data = self.bucket.objects.get(path)
        if data is None:
            return None
        part = data[start:end]
        return ObjectResponse(len(part), _etag(data), ResponseStream(_Reader(part), self.timeout_s, lambda: None))

    async def stat(self, path: str) -> ObjectStatus | None:
        await self._request("HEAD", path)
        data = self.bucket.objects.get(path)
        return None if data is None else ObjectStatus(len(data), _etag(data))

    async def put_bytes(self, path: str, data: bytes, fields: ObjectFields, *, only_if_absent: bool = False) -> None:
        del fields
        await self._request("PUT", path)
        if only_if_absent and self.bucket.conditional_put and path in self.bucket.objects:
            raise AlreadyThere
        self.bucket.objects[path] = data

    async def put_draft(self, path: str, draft: Draft, fields: ObjectFields) -> None:
        await self.put_bytes(path, await draft.read(0, draft.size), fields)

    async def delete(self, path: str) -> None:
        await self._request("DELETE", path)
        self.bucket.objects.pop(path, None)

    async def quarantine(self, path: str, etag: str) -> None:
        await self._request("DELETE", path)
        if path in self.bucket.objects and _etag(self.bucket.objects[path]) == etag:
            self.bucket.objects[f"damaged/{path}"] = self.bucket.objects.pop(path)

    async def has_any(self, prefix: str) -> bool:
        await self._request("LIST", prefix)
        return any(path.startswith(prefix) for path in self.bucket.objects)

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        await self._request("LIST", folder)
        for path, data in sorted(self.bucket.objects.items()):
            if path.startswith(f"{folder}/"):
                yield path, len(data)

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        return f"https://bucket.example/{path}?head={head}", ttl_s

    def public_url(self, path: str) -> str:
        return f"https://bucket.example/{path}"

    async def probe_features(self, path: str) -> None:
        del path

    async def abort_uploads(self) -> int:
        return 0

    def live_checks(self, path: str, image: bytes) -> Sequence[Check]:
        del path, image
        return ()

    async def _request(self, method: str, path: str) -> None:
        self.asked.append((method, path))
        if self.order is not None and self.is_ordered(method, path):
            await self.order.wait(f"{method} {'/'.join(path.split('/')[:2])}")
        for (gated, part), gate in list(self.gates.items()):
            if gated == method and part in path:
                del self.gates[gated, part]
                self.reached.set()
                await gate.wait()
        for (faulty, part), error in self.faults.items():
            if faulty == method and part in path:
                raise error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)

    async def read(self, size: int) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def _etag(data: bytes) -> str:
    return sha256(data).hexdigest()[:32]
