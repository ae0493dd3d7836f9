"""
What links bring beside what is stored under their key: compared, kept where it belongs, and proved by spoiled links.

The rules are those of `core/confirmation.py`; here they are carried out.

- A link's whole image is durable before its last byte goes out, wherever it belongs.
- A probe is a few requests behind the client's back, one probe per key at a time and few in all; it reads no more of
  an answer than the images are large. What it cannot do now, the next link gives another occasion for.
- Before a record is changed, the store is asked for it again: what was changed meanwhile is left alone.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import (
    OTHERS,
    Answer,
    Proof,
    Weight,
    can_complete,
    can_confirm,
    can_prove,
    can_refresh,
    confirmed,
    key_of,
    leaves_to_its_link,
    merge,
    own_identity,
    own_info,
    prove,
    replaced_by,
    secure_twin,
    weigh,
)
from imgkeep.core.dead_link import refuses
from imgkeep.core.errors import Conflict, ImgkeepError, OriginError
from imgkeep.core.formats import sniff
from imgkeep.core.records import Digest, Doubt
from imgkeep.images.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from mmap import mmap

    from imgkeep.core.confirmation import Link
    from imgkeep.core.records import Key, Record, Source, SourceInfo
    from imgkeep.images.fill import FillDependencies
    from imgkeep.images.peer_fill import FillLeases
    from imgkeep.storage.interfaces import Draft

TRIED_MAX: Final = 65_536
"""Links that are known to have been tried; 300 bytes each, 20 MB. One that is forgotten is tried once more."""
PROBES_MAX: Final = 8
"""At a time: each is up to four requests, one after the other, and a stranger's confirmer are the occasion."""
UNPROVEN_S: Final = 600
"""For so long a key is not probed again for equal bytes, once a wrong signature brought the same: cost without gain."""
UNPROVEN_MAX: Final = 16_384
TRIED: Final = "tried"
"""Before a fingerprint and a digest, in what workers tell each other."""
PIECE_BYTES: Final = 262_144
"""Read at a time of what is stored."""
SNIFFED_BYTES: Final = 4096
"""Enough of an answer to tell a page from a picture."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SecondFill:
    """A link that is tried, what it found, and what it brought."""

    source: Source
    info: SourceInfo
    known: Record
    new: Record


class Confirmer:
    """
    Decides what becomes of the images of links that are tried.

    Args:
        dependencies: Those of all fills.
        kept: Is told of every record that is written beside the fill's own.
        tell: Tells other workers what `learn` understands.
        leases: `None`: we are the only worker.
        spoil: Returns a link with another, random signature; `None` if there is none.
        timer: Gives monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - all but one by keyword, in one place
        self,
        dependencies: FillDependencies,
        *,
        kept: Callable[[Record], Awaitable[None]],
        tell: Callable[[str], Awaitable[None]],
        leases: FillLeases | None,
        spoil: Callable[[Source], Source | None],
        timer: Callable[[], float],
    ) -> None:
        self._dependencies = dependencies
        self._kept = kept
        self._tell = tell
        self._leases = leases
        self._spoil = spoil
        self._tried: LRUCache[str, Digest] = LRUCache(TRIED_MAX)
        """By the link's fingerprint, the bytes that it was tried against."""
        self._unproven: TTLCache[tuple[Key, Digest], bool] = TTLCache(UNPROVEN_MAX, UNPROVEN_S, timer=timer)
        self._probes: SingleFlight[Probe] = SingleFlight()

    async def drain(self) -> None:
        """Wait until no probe is under way."""
        await self._probes.drain()

    async def aclose(self) -> None:
        await self._probes.aclose()

    def was_tried(self, link: Link, record: Record) -> bool:
        """Whether a link was tried against what is stored now."""
        return self._tried.get(link.fingerprint) == record.digest

    def learn(self, name: str) -> bool:
        """Learn from another worker that a link was tried; `False`: that is not what it tells."""
        kind, _, rest = name.partition(" ")
        if kind != TRIED:
            return False
        mark, _, digest = rest.partition(" ")
        self._tried[mark] = Digest(digest)
        return True

    async def settle(self, source: Source, info: SourceInfo, known: Record, draft: Draft, new: Record) -> Record:
        """Keep the whole image that a tried link has brought; return the record by which it is found."""
        continues = await is_continuation(known, draft)
        weight = weigh(known, new, continues=continues)
        self._dependencies.observer.weighed(weight.value)
        if weight is Weight.REPLACE:
            return await self.replace_stored(known, draft, new, continues=continues)
        if await self._has_more(known, new):
            await self._note_tried(new, known)
            return known
        trial = SecondFill(source, info, known, new)
        if weight is Weight.EQUAL:
            return await self._note_equal(trial, draft)
        return await self._note_other(trial, draft)

    async def settle_https(self, known: Record, draft: Draft, new: Record) -> Record:
        """
        Keep a whole image that was fetched behind a client's back, if it leaves fewer doubts.

        Raises:
            Conflict: It does not.
        """
        continues = await is_continuation(known, draft)
        weight = weigh(known, new, continues=continues)
        if weight is Weight.REPLACE:
            return await self.replace_stored(known, draft, new, continues=continues)
        if weight is Weight.OTHER:
            raise Conflict("what was brought by https is another image than what is stored")
        merged = merge(known, new)
        return known if merged == known else await self._dependencies.store.put_record(merged)

    async def settle_refresh(self, known: Record, draft: Draft, new: Record) -> Record:
        """
        Keep a whole image that replaces another, because the operator wants that at this host.

        Raises:
            Conflict: The link's word is not enough for that, as it turned out.
        """
        if not can_refresh(known, new):
            raise Conflict("a link that is not verified replaces nothing")
        # Whether others have records of their own is known of the key, not of what this link brought.
        doubts = new.doubts | (known.doubts & OTHERS)
        brought_by = new.brought_by or (known.brought_by if doubts else "")
        return await self._dependencies.store.put(
            draft, replace(new, doubts=doubts, brought_by=brought_by), known.digest
        )

    async def replace_stored(self, known: Record, draft: Draft, new: Record, *, continues: bool) -> Record:
        """Keep an image in the place of another; `continues`: it is more of the same picture. Raises as `Store.put`."""
        replacing = replaced_by(known, new)
        if known.digest != new.digest and leaves_to_its_link(known, new, continues=continues):
            await self._leave_to_its_link(known)
            replacing = replace(replacing, doubts=replacing.doubts | {Doubt.CONTESTED})
        return await self._dependencies.store.put(draft, replacing, known.digest)

    async def _note_equal(self, trial: SecondFill, draft: Draft) -> Record:
        current = await self._read_again(trial.known)
        if current.digest != trial.new.digest:
            return current
        known = merge(current, trial.new)
        if not await self._dependencies.store.holds(known.object_name, known.size):
            known = await self._dependencies.store.put(draft, known, known.digest)  # it was lost
        elif known != current:
            known = await self._dependencies.store.put_record(known)
        await self._note_tried(trial.new, known)
        if can_confirm(known, trial.new) and (known.key, known.digest) not in self._unproven:
            self._probe(replace(trial, known=known))
        return known

    async def _note_tried(self, new: Record, known: Record) -> None:
        self._tried[new.brought_by] = known.digest
        await self._tell(f"{TRIED} {new.brought_by} {known.digest}")

    async def _has_more(self, known: Record, new: Record) -> bool:
        """Whether a link has brought less of the very picture that is stored: it is shown that one from then on."""
        if Doubt.INCOMPLETE not in new.doubts or known.size <= new.size:
            return False
        digest = sha256()
        with suppress(ImgkeepError):
            body = await self._dependencies.store.fetch(known.object_name, known.size)
            if body is None:
                return False
            try:
                offset = 0
                while offset < new.size and (piece := await body.read(offset, min(PIECE_BYTES, new.size - offset))):
                    digest.update(piece)
                    offset += len(piece)
            finally:
                await body.aclose()
        return digest.hexdigest() == new.digest

    async def _note_other(self, trial: SecondFill, draft: Draft) -> Record:
        new = trial.new
        own = own_info(trial.info, new.brought_by)
        kept = await self._dependencies.store.put(draft, replace(new, key=own.key, identity=own.identity))
        known = await self._read_again(trial.known)
        if Doubt.CONTESTED not in known.doubts:
            known = await self._dependencies.store.put_record(replace(known, doubts=known.doubts | {Doubt.CONTESTED}))
            await self._kept(known)
        if can_confirm(known, new) if known.digest == new.digest else can_prove(known, new) or can_complete(known, new):
            self._probe(replace(trial, known=known, new=kept))
        return kept

    async def _read_again(self, known: Record) -> Record:
        """Return what is stored under a key now: another worker or node may have learned more of it."""
        current = await self._dependencies.store.find(known.key)
        if current is None:
            return known
        if current != known:
            await self._kept(current)
        return current

    def _probe(self, trial: SecondFill) -> None:
        """Look behind the client's back whether the signature of a link makes a difference."""
        key = trial.known.key
        name = f"probe.{key}"
        if name in self._probes or len(self._probes) >= PROBES_MAX:
            return
        if self._leases is not None and self._leases.acquire(name) is not None:
            return
        self._probes.join(
            name, lambda: Probe(trial, self._dependencies, self._spoil, self._conclude, partial(self._over, name))
        )

    def _over(self, name: str) -> None:
        if self._leases is not None:
            self._leases.release(name)

    async def _conclude(self, trial: SecondFill, proof: Proof | None) -> None:
        """Do what a probe allows; `None`: the link cannot be spoiled."""
        known, new = trial.known, trial.new
        self._dependencies.observer.weighed("unproven" if proof is None else proof.name.lower())
        current = await self._dependencies.store.find(known.key)
        if current is None or (current.digest, current.brought_by) != (known.digest, known.brought_by):
            return
        if known.digest == new.digest:
            if proof is Proof.DIFFERENCE:
                await self._restate(confirmed(current))
                log.info("image confirmed", extra={"key": known.key, "host": known.host})
            else:
                self._unproven[known.key, known.digest] = True
        elif proof is Proof.PLACEHOLDER or (
            proof is Proof.DIFFERENCE and not current.doubts.isdisjoint({Doubt.ENDED, Doubt.INCOMPLETE})
        ):
            await self._oust(current, trial)
        elif proof is Proof.DIFFERENCE:
            # And not where the link cannot be spoiled: its form is the word of who wrote it.
            await self._split(current)

    async def _oust(self, current: Record, trial: SecondFill) -> None:
        """Let what a tried link brought take the place of a placeholder, which stays for the link that brought it."""
        await self._leave_to_its_link(current)
        new = replace(
            trial.new,
            key=current.key,
            identity=current.identity,
            doubts=trial.new.doubts | {Doubt.CONTESTED},
        )
        await self._restate(new, current.digest)
        log.warning("placeholder replaced", extra={"key": current.key, "host": current.host, "digest": current.digest})

    async def _leave_to_its_link(self, known: Record) -> None:
        """Have the link that brought an image show it on, whatever takes its place for others."""
        identity = own_identity(known.identity, known.brought_by)
        doubts = known.doubts - {Doubt.CONTESTED}
        await self._restate(replace(known, key=key_of(identity), identity=identity, doubts=doubts))

    async def _split(self, current: Record) -> None:
        """Have each link of a key show its own picture from now on, and tell the operator once."""
        if Doubt.SPLIT in current.doubts:
            return
        await self._restate(replace(current, doubts=current.doubts | {Doubt.SPLIT}))
        self._dependencies.observer.weighed("split")
        log.warning(
            "key split: the signature names the picture at this host",
            extra={"key": current.key, "host": current.host},
        )

    async def _restate(self, record: Record, replaces: Digest | None = None) -> None:
        await self._kept(await self._dependencies.store.put_record(record, replaces))


async def is_continuation(known: Record, draft: Draft) -> bool:
    """Whether a draft is more than a stored incomplete image and begins with it."""
    if Doubt.INCOMPLETE not in known.doubts or draft.size <= known.size:
        return False
    return await draft.check(partial(_hash_beginning, known.size)) == known.digest


def _hash_beginning(size: int, body: bytearray | mmap) -> str:
    with memoryview(body) as view, view[:size] as beginning:
        return sha256(beginning).hexdigest()


class Probe:
    """A flight of `collapse.SingleFlight`: asks an origin with spoiled signatures, and concludes."""

    def __init__(
        self,
        trial: SecondFill,
        dependencies: FillDependencies,
        spoil: Callable[[Source], Source | None],
        conclude: Callable[[SecondFill, Proof | None], Awaitable[None]],
        over: Callable[[], None],
    ) -> None:
        self._trial = trial
        self._dependencies = dependencies
        self._spoil = spoil
        self._conclude = conclude
        self._over = over

    async def run(self) -> None:
        await self._conclude(self._trial, await self._look())

    def fail(self, error: BaseException) -> None:
        if isinstance(error, Exception) and not isinstance(error, ImgkeepError):
            log.error("a probe failed unexpectedly", exc_info=error)

    async def aclose(self) -> None:
        self._over()

    async def _look(self) -> Proof | None:
        trial = self._trial
        plaintext = Doubt.PLAINTEXT in trial.new.doubts
        genuine = trial.source if plaintext else secure_twin(trial.source, trial.info) or trial.source
        links = self._spoil(genuine), self._spoil(genuine)
        if links[0] is None or links[1] is None:
            return None
        stored, brought = trial.known.digest, trial.new.digest
        size_max = max(trial.known.size, trial.new.size)
        first = await self._ask(links[0], size_max)
        second = first
        if first not in {Answer.REFUSED, Answer.UNKNOWN, brought}:
            second = await self._ask(links[1], size_max)
        control: Digest | Answer = Answer.UNKNOWN
        if Answer.UNKNOWN not in {first, second} and brought not in {first, second}:
            control = await self._ask(genuine, size_max)
        return prove(stored, brought, (first, second), control)

    async def _ask(self, source: Source, size_max: int) -> Digest | Answer:
        """Return the digest of the image that a link brings, of its first bytes where it is larger than `size_max`."""
        try:
            async with self._dependencies.origin.fetch(source, fail_fast=True) as response:
                if response.plaintext and Doubt.PLAINTEXT not in self._trial.new.doubts:
                    return Answer.UNKNOWN  # an attacker on the way can have answered
                return await _hash_image(response.chunks(), size_max)
        except ImgkeepError as error:
            return Answer.REFUSED if _refuses(error) else Answer.UNKNOWN


def _refuses(error: ImgkeepError) -> bool:
    """Whether an origin has refused a link for good, as far as it tells."""
    return isinstance(error, OriginError) and refuses(error.origin_status)


async def _hash_image(chunks: AsyncIterator[bytes], size_max: int) -> Digest | Answer:
    digest, size, head = sha256(), 0, bytearray()
    async for chunk in chunks:
        head += chunk[: max(0, SNIFFED_BYTES - len(head))]
        piece = chunk[: size_max + 1 - size]
        digest.update(piece)
        size += len(piece)
        if size > size_max:
            break
    if sniff(head, ended=size == len(head)) is None:
        return Answer.REFUSED
    return Digest(digest.hexdigest() if size <= size_max else f">{digest.hexdigest()}")
