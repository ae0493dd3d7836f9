"""`save`: stores images by their links, straight into the store or through a running server."""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeAlias

from imgkeep.bootstrap.preflight import require_owner
from imgkeep.cli.errors import ServerError
from imgkeep.cli.invocation import make_client, read_urls
from imgkeep.cli.printing import as_line
from imgkeep.cli.progress import progress
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError
from imgkeep.core.errors import Busy, ImgkeepError, OriginTimeout, StorageError
from imgkeep.core.policy_document import read_policy
from imgkeep.core.source_url import read_source
from imgkeep.images.record_json import as_dict

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
    from datetime import datetime

    from imgkeep.bootstrap.services import Services
    from imgkeep.cli.client import Client
    from imgkeep.cli.dispatch import Command
    from imgkeep.cli.invocation import Invocation
    from imgkeep.clock import Clock
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.record_json import ImageFacts
    from imgkeep.images.upload import Saver

    Target: TypeAlias = "StoreTarget | ServerTarget"

CONCURRENT_MAX: Final = 16
"""Maximum number of concurrent fills."""
ATTEMPTS_MAX: Final = 3
RETRY_DELAY_S: Final = 2
"""Interval before the second attempt; twice as long before the third."""
FAILURES_MAX: Final = 20
"""Maximum number of store failures in a row: then the command ends, because the store is unreachable."""
JOB_LINKS_MAX: Final = 10_000
"""Maximum number of links in a job, as the API takes them."""
POLL_EVERY_S: Final = 0.5
"""Interval of requests for the state of a job."""
NEVER_EXPIRES_S: Final = 253_402_300_799.0
"""The end of the year 9999: links without an expiry come last."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    The outcome of one link.

    Attributes:
        number: The place of the link among all.
        facts: The facts of the image from the API; `None`: it is not stored.
        code: The problem code, if it is not stored.
        detail: The reason, if it is not stored.
    """

    number: int
    facts: dict[str, Any] | None
    code: str = ""
    detail: str = ""


def run(invocation: Invocation) -> Command:
    links = _read_links(invocation.arguments)
    if invocation.arguments.server:
        target = ServerTarget(make_client(invocation))
        return save(links, target, as_json=invocation.arguments.json, out=sys.stdout, err=sys.stderr)
    return _run_in_store(invocation, links)


def _read_links(arguments: argparse.Namespace) -> list[str]:
    """Return the links of the command line and of the file. Blocks."""
    links = list(read_urls(arguments.urls))
    if arguments.file is not None:
        try:
            links += arguments.file.read_bytes().decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise ConfigError(f"{arguments.file}: {error.strerror}") from None
    if not links:
        raise ConfigError("save: name URLs, or a file with -f")
    return links


async def _run_in_store(invocation: Invocation, links: Sequence[str]) -> int:
    from imgkeep.bootstrap.command_services import open_command_services  # noqa: PLC0415 - `--server` opens no store

    await asyncio.to_thread(partial(require_owner, invocation.config, server_helps=True))
    async with open_command_services(invocation.config) as services:
        target = make_store_target(invocation, services)
        return await save(links, target, as_json=invocation.arguments.json, out=sys.stdout, err=sys.stderr)


def make_store_target(invocation: Invocation, services: Services) -> StoreTarget:
    """Return the configured store as a target; permanent URLs begin as the configuration says."""
    describe = partial(services.image_service.describe, base=invocation.base)
    return StoreTarget(services.saver, identify=services.image_service.identify, describe=describe, clock=read_clock)


async def save(urls: Iterable[str], target: Target, *, as_json: bool, out: TextIO, err: TextIO) -> int:
    """Save links, print the permanent URL of each in the order of the links, and a summary. 1 if one is not stored."""
    wanted = [url for url in urls if url.strip()]
    outcomes: dict[int, Outcome] = {}
    counts: Counter[str] = Counter()
    printed = 0
    try:
        with progress("saving", len(wanted), err) as bar:
            async with aclosing(target.save(wanted, bar.note)) as results:
                async for outcome in results:
                    outcomes[outcome.number] = outcome
                    counts[_state(outcome)] += 1
                    bar.advance(1)
                    if outcome.facts is None and not as_json:
                        bar.say(f"imgkeep: link {outcome.number + 1}: {outcome.code}: {outcome.detail}")
                    while printed in outcomes:
                        bar.answer(out, _line(wanted[printed], outcomes.pop(printed), as_json=as_json))
                        printed += 1
    except asyncio.CancelledError:
        err.write(f"{_summary(counts)}, {len(wanted) - counts.total()} not done\n")
        raise
    if not as_json:
        err.write(f"{_summary(counts)}\n")
    return 1 if counts["failed"] else 0


def _state(outcome: Outcome) -> str:
    if outcome.facts is None:
        return "failed"
    return "saved" if outcome.facts.get("created") else "known"


def _summary(counts: Counter[str]) -> str:
    return f"{counts['saved']} saved, {counts['known']} known, {counts['failed']} failed"


def _line(url: str, outcome: Outcome, *, as_json: bool) -> str:
    if not as_json:
        return str(outcome.facts["url"]) if outcome.facts else "-"
    if outcome.facts is None:
        error = {"code": outcome.code, "detail": outcome.detail}
        return as_line({"success": False, "source_url": url, "error": error})
    return as_line({"success": True, "source_url": url, **outcome.facts})


class StoreTarget:
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
        """Save all links, the earliest expiry first, and yield the outcome of each; `note` shows what comes next."""
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
    """Return the words beside the progress bar: the host of a link, and how soon the link expires."""
    if ends_at == NEVER_EXPIRES_S:
        return host
    seconds = round(ends_at - now.timestamp())
    if seconds <= 0:
        return f"{host}, expired"
    unit, size = next(
        (unit, size) for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)) if seconds >= size
    )
    return f"{host}, expires in {seconds // size} {unit}"


class ServerTarget:
    """A running imgkeep; its jobs go on after the end of this command."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def save(self, urls: Sequence[str], note: Callable[[str], None]) -> AsyncGenerator[Outcome]:
        """Save all links in jobs, and yield the outcome of each in order; `note` shows the name of the job."""
        call = self._client.call_api
        async with self._client.session() as session:
            for start in range(0, len(urls), JOB_LINKS_MAX):
                part = urls[start : start + JOB_LINKS_MAX]
                job = await call(session, "POST", "/api/save-images", json={"urls": part})
                note(f"job {job['id']}")
                done = 0
                while done < len(part):
                    after = f"?after={done - 1}" if done else ""
                    job = await call(session, "GET", f"/api/jobs/{job['id']}{after}")
                    for result in job["results"]:
                        if result["state"] == "waiting":
                            break  # results come in the order of the links
                        done += 1
                        yield _outcome(start, result)
                    if done < len(part):
                        await asyncio.sleep(POLL_EVERY_S)

    async def policy(self, names: Callable[[Source], tuple[str, ...]]) -> tuple[Policy, bool]:
        """Return what the server may fetch, and whether it demands signed links; `names` as in `Policy`."""
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
        return Outcome(number, None, "removed", "the image was removed since")
    return Outcome(number, {**result["image"], "created": result["created"]})
