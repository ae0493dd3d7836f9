"""
Everything that works on images, put together from a configuration: for the server, and for commands that save.

The real clock, the real resolver and the real sockets are chosen here, so that tests can choose others (`Seams`).
Everything that is opened here is closed here, in the opposite order.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from imgkeep import __version__
from imgkeep.bootstrap.storage import cancel, objects_url, open_parts
from imgkeep.clock import read_clock
from imgkeep.cluster.leases import Claims, Turn
from imgkeep.core.errors import Conflict, StorageError, WrittenByNewer
from imgkeep.core.host_patterns import Globs
from imgkeep.core.identity.signature_probe import spoil
from imgkeep.core.records import Place
from imgkeep.core.source_url import read_source
from imgkeep.database import SqlJobs
from imgkeep.health import LOOK_EVERY_S, Health
from imgkeep.images.fill import Neighbours
from imgkeep.images.format_checker import Judges
from imgkeep.images.inspect import Inspector, make_inspector
from imgkeep.images.placeholder_suspects import Suspects
from imgkeep.images.rate_limit import Allowances
from imgkeep.images.recent_failures import REFUSED, RecentFailures
from imgkeep.images.refetch import Refetcher
from imgkeep.images.refresh import Rules
from imgkeep.images.removal import Refusals, Remover
from imgkeep.images.service import Keeper
from imgkeep.images.stored_totals import Stock
from imgkeep.images.upload import Saver
from imgkeep.jobs.runner import JobRunner
from imgkeep.maintenance.verify_reindex import reindex
from imgkeep.observability.metrics import Metrics
from imgkeep.origin import AddressGuard, OriginClient
from imgkeep.origin.ssrf_guard import open_socket
from imgkeep.page_rewriting import Linking
from imgkeep.replication.outbox_worker import Healer
from imgkeep.storage.disk_cache import Share

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping

    from aiohttp.abc import AbstractResolver

    from imgkeep.bootstrap.storage import Parts
    from imgkeep.config import Config
    from imgkeep.core.errors import SourceForbidden
    from imgkeep.core.records import Digest, Key, Record, Subject
    from imgkeep.images.peer_fill import Peers
    from imgkeep.origin.ssrf_guard import SocketFactory
    from imgkeep.ports import Clock, Sleep

LINGER_S: Final = 10
"""So long a claim is seen after its image was kept, beyond what `store.timeout_s` lets a look-up take."""
TURN_EVERY_S: Final = 0.25
"""So soon somebody else does what a dead worker did for all."""
LATE_JOBS_S: Final = 30
LATE_JOBS_EVERY_S: Final = 10
"""So long one who has left may still take jobs, for requests that it has begun, and so often they are looked for."""

NAME_THREADS_PER_FETCH: Final = 2
"""The system's resolver blocks its thread, for half a minute when no name server answers; fetches give up sooner."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seams:
    """What tests choose otherwise: the edges of the machine itself."""

    clock: Clock = read_clock
    timer: Callable[[], float] = time.monotonic
    sleep: Sleep = asyncio.sleep
    """For what is tried again behind everybody's back."""
    resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver
    open_socket: SocketFactory = open_socket
    ssl_context: ssl.SSLContext | None = None
    make_judges: Callable[[], Judges] = Judges


REAL: Final = Seams()


@dataclass(frozen=True, slots=True)
class Works:
    """What works on images. `own_ports`: those that we listen on, for the guard against loops."""

    parts: Parts
    inspector: Inspector
    keeper: Keeper
    saver: Saver
    remover: Remover
    refetcher: Refetcher
    jobs: JobRunner
    health: Health
    metrics: Metrics
    failures: RecentFailures
    stock: Stock
    own_ports: set[int]
    turn: Turn | None
    """Whose turn it is among several workers; `None`: there is one."""
    refusals: Refusals
    siblings: Peers | None
    seams: Seams
    resting: asyncio.Event

    @asynccontextmanager
    async def going(self) -> AsyncGenerator[None]:
        """
        Let everything go on in the background that does: for one process of a catalog at a time. Of several workers one
        does what is done for all, and each looks after itself.
        """
        if self.turn is not None:
            self.turn.take()
        healer = _prepare_healing(self)
        breaker = () if self.parts.remote is None else (self.parts.remote.breaker.run(),)
        tasks = [
            asyncio.create_task(each)
            for each in (
                _watch(self.health, self.parts, self.turn, healer),
                _take_stock(self.stock, self.turn),
                self.refusals.run(self.seams.sleep),
                _sample_process(self.metrics),
                *breaker,
                *(self._works(healer) if self.turn is None else [self._take_turns(self.turn, healer)]),
            )
        ]
        try:
            yield
        finally:
            for task in tasks:
                await cancel(task)

    async def rest(self) -> None:
        """Leave to other workers what one does for all."""
        self.resting.set()
        while self.turn is not None and self.turn.ours:  # noqa: ASYNC110 - the task that has it lets go in a moment
            await asyncio.sleep(0.01)

    async def join(self) -> None:
        """Others can tell us what they know from now on: look for what they have told each other before."""
        await self.refusals.refresh()
        if self.parts.remote is not None:
            await self.parts.remote.cache.open()

    async def learn(
        self,
        refused: Collection[Digest],
        changed: Collection[Key],
        copies: Mapping[str, int],
        restored: Collection[Digest] = (),
    ) -> None:
        """Another worker has removed or restored pictures, knows something new of what is kept, or has used copies."""
        await self.refusals.learn(refused)
        with suppress(StorageError):  # the next refresh looks again
            await self.refusals.look_again(restored)
        for name in changed:
            self.keeper.learn(name)
        if self.parts.remote is not None:
            await self.parts.remote.cache.note_all(copies)

    def _works(self, healer: Healer | None) -> list[Coroutine[None, None, None]]:
        return [self.jobs.run(), *(() if healer is None else (healer.run(),))]

    async def _take_turns(self, turn: Turn, healer: Healer | None) -> None:
        """Wait for our turn, and have it until we leave."""
        while not (turn.ours or turn.take()):
            if await _within(self.resting, TURN_EVERY_S):
                return
        log.info("works in the background")
        tasks = [asyncio.create_task(each) for each in self._works(healer)]
        try:
            for _ in range(LATE_JOBS_S // LATE_JOBS_EVERY_S):
                if await _within(self.resting, LATE_JOBS_EVERY_S):
                    return
                self.jobs.look_again()
            await self.resting.wait()
        finally:
            for task in tasks:
                await cancel(task)
            turn.leave()


def make_linking(config: Config, inspector: Inspector, parts: Parts | None = None) -> Linking:
    """Return who says which links in pages become ours; `parts` tell where a public bucket is."""
    objects = parts.remote.objects_url if parts is not None and parts.remote is not None else objects_url(config)
    keys = config.security.signing_keys
    return Linking(inspector, keys[0] if keys else None, None if objects is None else read_source(objects))


@asynccontextmanager
async def open_works(
    config: Config, seams: Seams = REAL, place: Place | None = None, siblings: Peers | None = None
) -> AsyncGenerator[Works]:
    """
    Open all of it; nothing goes on in the background yet (`Works.going`). `place`: among several workers.

    Raises:
        CatalogTooNew: A newer version wrote the catalog.
    """
    metrics = Metrics()
    metrics.announce(version=__version__, python=platform.python_version())
    failures = RecentFailures(seams.clock)
    share = None
    if place is not None and siblings is not None:
        share = Share(place.slot, place.workers, lambda copies: siblings.tell(copies=copies))
    names = ThreadPoolExecutor(config.fetch.concurrent_max * NAME_THREADS_PER_FETCH, thread_name_prefix="names")
    asyncio.get_running_loop().set_default_executor(names)  # where the resolver looks names up
    async with open_parts(
        config, clock=seams.clock, timer=seams.timer, sleep=seams.sleep, observe=metrics.called, share=share
    ) as parts:
        health = Health(parts.disk, parts.catalog, config.store.free_bytes_min, parts.remote)
        inspector = make_inspector(config, seams.clock)
        own_ports: set[int] = set()
        origin = _make_origin(config, seams, inspector, metrics, own_ports)
        refusals = Refusals(parts.store, parts.catalog, _drop_of(parts), siblings)
        claims = None if place is None else _open_claims(config, seams, place)
        judges = seams.make_judges()
        witness = _Witness(metrics, health, failures)
        neighbours = _make_neighbours(config, seams, parts, origin, judges, witness, refusals)
        keeper = _make_keeper(config, seams, parts, inspector, neighbours, claims, siblings, metrics.refused)
        remover = Remover(
            store=parts.store, register=parts.catalog, finder=keeper, refusals=refusals, clock=seams.clock
        )
        refusals.restored = keeper.restored
        refusals.removed_elsewhere = remover.finish
        refetcher = Refetcher(
            keeper,
            neighbours,
            policy=inspector.policy,
            settle=parts.catalog.settle,
            sleep=seams.sleep,
            claims=claims,
        )
        saver = Saver(keeper, neighbours, body_bytes_max=config.fetch.body_bytes_max)
        works = Works(
            parts=parts,
            inspector=inspector,
            keeper=keeper,
            saver=saver,
            remover=remover,
            refetcher=refetcher,
            jobs=_make_jobs(config, seams, parts, inspector, saver, origin, metrics),
            health=health,
            metrics=metrics,
            failures=failures,
            stock=Stock(parts.catalog, seams.timer),
            own_ports=own_ports,
            turn=None if place is None else Turn(Path(place.folder), place.name),
            refusals=refusals,
            siblings=siblings,
            seams=seams,
            resting=asyncio.Event(),
        )
        _watch_gauges(works, origin, judges)
        await health.look()
        await refusals.open()
        try:
            yield works
        finally:
            await refetcher.aclose()
            await keeper.aclose()
            await origin.aclose()
            judges.close()
            if claims is not None:
                claims.aclose()


def _make_origin(
    config: Config, seams: Seams, inspector: Inspector, metrics: Metrics, own_ports: set[int]
) -> OriginClient:
    guard = AddressGuard(inspector.policy, seams.resolver(), seams.open_socket)
    guard.own_ports = own_ports
    return OriginClient(
        settings=config.fetch,
        policy=inspector.policy,
        guard=guard,
        clock=seams.clock,
        draw=random.random,
        ssl_context=seams.ssl_context,
        user_agent=config.fetch.user_agent or f"Mozilla/5.0 (compatible; imgkeep/{__version__})",
        fetched=metrics.fetched,
        refused=metrics.refused,
        is_gone=inspector.is_gone,
    )


def _make_neighbours(  # noqa: PLR0913, PLR0917 - what they are
    config: Config,
    seams: Seams,
    parts: Parts,
    origin: OriginClient,
    judges: Judges,
    witness: _Witness,
    refusals: Refusals,
) -> Neighbours:
    return Neighbours(
        origin=origin,
        store=parts.store,
        disk=parts.spool,
        memory=parts.memory,
        judges=judges,
        observer=witness,
        clock=seams.clock,
        draw_etag=lambda: f'"{secrets.token_hex(16)}"',
        pixels_max=config.fetch.pixels_max,
        refused=refusals,
        suspects=Suspects(seams.timer, refuse=config.sources.placeholders == "refuse"),
        show_errors=config.fetch.show_errors,
    )


def _make_keeper(  # noqa: PLR0913, PLR0917 - what it is made of
    config: Config,
    seams: Seams,
    parts: Parts,
    inspector: Inspector,
    neighbours: Neighbours,
    claims: Claims | None,
    siblings: Peers | None,
    refused: Callable[[str], None],
) -> Keeper:
    catalogue = config.read_catalogue()
    return Keeper(
        store=parts.store,
        catalog=parts.catalog,
        policy=inspector.policy,
        identify=inspector.identify,
        rules=Rules(
            redirect_permanent=config.sources.permanent == "redirect",
            refresh=Globs(config.sources.refresh) if config.sources.refresh else None,
        ),
        timer=seams.timer,
        addresses=None if parts.remote is None else parts.remote.addresses,
        allowances=Allowances(
            fills_per_minute=config.limits.fills_per_minute,
            fills_concurrent=config.limits.fills_concurrent,
            fill_bytes_per_day=config.fill_bytes_per_day,
            timer=seams.timer,
            refused=refused,
        ),
        neighbours=neighbours,
        refused=neighbours.refused,
        claims=claims,
        siblings=siblings,
        spoil=lambda source: spoil(source, seams.clock(), catalogue, secrets.randbelow),
    )


def _make_jobs(  # noqa: PLR0913, PLR0917 - what it is made of
    config: Config,
    seams: Seams,
    parts: Parts,
    inspector: Inspector,
    saver: Saver,
    messenger: OriginClient,
    metrics: Metrics,
) -> JobRunner:
    return JobRunner(
        jobs=SqlJobs(parts.catalog),
        saver=saver,
        messenger=messenger,
        identify=inspector.identify,
        public=inspector.public,
        webhook_key=config.security.signing_keys[0] if config.security.signing_keys else None,
        clock=seams.clock,
        draw=random.random,
        draw_id=lambda: secrets.token_hex(16),
        timer=seams.timer,
        sleep=seams.sleep,
        counted=metrics.worked,
    )


def _watch_gauges(works: Works, origin: OriginClient, judges: Judges) -> None:
    """Show what is under way, and what is held, beside what is counted."""
    watch, shelf = works.metrics.watch, works.parts.disk.shelf
    watch("job_links_waiting", "Links that wait to be saved", lambda: works.jobs.waiting, shared=True)
    watch("fills_in_flight", "Images being fetched", lambda: works.keeper.fills_in_air)
    watch("fetches_waiting", "Fetches that wait for a place", lambda: origin.gates.waiting)
    watch("fetches_under_way", "Fetches that hold a place", lambda: origin.gates.used)
    watch("judgements_in_flight", "Images judged in threads of their own", lambda: judges.under_way)
    watch("hot_bytes", "Bytes of objects held in memory", lambda: shelf.copied_bytes)
    watch("mapped_bytes", "Bytes of objects mapped into memory", lambda: shelf.mapped_bytes)
    watch("ready", "Processes that /readyz calls ready or degraded", lambda: works.health.report(in_full=False)[0])
    watch("degraded", "Processes of which a part is failing", lambda: any(works.health.faults.values()))
    watch("images", "Images that are stored, as of the last count", lambda: works.stock.images, shared=True)
    watch("images_bytes", "Bytes of these images", lambda: works.stock.size, shared=True)
    watch("store_free_bytes", "Bytes free on the local disk", lambda: works.health.free_bytes, shared=True)


def _open_claims(config: Config, seams: Seams, place: Place) -> Claims:
    linger_s = LINGER_S + config.store.timeout_s  # a look-up may go to a bucket
    return Claims(Path(place.folder) / Place.CLAIMS, place.name, linger_s=linger_s, timer=seams.timer)


def _prepare_healing(works: Works) -> Healer | None:
    """Have a remote store looked after; return who carries over what waits for it."""
    parts, health, metrics = works.parts, works.health, works.metrics
    remote = parts.remote
    if remote is None:
        return None
    watch = metrics.watch
    watch("store_away", "1 while the fallback takes over", lambda: remote.breaker.reason is not None, shared=True)
    watch("cache_bytes", "Bytes of local copies", lambda: remote.cache.bytes)
    metrics.watch_count("cache_hits", "Look-ups that found a local copy", lambda: remote.cache.hits)
    metrics.watch_count("cache_misses", "Look-ups that found none", lambda: remote.cache.misses)

    def tell_store(reason: str | None) -> None:
        health.faults["store"] = reason

    remote.breaker.tell = tell_store
    if remote.fallback is None:
        return None

    async def forget(key: Key) -> None:
        await parts.catalog.drop([key])
        works.keeper.forget(key)
        await works.keeper.tell(key)

    healer = Healer(
        primary=remote.bucket,
        fallback=remote.fallback,
        cache=remote.cache,
        outbox=parts.catalog,
        catalog=parts.catalog,
        breaker=remote.breaker,
        keeper=works.keeper if works.siblings is None else _Herald(works.keeper),
        draw=random.random,
        counted=metrics.healed,
        seen=remote.tiers.note,
        sleep=works.seams.sleep,
        refused=works.refusals,
        forget=forget,
    )
    _show_backlog(works, healer)
    return healer


def _show_backlog(works: Works, healer: Healer) -> None:
    """Have it told what waits for the store."""
    watch = works.metrics.watch

    def oldest_s() -> float:
        oldest = healer.backlog.oldest if healer.backlog else None
        return 0 if oldest is None else max(0, (works.seams.clock() - oldest).total_seconds())

    def tell() -> dict[str, object]:
        backlog = healer.backlog
        if backlog is None:  # nobody has looked yet
            return {"waiting": None, "oldest_s": None, "last_error": None}
        return {"waiting": backlog.images, "oldest_s": round(oldest_s()), "last_error": backlog.error}

    works.health.fallback = tell
    watch(
        "outbox_images",
        "Images that wait for the store",
        lambda: healer.backlog.images if healer.backlog else 0,
        shared=True,
    )
    watch("outbox_oldest_seconds", "Since when the oldest of them waits", oldest_s, shared=True)


def _drop_of(parts: Parts) -> Callable[[Digest], Awaitable[None]]:
    """Return who drops this machine's copies of a picture that is refused."""
    return parts.disk.forget if parts.remote is None else parts.remote.tiers.drop


class _Herald:
    """Implements `service.heal.Keeps`: what was carried over is elsewhere now, for all workers."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def kept(self, record: Record) -> None:
        await self._keeper.kept(record)
        await self._keeper.tell(record.key)


class _Witness:
    """Implements `ports.Observer`: counts, and tells the health at once what a fill met."""

    def __init__(self, metrics: Metrics, health: Health, failures: RecentFailures) -> None:
        self._metrics = metrics
        self._health = health
        self._failures = failures

    def filled(self, subject: Subject, size: int, *, pending: bool) -> None:
        self._metrics.filled(subject.label, size, pending=pending)

    def unchanged(self, subject: Subject) -> None:
        self._metrics.unchanged(subject.label)

    def weighed(self, outcome: str) -> None:
        self._metrics.weighed(outcome)

    def completed(self, outcome: str) -> None:
        self._metrics.completed(outcome)

    def suspected(self, record: Record) -> None:
        self._metrics.weighed("suspect")
        log.warning(
            "placeholder suspected: the host gives one picture for many links",
            extra={"host": record.host, "digest": record.digest},
        )

    def unkept(self, subject: Subject, fault: StorageError) -> None:
        self._metrics.unkept(subject.label)
        if isinstance(fault, Conflict) and not isinstance(fault, WrittenByNewer):
            return
        reason = fault.in_full
        if not self._health.faults.get("store"):
            log.error("an image was delivered but not kept", extra={"reason": reason})
        self._health.note("store", reason)
        self._failures.note(subject, fault)

    def failed(self, subject: Subject, error: BaseException) -> None:
        self._metrics.failed(subject.label, error)
        self._failures.note(subject, error)

    def refused(self, subject: Subject, error: SourceForbidden) -> None:
        self._failures.note(subject, error, share=REFUSED)


async def _sample_process(metrics: Metrics) -> None:
    """Have the metrics tell of this process, in a thread that nothing else waits for."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="process")
    try:
        while True:
            await asyncio.get_running_loop().run_in_executor(thread, metrics.process.take)
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        thread.shutdown(wait=False)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for so long at most, and return whether it came."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


async def _take_stock(stock: Stock, turn: Turn | None) -> None:
    """Count what is stored, where that is ours to do. Health does not wait for it: a count may take minutes."""
    while True:
        if turn is None or turn.ours:
            await stock.look()
        await asyncio.sleep(LOOK_EVERY_S)


async def _watch(health: Health, parts: Parts, turn: Turn | None, healer: Healer | None) -> None:
    """
    Look after the health, and fill a catalog that is new or was lost: from a disk. Of a bucket every record would be a
    request that is paid for, and look-ups find them one by one as they are needed.
    """
    while True:
        is_ours = turn is None or turn.ours
        if is_ours and parts.remote is None and not parts.catalog.complete and not any(health.faults.values()):
            with suppress(StorageError):
                images = await reindex(parts.archives, parts.catalog)
                log.info("catalog filled from the records", extra={"images": images})
        await asyncio.sleep(LOOK_EVERY_S)
        before = dict(health.faults)
        await health.look()
        if healer is not None and not is_ours:
            with suppress(StorageError):
                healer.backlog = await parts.catalog.backlog()  # who carries over looks by itself
        for part, fault in health.faults.items():
            if fault != before.get(part):
                log.log(
                    logging.ERROR if fault else logging.INFO,
                    "part is failing" if fault else "part works again",
                    extra={"part": part, "reason": fault},
                )
