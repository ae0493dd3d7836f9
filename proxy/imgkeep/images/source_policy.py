"""The source policy: refuses links, and images of denied hosts, as the operator's policy says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.errors import SourceForbidden
from imgkeep.core.policy import judge
from imgkeep.core.records import Subject

if TYPE_CHECKING:
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.observer import FillObserver


class SourcePolicy:
    """The policy, whose refusals are noted."""

    def __init__(self, policy: Policy, observer: FillObserver) -> None:
        self._policy = policy
        self._observer = observer

    def allows_fetch(self, source: Source) -> bool:
        """Tell whether a link may be fetched, without a note of a refusal."""
        return judge(source, self._policy) is None

    def require_not_denied(self, source: Source, info: SourceInfo) -> None:
        """Raise `SourceForbidden` for a denied link, even if its image is stored."""
        self._require(_subject_of(source, info), self._policy.denial(source, info.places))

    def require_fetch_allowed(self, source: Source, info: SourceInfo) -> None:
        """
        Raise `SourceForbidden` for a link that must not be fetched.

        Called only before a fetch: a stored image stays, whichever sources the policy allows now.
        """
        self._require(_subject_of(source, info), judge(source, self._policy))

    def require_record_not_denied(self, record: Record) -> None:
        """Raise `SourceForbidden` for an image of a host that is denied now, by any link."""
        if self._policy.denies_record(record.host, record.identity):
            self._require(Subject(record.key, record.host, record.provider), "host is in sources.deny")

    def _require(self, subject: Subject, reason: str | None) -> None:
        if reason is not None:
            error = SourceForbidden(f"the source is refused: {reason}")
            self._observer.refused(subject, error)
            raise error


def _subject_of(source: Source, info: SourceInfo) -> Subject:
    return Subject(info.key, source.host, info.provider)
