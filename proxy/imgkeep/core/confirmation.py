"""
The links for which a stored image counts, and the decisions when another link brings the same or other bytes.

Many links share one key, because a signature only grants permission. imgkeep cannot verify a signature, so one link may
bring bytes to which another is not entitled: an origin may answer an invalid signature with a placeholder.

Rules:
- A record without doubts counts for every link of its key. Every doubt has a reason (`Doubt`), and an unverified link
  alone removes none.
- A link that is not known to be entitled to the stored bytes makes a second fill, once. It gets the stored image if it
  is past its own expiry, if it brought the record itself, or if its origin refuses it.
- Equal bytes by another link confirm a record only if the signature makes a difference: the origin refuses the same
  link with an invalid signature, or answers two of these with one and the same other image, and then gives the genuine
  link the same bytes again. Two forged links prove nothing, however often they bring one placeholder.
- Other bytes of an unverified link never replace the stored ones. They get a separate record, under the identity with
  the link's fingerprint, and the link that brought them always gets that record.
- If the link with the invalid signature brings the stored bytes, these are the placeholder: the other bytes replace
  them. If it brings the other bytes, those are worthless. If it brings neither, the signature names the image: the key
  is split, and from then on each link has a separate record.
- A link that has not expired, and whose services refuse an invalid signature with an error, replaces any record with
  doubts; over plain http only a record that came over plain http.
- imgkeep knows that of a host, or infers it from the shape of the signature. A stranger can write the shape for any
  host: so the bytes of such a link count for links of that shape at hosts that are not known to check. All other links
  make a second fill, and such a link replaces only the bytes of another such link. If it brings the same bytes as a
  link without a signature, the image counts for both kinds.
- An image that came over plain http never counts for an https link.
- An image that is incomplete by its format never replaces a whole one. A link that is trusted as much replaces it by a
  whole one; the shape of a signature suffices only if the signature makes a difference. Any link replaces it by more of
  the same image (`core/refetch_rules.py`).
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

    from imgkeep.core.records import Record, SourceInfo

FINGERPRINT_CHARS: Final = 32
"""Length of a fingerprint: 128 bits of a SHA-256, so that an attacker finds no second link with the same one."""

LINK_MARK: Final = "#link="
"""Separator between an identity and the fingerprint of the one link that a separate record belongs to."""
SEPARATE_RECORD_DOUBTS: Final = frozenset({Doubt.SPLIT, Doubt.CONTESTED})
"""Doubts of a record that has separate records of single links beside it."""
_PERMANENT: Final = frozenset({Doubt.UNSIGNED, Doubt.SCHEME})
"""Doubts that most images have permanently."""
_UNVERIFIED: Final = frozenset({Doubt.SIGNATURE, Doubt.ENDED})
_UNPROVEN: Final = frozenset({Doubt.SIGNATURE, Doubt.SCHEME, Doubt.UNSIGNED})
"""Doubts that a confirmation removes."""
_NOT_ABOUT_LINKS: Final = frozenset({Doubt.CONTESTED, Doubt.INCOMPLETE})
"""Doubts that do not depend on the link that brought an image."""


@dataclass(frozen=True, slots=True)
class Link:
    """
    The properties of a link that decide whether a record counts for it.

    Attributes:
        fingerprint: Fingerprint of its exact URL.
        signed: Whether its identity leaves out a permission.
        enforced: Whether its services refuse an invalid permission.
        known: Whether imgkeep knows that of its host.
        ended: Whether it is past its own expiry.
        secure: Whether it is an https link.
        shares_https_key: Whether http and https links at the usual ports share its key.
        folded: Whether its identity leaves out its scheme.
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
    """The decision about a record that a request has found."""

    SERVE = "serve"
    SERVE_AND_SEEK_HTTPS = "serve, and try https in the background"
    SECOND_FILL = "make a second fill by the link of the request"
    OWN_KEY = "look up the separate record of the link"


class Comparison(Enum):
    """The result of comparing the image of a second fill with the stored record."""

    REPLACE = "replace"
    EQUAL = "equal"
    OTHER = "other"


def fingerprint(source: Source) -> str:
    """Return the fingerprint of an exact link: imgkeep stores it in place of the link."""
    return sha256(source.url.encode()).hexdigest()[:FINGERPRINT_CHARS]


def is_folded(info: SourceInfo) -> bool:
    """Return whether an identity leaves out the scheme; an exact URL does not."""
    return info.identity.startswith("//")


def read_link(source: Source, info: SourceInfo, now: datetime) -> Link:
    """Return the properties of a link."""
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
    """Return the https link that shares the key of an http link at a usual port; `None`: there is none."""
    shares_https_key = is_folded(info) and source.port in DEFAULT_PORTS.values()
    return (
        Source("https", source.host, DEFAULT_PORTS["https"], source.target)
        if shares_https_key and source.scheme == "http"
        else None
    )


def own_info(info: SourceInfo, mark: str) -> SourceInfo:
    """Return the identity and key of the separate record of one exact link, by its fingerprint."""
    identity = own_identity(info.identity, mark)
    return replace(info, identity=identity, key=key_of(identity))


def own_identity(identity: str, mark: str) -> str:
    """Return the identity of the separate record of one exact link. It reveals no more than the shared identity."""
    return f"{shared_identity(identity)}{LINK_MARK}{mark}"


def shared_identity(identity: str) -> str:
    """Return the identity that a link shares with others, given one of a separate record."""
    return identity.partition(LINK_MARK)[0]


def key_of(identity: str) -> Key:
    """Return the key of an identity."""
    return Key(sha256(identity.encode()).hexdigest())


def doubts_of(link: Link, *, plaintext: bool) -> frozenset[Doubt]:
    """Return the doubts about an image that a link brings."""
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
    Decide about a record that a request has found.

    Args:
        record: The record under the link's key.
        link: The link of the request.
        tried: Whether a second fill by this link brought the same bytes, or was found to prove nothing.
    """
    doubts = record.doubts
    is_own = record.brought_by == link.fingerprint
    if Doubt.SPLIT in doubts and not is_own:
        return RecordUse.OWN_KEY
    if not (is_own or link.ended or tried) and _is_doubtful_for(doubts, link):
        return RecordUse.SECOND_FILL
    if Doubt.PLAINTEXT in doubts and link.shares_https_key and not link.secure:
        return RecordUse.SERVE_AND_SEEK_HTTPS
    return RecordUse.SERVE


def _is_doubtful_for(doubts: AbstractSet[Doubt], link: Link) -> bool:
    return (
        not doubts.isdisjoint(_UNVERIFIED)
        or not (doubts.isdisjoint(_PERMANENT) or _is_of_its_kind(doubts, link))
        or (Doubt.PLAINTEXT in doubts and link.secure)
    )


def _is_of_its_kind(doubts: AbstractSet[Doubt], link: Link) -> bool:
    """
    Return whether a link is of a kind that brought these bytes: without a signature, or of the shape of a checked
    scheme. A link whose host is known to check is better than that, and makes a second fill.
    """
    if not link.signed:
        return Doubt.UNSIGNED in doubts
    return Doubt.SCHEME in doubts and link.enforced and not link.known


def is_immutable_for(doubts: AbstractSet[Doubt], link: Link) -> bool:
    """Return whether a client may cache the response to its link as immutable."""
    if Doubt.INCOMPLETE in doubts:
        return False
    return not (
        Doubt.SPLIT in doubts or _is_doubtful_for(doubts, link) or (Doubt.PLAINTEXT in doubts and link.shares_https_key)
    )


def may_change(record: Record) -> bool:
    """Return whether requests with other links may change the record of an image."""
    return not record.doubts <= _PERMANENT


def standing_of(record: Record) -> Standing:
    """Return how far the image counts for other links, in one word."""
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
    Compare the image of a second fill with the stored record under its key.

    Args:
        known: The stored record.
        new: The record that the image would get.
        continues: Whether the new bytes begin with the stored ones and are longer: if these are incomplete, only a link
            to the same image can bring them.
    """
    old, doubts = known.doubts - _NOT_ABOUT_LINKS, new.doubts - {Doubt.INCOMPLETE}
    was_incomplete, is_incomplete = (Doubt.INCOMPLETE in record.doubts for record in (known, new))
    is_better = doubts < old and doubts <= {Doubt.PLAINTEXT} | _replaced_by_shape(old)
    if known.digest == new.digest:
        return Comparison.REPLACE if is_better else Comparison.EQUAL
    if is_incomplete and not was_incomplete:
        return Comparison.OTHER
    is_own = bool(new.brought_by) and known.brought_by == new.brought_by
    # Unsigned https over unsigned http, or the same link over https: only the doubt `plaintext` goes.
    is_safer = Doubt.PLAINTEXT in old and doubts == old - {Doubt.PLAINTEXT} and (is_own or doubts == {Doubt.UNSIGNED})
    completes = was_incomplete and (
        (continues and _is_as_secure(known, new))
        or (not is_incomplete and ((is_own and doubts <= old) or _can_replace_for_others(old, doubts)))
    )
    return Comparison.REPLACE if is_better or is_safer or completes else Comparison.OTHER


def is_trusted_as_much(old: AbstractSet[Doubt], doubts: AbstractSet[Doubt]) -> bool:
    """
    Return whether a link with these doubts is trusted as much as the one that brought an image, and is verified.
    """
    old, doubts = old - _NOT_ABOUT_LINKS, doubts - {Doubt.INCOMPLETE}
    return doubts <= old and doubts <= {Doubt.PLAINTEXT, Doubt.UNSIGNED} | _replaced_by_shape(old)


def _can_replace_for_others(old: AbstractSet[Doubt], doubts: AbstractSet[Doubt]) -> bool:
    """Return whether another link than the one that brought an image may replace it: a stranger can forge a shape."""
    return Doubt.SCHEME not in doubts and is_trusted_as_much(old, doubts)


def merge(known: Record, new: Record) -> Record:
    """Return the record of an image after another link has brought the same bytes."""
    brought = new.doubts - {Doubt.INCOMPLETE}
    if Doubt.INCOMPLETE not in new.doubts:
        known = known.with_doubts(known.doubts - {Doubt.INCOMPLETE})  # a newer version judged the same bytes better
    elif known.refetches is None:
        known = known.with_doubts(known.doubts | {Doubt.INCOMPLETE})  # else it was confirmed as it is
    if Doubt.ENDED in known.doubts and not brought & {Doubt.ENDED, Doubt.UNSIGNED} and _is_as_secure(known, new):
        # The link that has not expired is the first one that counts: a confirmation needs another one.
        return replace(
            known,
            trust=replace(known.trust, doubts=brought | (known.doubts & _NOT_ABOUT_LINKS), brought_by=new.brought_by),
        )
    if Doubt.PLAINTEXT in brought:
        return known
    doubts = known.doubts - {Doubt.PLAINTEXT}
    if Doubt.UNSIGNED in doubts and brought == {Doubt.SCHEME}:
        # Both doubts together are weaker than either: each kind of link has brought these bytes.
        return known.with_doubts(doubts | {Doubt.SCHEME})
    return known.with_doubts(doubts)


def replacing_record(known: Record, new: Record) -> Record:
    """
    Return the record of an image that replaces another one, or of the same bytes by a better link. The doubt
    `contested` belongs to the key and stays; completeness belongs to the bytes.
    """
    doubts = new.doubts | (known.doubts & {Doubt.CONTESTED})
    if known.digest != new.digest:
        return new.with_doubts(doubts)
    if known.refetches is not None and Doubt.INCOMPLETE not in known.doubts:
        doubts -= {Doubt.INCOMPLETE}
    # Copies in clients' caches stay valid.
    brought_by = new.brought_by if doubts else ""
    return replace(new, etag=known.etag, trust=Trust(doubts=doubts, brought_by=brought_by, refetches=known.refetches))


def needs_separate_record(known: Record, new: Record, *, continues: bool) -> bool:
    """Return whether a replaced image needs a separate record, so that the link that brought it still gets it."""
    if Doubt.INCOMPLETE in known.doubts and (continues or known.brought_by == new.brought_by):
        return False
    by_shape = Doubt.SCHEME in new.doubts and not known.doubts.isdisjoint({Doubt.ENDED, Doubt.INCOMPLETE})
    return Doubt.SIGNATURE in known.doubts or by_shape


def can_refresh(known: Record, new: Record) -> bool:
    """Return whether a link may replace an image by a newer one, where the operator allows refreshing."""
    return new.doubts <= {Doubt.PLAINTEXT} and _is_as_secure(known, new)


def _replaced_by_shape(doubts: AbstractSet[Doubt]) -> AbstractSet[Doubt]:
    """Return the doubt that a link may have although it replaces an image with `doubts`: `scheme`, or none."""
    return {Doubt.SCHEME} if Doubt.SCHEME in doubts and Doubt.UNSIGNED not in doubts else frozenset()


def can_prove(known: Record, new: Record) -> bool:
    """
    Return whether a probe of the signature can change a record. A link over plain http cannot: attackers can forge it.
    """
    return new.doubts - {Doubt.PLAINTEXT} == {Doubt.SIGNATURE} and _is_as_secure(known, new)


def can_complete(known: Record, new: Record) -> bool:
    """Return whether a probe lets a whole image replace an incomplete one, by the shape of its signature."""
    return (
        Doubt.INCOMPLETE in known.doubts
        and new.doubts - {Doubt.PLAINTEXT} == {Doubt.SCHEME}
        and _is_as_secure(known, new)
    )


def _is_as_secure(known: Record, new: Record) -> bool:
    return Doubt.PLAINTEXT not in new.doubts or Doubt.PLAINTEXT in known.doubts


def can_confirm(known: Record, new: Record) -> bool:
    """Return whether equal bytes by another link are a reason to probe the signature."""
    return (
        can_prove(known, new.with_doubts(new.doubts - {Doubt.INCOMPLETE}))  # equal bytes are equally incomplete
        and Doubt.ENDED not in known.doubts
        and not known.doubts.isdisjoint(_UNPROVEN)
        and known.brought_by != new.brought_by
    )


def confirmed(known: Record) -> Record:
    """Return the record of an image after a probe has shown that the signature makes a difference."""
    doubts = known.doubts - _UNPROVEN
    return replace(known, trust=replace(known.trust, doubts=doubts, brought_by=known.brought_by if doubts else ""))


def adopt(standing: Record, new: Record) -> Record | None:
    """
    Return the record of an image that two fills have stored at once: the first one, with what the other one proves.

    `None`: the two are of different objects.
    """
    return merge(standing, new) if standing.object_name == new.object_name else None
