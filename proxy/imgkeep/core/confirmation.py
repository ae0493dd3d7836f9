"""
Which links a stored image stands for, and what becomes of it when another link shows the same bytes or others.

Many links fold onto one key, because a signature only grants permission. imgkeep cannot verify a signature, so what one
link brings is not always what another is entitled to: an origin may answer a wrong signature with a placeholder.

Rules:
- A record without doubts stands for every link of its key. Every doubt has a reason (`Doubt`), and none goes away by
  what an unverified link says alone.
- A link that is not known to be entitled to the stored bytes is tried: it makes a fill of its own, once. It is shown
  what is stored where it has ended by its own words, where it brought the record itself, or where its origin refuses.
- Equal bytes by another link confirm a record only if the signature is seen to make a difference: the origin refuses
  the same link with a spoiled signature, or answers two of them with one and the same other image, and then gives the
  genuine link the same bytes again. Two invented links judge_probe nothing, however often they bring one placeholder.
- Other bytes never replace what is stored by the word of an unverified link. They get a record of their own, under the
  identity with the link's fingerprint, and the link that brought them is always shown that record.
- If the spoiled link brings what is stored, what is stored is the placeholder: the other bytes take its place. If it
  brings the other bytes, those are worth nothing. If it brings neither, the signature names the image: the key is
  split, and each link has a record of its own from then on.
- A link whose services refuse a wrong signature with an error, and that has not ended, replaces whatever has doubts.
  Over plain http it replaces only what came that way too.
- That its services do so is known of a host, or read from the shape of the signature alone. The shape can be written
  for any host: what such a link brings stands for links of such a shape whose host is not known to check. All others
  are tried, and it replaces nothing but what such a link brought. Where it agrees with what a bare link brought, the
  image stands for both.
- What came over plain http never stands for an https link.
- An image that its format calls incomplete never takes the place of a whole one. A whole one takes its place by the
  word of a link that is trusted as much, by the shape of a signature only where the signature is seen to make a
  difference, and more of the same image by any link (`core/incomplete_image.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from imgkeep.core.records import DEFAULT_PORTS, Doubt, Key, Source, Standing, Trust

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from imgkeep.core.records import Digest, Record, SourceInfo

FINGERPRINT_CHARS: Final = 32
"""128 bits of a SHA-256: an attacker finds no other link with the same."""

LINK_MARK: Final = "#link="
"""In an identity, before the fingerprint of the one link that it is of."""
SEPARATE_RECORD_DOUBTS: Final = frozenset({Doubt.SPLIT, Doubt.CONTESTED})
"""Of a record beside which there are others, each for one link."""
_PERMANENT: Final = frozenset({Doubt.UNSIGNED, Doubt.SCHEME})
"""The doubts that most images have for ever."""
_UNVERIFIED: Final = frozenset({Doubt.SIGNATURE, Doubt.ENDED})
_UNPROVEN: Final = frozenset({Doubt.SIGNATURE, Doubt.SCHEME, Doubt.UNSIGNED})
"""The doubts that a confirmation takes away."""
_NOT_ABOUT_LINKS: Final = frozenset({Doubt.CONTESTED, Doubt.INCOMPLETE})
"""The doubts that say nothing of the link that brought an image."""


@dataclass(frozen=True, slots=True)
class Link:
    """
    What counts of a link when it meets a record.

    Attributes:
        fingerprint: Of its exact URL.
        signed: Whether its identity leaves out a permission.
        enforced: Whether its services refuse a wrong one.
        known: Whether that is known of its host.
        ended: Whether it has ended by its own words.
        secure: Whether it is an https link.
        shares_https_key: Whether http and https links at the usual ports share its key.
        folded: Whether its scheme is left out of its identity.
    """

    fingerprint: str
    signed: bool
    enforced: bool
    known: bool
    ended: bool
    secure: bool
    shares_https_key: bool
    folded: bool


class RecordUse(Enum):
    """What to do with a record that a link has found."""

    SERVE = "serve"
    SERVE_AND_SEEK_HTTPS = "serve, and look behind the client's back whether https can be had"
    SECOND_FILL = "let the link make a fill of its own"
    OWN_KEY = "look under the link's own identity"


class Comparison(Enum):
    """What a whole image that a link brought means for the record that it found."""

    REPLACE = "replace"
    EQUAL = "equal"
    OTHER = "other"


class ProbeResult(Enum):
    """What requests with spoiled signatures have shown."""

    DIFFERENCE = "the signature makes a difference"
    PLACEHOLDER = "a wrong signature brings what is stored"
    NO_DIFFERENCE = "a wrong signature brings what the link brought"
    NOTHING = "nothing"


class ProbeResponse(Enum):
    """How an origin answered a request of a probe, where it sent no image."""

    REFUSED = "refused"
    UNKNOWN = "unknown"


def fingerprint(source: Source) -> str:
    """Return the fingerprint of an exact link: it is stored, the link is not."""
    return sha256(source.url.encode()).hexdigest()[:FINGERPRINT_CHARS]


def is_folded(info: SourceInfo) -> bool:
    """Return whether an identity leaves the scheme out; one that is the exact URL does not."""
    return info.identity.startswith("//")


def read_link(source: Source, info: SourceInfo, now: datetime) -> Link:
    """Return what counts of a link."""
    folded = is_folded(info)
    signed = info.permission and folded
    return Link(
        fingerprint=fingerprint(source),
        signed=signed,
        enforced=info.enforced,
        known=info.enforced_by_host,
        ended=signed and info.expires_at is not None and info.expires_at <= now,
        secure=source.scheme == "https",
        shares_https_key=folded and source.port in DEFAULT_PORTS.values(),
        folded=folded,
    )


def https_source(source: Source, info: SourceInfo) -> Source | None:
    """Return the https link that shares the key of an http link at a usual port; `None`: it has none."""
    shares_https_key = is_folded(info) and source.port in DEFAULT_PORTS.values()
    return (
        Source("https", source.host, DEFAULT_PORTS["https"], source.target)
        if shares_https_key and source.scheme == "http"
        else None
    )


def own_info(info: SourceInfo, mark: str) -> SourceInfo:
    """Return what identifies the image of one exact link, by its fingerprint, where its key does not."""
    identity = own_identity(info.identity, mark)
    return replace(info, identity=identity, key=key_of(identity))


def own_identity(identity: str, mark: str) -> str:
    """Return the identity of the image of one exact link. It holds no more of the link than the identity does."""
    return f"{shared_identity(identity)}{LINK_MARK}{mark}"


def shared_identity(identity: str) -> str:
    """Return the identity that a link shares with others, of one that is its own."""
    return identity.partition(LINK_MARK)[0]


def key_of(identity: str) -> Key:
    """Return the key of an identity."""
    return Key(sha256(identity.encode()).hexdigest())


def doubts_of(link: Link, *, plaintext: bool) -> frozenset[Doubt]:
    """Return the doubts about what a link brings."""
    doubts = set()
    if not link.signed:
        doubts.add(Doubt.UNSIGNED)
    elif not link.enforced:
        doubts.add(Doubt.SIGNATURE)
    elif not link.known:
        doubts.add(Doubt.SCHEME)
    if link.ended:
        doubts.add(Doubt.ENDED)
    if plaintext and link.folded:
        doubts.add(Doubt.PLAINTEXT)
    return frozenset(doubts)


def judge_record(record: Record, link: Link, *, tried: bool) -> RecordUse:
    """
    Return what to do with a record that a link has found.

    Args:
        record: What is known under the link's key.
        link: The link.
        tried: Whether it has brought these same bytes already, or was found to judge_probe nothing.
    """
    doubts = record.doubts
    is_own = record.brought_by == link.fingerprint
    if Doubt.SPLIT in doubts and not is_own:
        return RecordUse.OWN_KEY
    if not (is_own or link.ended or tried) and _is_doubtful_for(doubts, link):
        return RecordUse.SECOND_FILL
    return (
        RecordUse.SERVE_AND_SEEK_HTTPS
        if Doubt.PLAINTEXT in doubts and link.shares_https_key and not link.secure
        else RecordUse.SERVE
    )


def _is_doubtful_for(doubts: AbstractSet[Doubt], link: Link) -> bool:
    return (
        not doubts.isdisjoint(_UNVERIFIED)
        or not (doubts.isdisjoint(_PERMANENT) or _is_of_its_kind(doubts, link))
        or (Doubt.PLAINTEXT in doubts and link.secure)
    )


def _is_of_its_kind(doubts: AbstractSet[Doubt], link: Link) -> bool:
    """
    Return whether a link is of a kind that is known to bring these bytes: bare, or of the shape of a checked scheme. A
    link whose host is known to check is better than that, and is tried.
    """
    if not link.signed:
        return Doubt.UNSIGNED in doubts
    return Doubt.SCHEME in doubts and link.enforced and not link.known


def is_immutable_for(doubts: AbstractSet[Doubt], link: Link) -> bool:
    """Return whether a client may keep for ever what its link was shown."""
    if Doubt.INCOMPLETE in doubts:
        return False
    return not (
        Doubt.SPLIT in doubts or _is_doubtful_for(doubts, link) or (Doubt.PLAINTEXT in doubts and link.shares_https_key)
    )


def may_change(record: Record) -> bool:
    """Return whether links that others show may change what is known of an image."""
    return not record.doubts <= _PERMANENT


def standing_of(record: Record) -> Standing:
    """Return what the image is worth to other links, in one word."""
    doubts = record.doubts
    if Doubt.SPLIT in doubts:
        return Standing.SPLIT
    authority = record.identity.removeprefix("//").partition("/")[0]
    has_port = authority.rpartition("]")[2].find(":") >= 0
    if not doubts.isdisjoint(_UNVERIFIED | {Doubt.INCOMPLETE}) or (Doubt.PLAINTEXT in doubts and not has_port):
        return Standing.PROVISIONAL
    return Standing.PLAIN if Doubt.UNSIGNED in doubts else Standing.CONFIRMED


def compare_records(known: Record, new: Record, *, continues: bool = False) -> Comparison:
    """
    Return what an image means that a link brought though another record was found under its key.

    Args:
        known: The record that was found.
        new: The record that the image would get.
        continues: Whether the new bytes are more than the stored ones and begin with them: where these are incomplete,
            no link but one that shows the same image can bring them.
    """
    old, doubts = known.doubts - _NOT_ABOUT_LINKS, new.doubts - {Doubt.INCOMPLETE}
    was_incomplete, is_incomplete = (Doubt.INCOMPLETE in record.doubts for record in (known, new))
    is_better = doubts < old and doubts <= {Doubt.PLAINTEXT} | _replaced_by_shape(old)
    if known.digest == new.digest:
        return Comparison.REPLACE if is_better else Comparison.EQUAL
    if is_incomplete and not was_incomplete:
        return Comparison.OTHER
    is_own = bool(new.brought_by) and known.brought_by == new.brought_by
    # Bare https over bare http, or the same link by a better way: nothing but the plaintext is doubted less.
    is_safer = Doubt.PLAINTEXT in old and doubts == old - {Doubt.PLAINTEXT} and (is_own or doubts == {Doubt.UNSIGNED})
    completes = was_incomplete and (
        (continues and _is_as_secure(known, new))
        or (not is_incomplete and ((is_own and doubts <= old) or _can_replace_for_others(old, doubts)))
    )
    return Comparison.REPLACE if is_better or is_safer or completes else Comparison.OTHER


def is_trusted_as_much(old: AbstractSet[Doubt], doubts: AbstractSet[Doubt]) -> bool:
    """
    Return whether a link with these doubts is trusted as much as what brought an image, and is not an unverified one.
    """
    old, doubts = old - _NOT_ABOUT_LINKS, doubts - {Doubt.INCOMPLETE}
    return doubts <= old and doubts <= {Doubt.PLAINTEXT, Doubt.UNSIGNED} | _replaced_by_shape(old)


def _can_replace_for_others(old: AbstractSet[Doubt], doubts: AbstractSet[Doubt]) -> bool:
    """
    Return whether another link than the one that brought an image replaces it. The shape of a signature can be
    invented.
    """
    return Doubt.SCHEME not in doubts and is_trusted_as_much(old, doubts)


def merge(known: Record, new: Record) -> Record:
    """Return what is known of an image when another link has brought the same bytes."""
    brought = new.doubts - {Doubt.INCOMPLETE}
    if Doubt.INCOMPLETE not in new.doubts:
        known = known.with_doubts(known.doubts - {Doubt.INCOMPLETE})  # the same bytes, judged better than before
    elif known.refetches is None:
        known = known.with_doubts(known.doubts | {Doubt.INCOMPLETE})  # else it was confirmed as it is
    if Doubt.ENDED in known.doubts and not brought & {Doubt.ENDED, Doubt.UNSIGNED} and _is_as_secure(known, new):
        # The link that has not ended is the first one that counts: another has to come before anything is confirmed.
        return replace(
            known,
            trust=replace(known.trust, doubts=brought | (known.doubts & _NOT_ABOUT_LINKS), brought_by=new.brought_by),
        )
    if Doubt.PLAINTEXT in brought:
        return known
    doubts = known.doubts - {Doubt.PLAINTEXT}
    if Doubt.UNSIGNED in doubts and brought == {Doubt.SCHEME}:
        # Both doubts together are less than either: each kind of link has brought these bytes.
        return known.with_doubts(doubts | {Doubt.SCHEME})
    return known.with_doubts(doubts)


def replacing_record(known: Record, new: Record) -> Record:
    """
    Return the record of an image that takes the place of another, or of the same bytes by a better link: that other
    links have records of their own is known of the key, and how complete the bytes are is known of the bytes.
    """
    doubts = new.doubts | (known.doubts & {Doubt.CONTESTED})
    if known.digest != new.digest:
        return new.with_doubts(doubts)
    if known.refetches is not None and Doubt.INCOMPLETE not in known.doubts:
        doubts -= {Doubt.INCOMPLETE}
    # Clients' copies are as good as they were.
    brought_by = new.brought_by if doubts else ""
    return replace(new, etag=known.etag, trust=Trust(doubts=doubts, brought_by=brought_by, refetches=known.refetches))


def needs_separate_record(known: Record, new: Record, *, continues: bool) -> bool:
    """
    Return whether the link that brought an image is shown it on, by a record of its own, when another takes its place.
    """
    if Doubt.INCOMPLETE in known.doubts and (continues or known.brought_by == new.brought_by):
        return False
    by_shape = Doubt.SCHEME in new.doubts and not known.doubts.isdisjoint({Doubt.ENDED, Doubt.INCOMPLETE})
    return Doubt.SIGNATURE in known.doubts or by_shape


def can_refresh(known: Record, new: Record) -> bool:
    """
    Return whether a link's word is enough for a newer image to take the place of another, where the operator wants
    that.
    """
    return new.doubts <= {Doubt.PLAINTEXT} and _is_as_secure(known, new)


def _replaced_by_shape(doubts: AbstractSet[Doubt]) -> AbstractSet[Doubt]:
    """Return the doubt that a link of the shape of a checked scheme may have and replace an image with these doubts."""
    return {Doubt.SCHEME} if Doubt.SCHEME in doubts and Doubt.UNSIGNED not in doubts else frozenset()


def can_prove(known: Record, new: Record) -> bool:
    """
    Return whether a look at what a signature does can change anything. What an attacker on the way can forge, does not.
    """
    return new.doubts - {Doubt.PLAINTEXT} == {Doubt.SIGNATURE} and _is_as_secure(known, new)


def can_complete(known: Record, new: Record) -> bool:
    """
    Return whether such a look can have a whole image take the place of an incomplete one, by the shape of a signature.
    """
    return (
        Doubt.INCOMPLETE in known.doubts
        and new.doubts - {Doubt.PLAINTEXT} == {Doubt.SCHEME}
        and _is_as_secure(known, new)
    )


def _is_as_secure(known: Record, new: Record) -> bool:
    return Doubt.PLAINTEXT not in new.doubts or Doubt.PLAINTEXT in known.doubts


def can_confirm(known: Record, new: Record) -> bool:
    """Return whether equal bytes by another link are a reason to look whether the signature makes a difference."""
    return (
        can_prove(known, new.with_doubts(new.doubts - {Doubt.INCOMPLETE}))  # of equal bytes that proves nothing
        and Doubt.ENDED not in known.doubts
        and not known.doubts.isdisjoint(_UNPROVEN)
        and known.brought_by != new.brought_by
    )


def confirmed(known: Record) -> Record:
    """Return the record of an image whose signature was seen to make a difference."""
    doubts = known.doubts - _UNPROVEN
    return replace(known, trust=replace(known.trust, doubts=doubts, brought_by=known.brought_by if doubts else ""))


def judge_probe(
    stored: Digest,
    brought: Digest,
    spoiled: tuple[Digest | ProbeResponse, Digest | ProbeResponse],
    control: Digest | ProbeResponse,
) -> ProbeResult:
    """
    Return what a probe has shown.

    Args:
        stored: What is stored under the key.
        brought: What the link has brought; the same bytes, or others.
        spoiled: What two differently spoiled signatures brought.
        control: What the genuine link brought after them: an origin that refuses everything for now proves nothing.
    """
    first, second = spoiled
    if ProbeResponse.UNKNOWN in spoiled:
        return ProbeResult.NOTHING
    if brought in spoiled:
        return ProbeResult.NO_DIFFERENCE
    if control != brought:
        return ProbeResult.NOTHING
    if first == second == stored:
        return ProbeResult.PLACEHOLDER
    # A placeholder that is another one each time says nothing about equal bytes, but is one more image among others.
    return ProbeResult.DIFFERENCE if first == second or stored != brought else ProbeResult.NOTHING
