"""`save`: keep images by their links, straight into the store or through a running server."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from imgkeep.cli.errors import ServerError
from imgkeep.cli.printing import as_line
from imgkeep.cli.progress import progress
from imgkeep.core.errors import Busy, ImgkeepError, OriginTimeout, StorageError
from imgkeep.core.policy_document import read_policy
from imgkeep.core.source_url import read_source
from imgkeep.images.record_facts import as_dict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
    from datetime import datetime

    from imgkeep.cli.client import Client
    from imgkeep.clock import Clock
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.record_facts import ImageFacts
    from imgkeep.images.upload import Saver

CONCURRENT_MAX: Final = 16
ATTEMPTS_MAX: Final = 3
RETRY_DELAY_S: Final = 2
FAILURES_MAX: Final = 20
"""So many failures of the store in a row, and it is away."""
JOB_LINKS_MAX: Final = 10_000
POLL_EVERY_S: Final = 0.5
NEVER_EXPIRES_S: Final = 253_402_300_799.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a link: the facts that the API tells of its image, or why it is not kept."""

    number: int
    facts: dict[str, Any] | None
    code: str = ""
    detail: str = ""


class Target(Protocol):
    """Where links are saved."""

    def save(self, urls: Sequence[str], note: Callable[[str], None]) -> AsyncGenerator[Outcome]:
        """Save all, those first that expire first, and tell of each; `note` is told what comes next."""


async def save(urls: Iterable[str], target: Target, *, as_json: bool, out: TextIO, err: TextIO) -> int:
    """Save links, print the permanent URL of each in the order of the links, and a summary. 1 if one is not kept."""
    wanted = [url for url in urls if url.strip()]
    outcomes: dict[int, Outcome] = {}
    counts: Counter[str] = Counter()
    printed = 0
    try:
        with progress("saving", len(wanted), err) as bar:
            async with aclosing(target.save(wanted, bar.note)) as results:
                async for outcome in results:
                    outcomes[outcome.number] = outcome
                    counts[_fate(outcome)] += 1
                    bar.advance(1)
                    if outcome.facts is None and not as_json:
                        bar.say(f"imgkeep: link {outcome.number + 1}: {outcome.code}: {outcome.detail}")
                    while printed in outcomes:
                        bar.answer(out, _line(wanted[printed], outcomes.pop(printed), as_json=as_json))
                        printed += 1
    except asyncio.CancelledError:
        err.write(f"{_told(counts)}, {len(wanted) - counts.total()} not done\n")
        raise
    if not as_json:
        err.write(f"{_told(counts)}\n")
    return 1 if counts["failed"] else 0


def _fate(outcome: Outcome) -> str:
    if outcome.facts is None:
        return "failed"
    return "saved" if outcome.facts.get("created") else "known"


def _told(counts: Counter[str]) -> str:
    return f"{counts['saved']} saved, {counts['known']} known, {counts['failed']} failed"


def _line(url: str, outcome: Outcome, *, as_json: bool) -> str:
    if not as_json:
        return str(outcome.facts["url"]) if outcome.facts else "-"
    if outcome.facts is None:
        error = {"code": outcome.code, "detail": outcome.detail}
        return as_line({"success": False, "source_url": url, "error": error})
    return as_line({"success": True, "source_url": url, **outcome.facts})


class Store:
    """The configured store itself."""

    def __init__(
        self,
        saver: Saver,
        *,
        identify: Callable[[Source], SourceInfo],
        describe: Callable[[Record], ImageFacts],
        clock: Clock,
    ) -> None:
        self._saver = saver
        self._identify = identify
        self._describe = describe
        self._clock = clock
        self._failures = 0

    async def save(self, urls: Sequence[str], note: Callable[[str], None]) -> AsyncGenerator[Outcome]:
        queue: list[tuple[float, int, Source]] = []
        for number, url in enumerate(urls):
            try:
                source = read_source(url)
            except ImgkeepError as error:
                yield Outcome(number, None, error.code, str(error))
                continue
            ends = self._identify(source).expires_at
            queue.append((NEVER_EXPIRES_S if ends is None else ends.timestamp(), number, source))
        heapq.heapify(queue)
        running: set[asyncio.Task[Outcome]] = set()
        try:
            while queue or running:
                while queue and len(running) < CONCURRENT_MAX:
                    ends_at, number, source = heapq.heappop(queue)
                    note(_next(ends_at, source.host, self._clock()))
                    running.add(asyncio.create_task(self._save(number, source)))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _save(self, number: int, source: Source) -> Outcome:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                saved = await self._saver.save_link(source)
            except (Busy, OriginTimeout, StorageError) as error:
                if isinstance(error, StorageError):
                    self._failures += 1
                    if self._failures >= FAILURES_MAX:
                        raise
                if attempt == ATTEMPTS_MAX:
                    return Outcome(number, None, error.code, str(error))
                await asyncio.sleep(RETRY_DELAY_S * attempt)
            except ImgkeepError as error:
                return Outcome(number, None, error.code, str(error))
            else:
                self._failures = 0
                return Outcome(number, {**as_dict(self._describe(saved.record)), "created": saved.created})
        raise AssertionError("the last attempt returns")


def _next(ends_at: float, host: str, now: datetime) -> str:
    """Say what is being saved, and how soon it expires."""
    if ends_at == NEVER_EXPIRES_S:
        return host
    seconds = round(ends_at - now.timestamp())
    if seconds <= 0:
        return f"{host}, expired"
    unit, size = next(
        (unit, size) for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)) if seconds >= size
    )
    return f"{host}, expires in {seconds // size} {unit}"


class Server:
    """A running imgkeep; its jobs go on when this command is ended."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def save(self, urls: Sequence[str], note: Callable[[str], None]) -> AsyncGenerator[Outcome]:
        ask = self._client.call_api
        async with self._client.session() as session:
            for start in range(0, len(urls), JOB_LINKS_MAX):
                part = urls[start : start + JOB_LINKS_MAX]
                job = await ask(session, "POST", "/api/save-images", json={"urls": part})
                note(f"job {job['id']}")
                told = 0
                while told < len(part):
                    after = f"?after={told - 1}" if told else ""
                    job = await ask(session, "GET", f"/api/jobs/{job['id']}{after}")
                    for result in job["results"]:
                        if result["state"] == "waiting":
                            break  # in the order of the links; what is done behind it comes later
                        told += 1
                        yield _outcome(start, result)
                    if told < len(part):
                        await asyncio.sleep(POLL_EVERY_S)

    async def policy(self, names: Callable[[Source], tuple[str, ...]]) -> tuple[Policy, bool]:
        """Return what the server may fetch, and whether it wants links to be signed; `names` as in `Policy`."""
        async with self._client.session() as session:
            facts = await self._client.call_api(session, "GET", "/api/policy")
        try:
            return read_policy(facts, names)
        except ValueError:
            raise ServerError("the server that --server names does not tell what it may fetch") from None


def _outcome(start: int, result: dict[str, Any]) -> Outcome:
    number = start + result["index"]
    if result["state"] == "cancelled":
        return Outcome(number, None, "cancelled", "the job was cancelled")
    if result["state"] == "failed":
        return Outcome(number, None, result["error"]["code"], result["error"]["detail"])
    if "image" not in result:
        return Outcome(number, None, "removed", "the image has gone since")
    return Outcome(number, {**result["image"], "created": result["created"]})
