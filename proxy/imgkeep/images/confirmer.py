"""
Second fills: images of links whose key has an image already. The confirmer compares each with the stored image, stores
it under the right key, and confirms or rejects it by signature probes.

The rules are those of `core/confirmation.py`; this module carries them out.

- A link's whole image is durable before its last byte is sent, also if it is stored under another key.
- A client never waits for a probe. There is one probe per key at a time, and few in all; where a probe cannot be made
  now, the next link gives another occasion.
- Before the confirmer changes a record, it reads the record from the store again. A record that has changed meanwhile
  stays.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import (
    SEPARATE_RECORD_DOUBTS,
    Comparison,
    can_complete,
    can_confirm,
    can_prove,
    can_refresh,
    compare_records,
    confirmed,
    key_of,
    merge,
    needs_separate_record,
    own_identity,
    own_info,
    replacing_record,
)
from imgkeep.core.errors import Conflict, ImgkeepError
from imgkeep.core.probe_result import ProbeResult
from imgkeep.core.records import Digest, Doubt
from imgkeep.images.interfaces import NO_LINK
from imgkeep.images.signature_probe import SecondFill, SignatureProbe
from imgkeep.images.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

    from imgkeep.core.confirmation import Link
    from imgkeep.core.records import Key, Record, Source, SourceInfo
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.interfaces import Leases
    from imgkeep.images.record_changes import RecordChanges
    from imgkeep.storage.interfaces import Draft

SEEN_LINKS_MAX: Final = 65_536
"""Maximum number of links that are known to have been compared; 300 bytes each, 20 MB."""
PROBES_MAX: Final = 8
"""Maximum number of probes at a time: each is up to four requests, and links of untrusted clients cause them."""
UNPROVEN_TTL_S: Final = 600
"""Time for which equal bytes cause no other probe of a key, once a wrong signature has brought them too."""
UNPROVEN_MAX: Final = 16_384
TRIED: Final = "tried"
"""The prefix of a message between workers, before a fingerprint and a digest."""
CHUNK_BYTES: Final = 262_144
"""Number of bytes of a stored object that are read at a time."""

log = logging.getLogger(__name__)


class Confirmer:
    """
    The decision about the images of second fills: where to store them, and whether to confirm them.

    Args:
        dependencies: Those of all fills.
        changes: Announces every further record that the confirmer writes, and the messages that `learn` reads.
        leases: The right to probe, among several workers; `None`: there is one.
        alter: Returns a link with another, random signature; `None` if it carries none.
        timer: Gives monotonic seconds.
    """

    def __init__(
        self,
        dependencies: FillDependencies,
        *,
        changes: RecordChanges,
        leases: Leases | None,
        alter: Callable[[Source], Source | None],
        timer: Callable[[], float],
    ) -> None:
        self._dependencies = dependencies
        self._stored = changes.note_stored
        self._tell = changes.notify_peers
        self._leases = leases
        self._alter = alter
        self._seen: LRUCache[str, Digest] = LRUCache(SEEN_LINKS_MAX)
        """By the link's fingerprint, the stored bytes that it was compared with."""
        self._unproven: TTLCache[tuple[Key, Digest], bool] = TTLCache(UNPROVEN_MAX, UNPROVEN_TTL_S, timer=timer)
        self._probes: SingleFlight[SignatureProbe] = SingleFlight()

    async def drain(self) -> None:
        """Wait until no probe is running."""
        await self._probes.drain()

    async def aclose(self) -> None:
        await self._probes.aclose()

    def was_tried(self, link: Link, record: Record) -> bool:
        """Tell whether a link was compared with the image that is stored now."""
        return self._seen.get(link.fingerprint) == record.digest

    def learn(self, name: str) -> bool:
        """Learn from another worker that a link was compared; `False`: the message says something else."""
        kind, _, rest = name.partition(" ")
        if kind != TRIED:
            return False
        mark, _, digest = rest.partition(" ")
        self._seen[mark] = Digest(digest)
        return True

    async def put_second_fill(
        self, source: Source, info: SourceInfo, known: Record, draft: Draft, new: Record
    ) -> Record:
        """Store the whole image of a second fill where it belongs; return the record by which its link finds it."""
        continues = await is_continuation(known, draft)
        comparison = compare_records(known, new, continues=continues)
        self._dependencies.observer.weighed(comparison.value)
        if comparison is Comparison.REPLACE:
            return await self.replace_stored(known, draft, new, continues=continues)
        if await self._is_beginning_of_stored(known, new):
            await self._note_compared(new, known)
            return known
        second_fill = SecondFill(source, info, known, new)
        if comparison is Comparison.EQUAL:
            return await self._merge(second_fill, draft)
        return await self._store_beside(second_fill, draft)

    async def put_secure(self, known: Record, draft: Draft, new: Record) -> Record:
        """
        Store a whole image that was fetched over https in the background, if it leaves fewer doubts.

        Raises:
            Conflict: It does not.
        """
        continues = await is_continuation(known, draft)
        comparison = compare_records(known, new, continues=continues)
        if comparison is Comparison.REPLACE:
            return await self.replace_stored(known, draft, new, continues=continues)
        if comparison is Comparison.OTHER:
            raise Conflict("the image that came over https is another one than the stored image")
        merged = merge(known, new)
        return known if merged == known else await self._dependencies.store.put_record(merged)

    async def put_refreshed(self, known: Record, draft: Draft, new: Record) -> Record:
        """
        Store a whole image that replaces another, because the operator wants that for this host.

        Raises:
            Conflict: The link turned out to be unverified.
        """
        if not can_refresh(known, new):
            raise Conflict("a link that is not verified replaces nothing")
        # Whether others have records of their own is known of the key, not of what this link brought.
        doubts = new.doubts | (known.doubts & SEPARATE_RECORD_DOUBTS)
        brought_by = new.brought_by or (known.brought_by if doubts else "")
        replacing = replace(new, trust=replace(new.trust, doubts=doubts, brought_by=brought_by))
        return await self._dependencies.store.put(draft, replacing, known.digest)

    async def replace_stored(self, known: Record, draft: Draft, new: Record, *, continues: bool) -> Record:
        """
        Store an image in the place of another.

        `continues`: the new bytes begin with the stored ones, and are more of them. Raises as `Store.put`.
        """
        replacing = replacing_record(known, new)
        if known.digest != new.digest and needs_separate_record(known, new, continues=continues):
            await self._leave_to_its_link(known)
            replacing = replacing.with_doubts(replacing.doubts | {Doubt.CONTESTED})
        return await self._dependencies.store.put(draft, replacing, known.digest)

    async def _merge(self, second_fill: SecondFill, draft: Draft) -> Record:
        """Update the record after another link has brought the same bytes."""
        current = await self._read_again(second_fill.known)
        if current.digest != second_fill.new.digest:
            return current
        known = merge(current, second_fill.new)
        if not await self._dependencies.store.holds(known.object_name, known.size):
            known = await self._dependencies.store.put(draft, known, known.digest)  # the object was lost
        elif known != current:
            known = await self._dependencies.store.put_record(known)
        await self._note_compared(second_fill.new, known)
        if can_confirm(known, second_fill.new) and (known.key, known.digest) not in self._unproven:
            self._probe(replace(second_fill, known=known))
        return known

    async def _store_beside(self, second_fill: SecondFill, draft: Draft) -> Record:
        """Store other bytes than the stored ones under the link's own key."""
        new = second_fill.new
        own = own_info(second_fill.info, new.brought_by)
        stored = await self._dependencies.store.put(draft, replace(new, key=own.key, identity=own.identity))
        known = await self._read_again(second_fill.known)
        if Doubt.CONTESTED not in known.doubts:
            contested = known.with_doubts(known.doubts | {Doubt.CONTESTED})
            known = await self._dependencies.store.put_record(contested)
            await self._stored(known)
        if can_confirm(known, new) if known.digest == new.digest else can_prove(known, new) or can_complete(known, new):
            self._probe(replace(second_fill, known=known, new=stored))
        return stored

    async def _note_compared(self, new: Record, known: Record) -> None:
        self._seen[new.brought_by] = known.digest
        await self._tell(f"{TRIED} {new.brought_by} {known.digest}")

    async def _is_beginning_of_stored(self, known: Record, new: Record) -> bool:
        """Tell whether a link has brought the beginning of the stored object, and is to be shown that one."""
        if Doubt.INCOMPLETE not in new.doubts or known.size <= new.size:
            return False
        digest = sha256()
        with suppress(ImgkeepError):
            body = await self._dependencies.store.fetch(known.object_name, known.size)
            if body is None:
                return False
            try:
                offset = 0
                while offset < new.size and (chunk := await body.read(offset, min(CHUNK_BYTES, new.size - offset))):
                    digest.update(chunk)
                    offset += len(chunk)
            finally:
                await body.aclose()
        return digest.hexdigest() == new.digest

    async def _read_again(self, known: Record) -> Record:
        """Return the record of a key from the store: another worker or node may have changed it."""
        current = await self._dependencies.store.find(known.key)
        if current is None:
            return known
        if current != known:
            await self._stored(current)
        return current

    def _probe(self, second_fill: SecondFill) -> None:
        """Find out in the background whether the signature of a link makes a difference."""
        name = f"probe.{second_fill.known.key}"
        if name in self._probes or len(self._probes) >= PROBES_MAX:
            return
        if self._leases is not None and self._leases.acquire(name) is not None:
            return
        request = None if self._leases is None else self._leases.request(name, NO_LINK)
        release = partial(self._release, name)
        self._probes.join(
            name,
            lambda: SignatureProbe(
                second_fill, self._dependencies, self._alter, self._conclude, request=request, release=release
            ),
        )

    def _release(self, name: str) -> None:
        if self._leases is not None:
            self._leases.release(name)

    async def _conclude(self, second_fill: SecondFill, probe_result: ProbeResult | None) -> None:
        """Change the record as a probe allows; `None`: the signature of the link cannot be altered."""
        known, new = second_fill.known, second_fill.new
        self._dependencies.observer.weighed("unproven" if probe_result is None else probe_result.name.lower())
        current = await self._dependencies.store.find(known.key)
        if current is None or (current.digest, current.brought_by) != (known.digest, known.brought_by):
            return
        if known.digest == new.digest:
            if probe_result is ProbeResult.DIFFERENCE:
                await self._restate(confirmed(current))
                log.info("image confirmed", extra={"key": known.key, "host": known.host})
            else:
                self._unproven[known.key, known.digest] = True
        elif probe_result is ProbeResult.PLACEHOLDER or (
            probe_result is ProbeResult.DIFFERENCE and not current.doubts.isdisjoint({Doubt.ENDED, Doubt.INCOMPLETE})
        ):
            await self._replace_placeholder(current, second_fill)
        elif probe_result is ProbeResult.DIFFERENCE:
            # Not if the signature cannot be altered: only the author of the link vouches for its form.
            await self._split(current)

    async def _replace_placeholder(self, current: Record, second_fill: SecondFill) -> None:
        """Put what a second fill brought in the place of a placeholder, which stays for the link that brought it."""
        await self._leave_to_its_link(current)
        new = replace(
            second_fill.new,
            key=current.key,
            identity=current.identity,
            trust=replace(second_fill.new.trust, doubts=second_fill.new.doubts | {Doubt.CONTESTED}),
        )
        await self._restate(new, current.digest)
        log.warning("placeholder replaced", extra={"key": current.key, "host": current.host, "digest": current.digest})

    async def _leave_to_its_link(self, known: Record) -> None:
        """Write a record that shows an image to the link that brought it, whatever replaces it for others."""
        identity = own_identity(known.identity, known.brought_by)
        doubts = known.doubts - {Doubt.CONTESTED}
        await self._restate(
            replace(known, key=key_of(identity), identity=identity, trust=replace(known.trust, doubts=doubts))
        )

    async def _split(self, current: Record) -> None:
        """Have each link of a key show its own image from now on, and tell the operator once."""
        if Doubt.SPLIT in current.doubts:
            return
        await self._restate(current.with_doubts(current.doubts | {Doubt.SPLIT}))
        self._dependencies.observer.weighed("split")
        log.warning(
            "key split: the signature names the image at this host",
            extra={"key": current.key, "host": current.host},
        )

    async def _restate(self, record: Record, replaces: Digest | None = None) -> None:
        await self._stored(await self._dependencies.store.put_record(record, replaces))


async def is_continuation(known: Record, draft: Draft) -> bool:
    """Tell whether a draft begins with the bytes of a stored incomplete image and has more of them."""
    if Doubt.INCOMPLETE not in known.doubts or draft.size <= known.size:
        return False
    return await draft.check(partial(_hash_beginning, known.size)) == known.digest


def _hash_beginning(size: int, body: bytearray | mmap) -> str:
    with memoryview(body) as view, view[:size] as beginning:
        return sha256(beginning).hexdigest()
