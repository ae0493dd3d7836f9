"""
Coalescing of fills: concurrent requests for a key share one fill, in this worker or in another one.

Rules:
- A request joins the running fill of its key, or starts one. There is no `await` between
  the result of its lookup and `join` (`images/singleflight.py`).
- Among several workers the one that has the lease fetches; the others follow it there (`cluster/workers/leases.py`).
  A lookup that began before the grace period of a lease is too old: another worker may have stored the image since then
  and released the lease.
- Whether another node has the lease is the first step of a fill (`images/fill_starter.py`); its requests follow the
  holder. If a node cannot be reached, this one fetches without the lease: two fetches are better than none.
- A fill fails by its own link only: a follower with another link repeats its lookup, and may start its own fill.
- The worker that has the client authorises the request. So this worker authorises no request of a peer, and starts no
  fill for one.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from imgkeep.core.confirmation import is_immutable_for, read_link
from imgkeep.core.errors import (
    Busy,
    FilledByPeer,
    ImgkeepError,
    OriginError,
    Removed,
    SourceForbidden,
    StorageError,
    Yielded,
)
from imgkeep.core.records import Key, Record
from imgkeep.images.fill_result import NotStored, Stored
from imgkeep.images.fill_starter import SECOND_FILL_PREFIX, neither_available
from imgkeep.images.negative_cache import hash_link
from imgkeep.images.peer_fill import FillFailure, PeerFill
from imgkeep.images.request_context import CacheStatus, Delivery, HeldByPeer
from imgkeep.images.stored_images import file_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from imgkeep.core.confirmation import Link
    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.images.fill import Fill, FillHead, PutImage
    from imgkeep.images.fill_starter import FillStarter
    from imgkeep.images.interfaces import Cluster
    from imgkeep.images.record_cache import RecordCache
    from imgkeep.images.request_context import RequestContext
    from imgkeep.images.shared_body import SharedBody

T = TypeVar("T")


class FillCoalescer:
    """
    The joining of requests to fills, in this worker and in other workers.

    Args:
        cluster: Leases and peers; `None`: this is the only worker.
        link_asked: Callback with each link that a fill sends to its origin.
        timer: Gives monotonic seconds.
    """

    def __init__(
        self,
        fills: FillStarter,
        records: RecordCache,
        cluster: Cluster | None,
        *,
        link_asked: Callable[[Source], None],
        timer: Callable[[], float],
    ) -> None:
        self._fills = fills
        self._records = records
        self._cluster = cluster
        self._link_asked = link_asked
        self._timer = timer

    async def aclose(self) -> None:
        await self._fills.followed.aclose()

    async def join(  # noqa: PLR0913 - the result of the lookup, and its time
        self,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        follow: Callable[[Fill, Source, SourceInfo, bool], Awaitable[T]],
        *,
        fault: StorageError | None,
        began: float,
    ) -> T | HeldByPeer | None:
        """
        Join the fill of a key or start one; return the result of `follow`, which closes the body unless it raises.

        `None`: the caller has to repeat the lookup. The fill of another link failed, so this link gets its own fill; or
        the lookup is too old, because it started at `began`.
        """
        self._fills.require_start(source, request_context, fault)
        # No await between the result of the lookup and `join`.
        if self._cluster is not None and info.key not in self._fills.running:
            holder = self._fills.acquire(info.key)
            if holder is not None:
                return HeldByPeer(holder, info.key)
            if fault is None and self._timer() - began > self._cluster.leases.grace_s:
                self._fills.release(info.key)
                return None
        fill, starts = self._fills.join(info.key, source, info, request_context, lookup_fault=fault)
        self._link_asked(source)
        fill.body.hold()
        try:
            return await follow(fill, source, info, starts)
        except FilledByPeer as elsewhere:
            await fill.body.aclose()
            return HeldByPeer(elsewhere.holder, elsewhere.lease)
        except Yielded:
            await fill.body.aclose()
            return None  # the fill yielded just before this request joined, because all its readers had left
        except (OriginError, SourceForbidden, Removed) as error:
            await fill.body.aclose()
            if fill.source != source:
                return None
            lookup_fault = fault or fill.lookup_fault
            if lookup_fault is not None and not isinstance(error, Removed):
                raise neither_available(lookup_fault) from error
            raise
        except BaseException:
            await fill.body.aclose()
            raise

    async def try_link(
        self,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        follow: Callable[[Fill, Source, SourceInfo, bool], Awaitable[T]],
        put: PutImage,
    ) -> T | HeldByPeer | None:
        """
        Start or join a second fill: the fill of a link whose key has an image already.

        `None`: no second fill is allowed, or it failed, so the client gets the stored image. The arguments are those of
        `join`; `put` stores the image that the link brings.
        """
        name = f"{SECOND_FILL_PREFIX}{hash_link(source).hex()}"
        with suppress(ImgkeepError):
            self._fills.require_start(source, request_context)
            holder = self._fills.acquire(name)
            if holder is not None:
                return HeldByPeer(holder, name)
            fill, starts = self._fills.join(name, source, info, request_context, put=put)
            fill.body.hold()
            try:
                return await follow(fill, source, info, starts)
            except FilledByPeer as elsewhere:
                await fill.body.aclose()
                return HeldByPeer(elsewhere.holder, elsewhere.lease)
            except BaseException:
                await fill.body.aclose()
                raise
        return None

    async def follow(
        self,
        request_context: RequestContext,
        fill: Fill,
        source: Source,
        info: SourceInfo,
        starts: bool,  # noqa: FBT001 - as `join` calls it
    ) -> Delivery:
        """Wait for the head of a fill, and deliver its body."""
        head: FillHead = await request_context.wait(fill.body.wait_head())
        link = fill.link if source == fill.source else self._read_link(source, info)
        return _deliver(info.key, head, fill.body, CacheStatus.STORED if starts else CacheStatus.COLLAPSED, link)

    async def wait(
        self,
        request_context: RequestContext,
        fill: Fill,
        _source: Source,
        _info: SourceInfo,
        starts: bool,  # noqa: FBT001 - as `join` calls it
    ) -> tuple[Record, bool]:
        """
        Wait until a fill has ended; return the stored record, and whether this request started the fill.

        Raises:
            StorageError: It is not stored.
        """
        await request_context.wait(fill.body.wait_for_size())
        match None if fill.result is None else fill.result.outcome:
            case Stored(record):
                await fill.body.aclose()
                return record, starts
            case NotStored(fault):
                raise fault  # `join` closes the body
        raise StorageError("the image is not stored")

    async def wait_for_fill(self, key: Key) -> None:
        """Wait until this worker runs no fill of a key, whether the fill succeeds or fails."""
        await self._wait_for_preparation(key)
        fill = self._fills.running.find(key)
        if fill is None:
            return
        fill.body.hold()
        try:
            with suppress(ImgkeepError):
                await fill.body.wait_for_size()
        finally:
            await fill.body.aclose()

    async def join_for_peer(self, name: str) -> tuple[SharedBody[FillHead], FillHead] | FillFailure | None:
        """Follow a fill by the name of its lease for a peer, which closes the body; `None`: there is no fill."""
        await self._wait_for_preparation(name)
        fill = self._fills.running.find(name)
        if fill is None:
            await self._release_unused(name)
            return None
        fill.body.hold()
        try:
            return fill.body, await fill.body.wait_head()
        except FilledByPeer:
            await fill.body.aclose()
            return None
        except ImgkeepError as error:
            await fill.body.aclose()
            if not isinstance(error, OriginError | SourceForbidden | Removed):
                return FillFailure(None, error)
            fault = fill.lookup_fault
            return FillFailure(hash_link(fill.source), error if fault is None else neither_available(fault))
        except BaseException:
            await fill.body.aclose()
            raise

    async def follow_peer(
        self,
        held: HeldByPeer,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        fault: StorageError | None,
    ) -> Delivery | None:
        """
        Deliver the image that another worker fetches; `None`: the caller has to repeat the lookup.

        Raises:
            ImgkeepError: The fill failed because of this link, or because of a cause that every link shares.
        """
        assert self._cluster is not None
        memory = self._fills.dependencies.memory
        follow = partial(self._cluster.peers.follow, held.holder, held.lease)
        peer_fill, _ = self._fills.followed.join(
            held.lease, lambda: PeerFill(held.holder, follow, self._fills.dependencies.disk, memory)
        )
        body = peer_fill.body
        body.hold()
        try:
            head: FillHead | FillFailure | None = await request_context.wait(body.wait_head())
        except BaseException as error:
            await body.aclose()
            if self._gives_up(held, error):
                return None
            raise
        if head is None or isinstance(head, FillFailure):
            await body.aclose()
        if head is None:
            await request_context.wait(self.wait_for_peer(held))
            return None
        if isinstance(head, FillFailure):
            if head.link not in {None, hash_link(source)}:
                return None
            if head.link is not None and fault is not None:
                raise neither_available(fault) from head.error
            raise copy.copy(head.error)  # each follower has a traceback of its own
        return _deliver(info.key, head, body, CacheStatus.COLLAPSED, self._read_link(source, info))

    async def wait_for_peer(self, held: HeldByPeer) -> None:
        """Wait until the fill in another worker has ended, or that worker is given up. Raises as `Peers.wait`."""
        assert self._cluster is not None
        try:
            await self._cluster.peers.wait(held.holder, held.lease)
        except ImgkeepError as error:
            if not self._gives_up(held, error):
                raise

    def give_up_on(self, held: HeldByPeer) -> bool:
        """Go on without the leases of a holder; `False`: it is of this machine."""
        assert self._cluster is not None
        return self._cluster.leases.give_up_on(held.holder)

    def _gives_up(self, held: HeldByPeer, error: BaseException) -> bool:
        """Tell whether this worker goes on without the leases of a holder, which it could not follow."""
        return isinstance(error, Busy | StorageError) and self.give_up_on(held)

    async def _wait_for_preparation(self, name: str) -> None:
        """Wait until this worker either runs the fill of a lease that it has prepared, or has released it."""
        if self._fills.preparations is not None:
            await self._fills.preparations.wait(name)

    async def _release_unused(self, name: str) -> None:
        """Release a lease of this worker that has no fill and no stored image, so that a peer can acquire it."""
        record = None
        if not name.startswith(SECOND_FILL_PREFIX):
            try:
                record = await self._records.find(Key(name))
            except Removed:
                return
            except StorageError:
                pass  # the peer's client meets the fault as well
        if record is None and name not in self._fills.running:
            self._fills.release(name)
        if record is not None and record.pending:
            await self._records.settle_index()  # a peer on another machine finds it there alone

    def _read_link(self, source: Source, info: SourceInfo) -> Link:
        return read_link(source, info, self._fills.dependencies.clock())


def _deliver(key: Key, head: FillHead, body: SharedBody[Any], status: CacheStatus, link: Link) -> Delivery:
    return Delivery(
        key,
        status if head.storing else CacheStatus.NOT_STORED,
        head.format,
        head.etag,
        file_name(key, head.format),
        body,
        growing=body,
        immutable=is_immutable_for(head.doubts, link),
    )
