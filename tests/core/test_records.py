"""The nouns keep their secrets."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from imgkeep.core.jobs import Job, JobItem, NewItem, Webhook
from imgkeep.core.records import Digest, Format, Key, PixelSize, Record, Source, SourceInfo, Subject
from imgkeep.core.source_url import read_source
from tests.support.tables import table


@pytest.mark.parametrize(
    "url",
    ["https://example.com/a?b=1", "http://example.com:8080/", "https://[2606:4700::1]/a", "http://[2606:4700::1]:81/a"],
)
def test_source_writes_its_url_again(url: str) -> None:
    assert read_source(url).url == url


def test_source_shows_its_host_only() -> None:
    assert repr(Source("https", "example.com", 443, "/secret?sig=1")) == "<Source at example.com>"


@pytest.mark.parametrize(("waits_at", "pending"), [(None, False), ("", True), ("b", True)])
def test_record_is_pending_where_a_node_has_the_only_copy(waits_at: str | None, pending: bool) -> None:  # noqa: FBT001 - of a table
    record = Record(
        key=Key("0" * 64),
        identity="https://a.example/a.png",
        digest=Digest("1" * 64),
        format=Format.PNG,
        size=1,
        pixel_size=None,
        etag='"1"',
        stored_at=datetime(2026, 1, 1, tzinfo=UTC),
        waits_at=waits_at,
    )
    assert record.pending is pending


def test_pixels_are_the_area() -> None:
    assert PixelSize(640, 480).pixels == 307_200


def test_media_types_and_extensions_are_unlike() -> None:
    assert len({format_.extension for format_ in Format}) == len(Format)
    # A cursor has the type of an icon, and a name of its own.
    assert len({format_.media_type for format_ in Format}) == len(Format) - 1
    assert Format.CUR.media_type == Format.ICO.media_type


NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
BEFORE, AFTER = datetime(2026, 11, 22, 9, tzinfo=UTC), datetime(2026, 11, 22, 11, tzinfo=UTC)


@table(
    ("temporary", "expires_at", "scheme", "fresh", "expired"),
    [
        (True, AFTER, "AWS", True, True),
        (True, BEFORE, "AWS", False, True),
        (True, NOW, "AWS", False, True),
        (True, None, "AWS", True, True),
        (True, BEFORE, None, False, True),
        (True, AFTER, None, False, False),
        (True, None, None, False, False),
        (False, None, "AWS", False, True),
        (False, None, None, False, False),
        (False, BEFORE, None, False, False),
    ],
)
def test_link_has_an_age(
    *, temporary: bool, expires_at: datetime | None, scheme: str | None, fresh: bool, expired: bool
) -> None:
    info = SourceInfo("x", Key("0"), None, temporary, expires_at, scheme)
    assert (info.is_fresh(NOW), info.may_have_expired(NOW)) == (fresh, expired)


def test_job_is_queued_running_done_or_cancelled() -> None:
    job = Job("a", NOW, None, total=2, saved=0, failed=0)
    assert job.state == "queued"
    assert replace(job, failed=1).state == "running"
    assert replace(job, saved=2, finished_at=NOW).state == "done"
    cancelled = replace(job, saved=1, finished_at=NOW)
    assert (cancelled.state, cancelled.cancelled, job.cancelled) == ("cancelled", 1, 0)


def test_item_of_a_job_does_not_print_its_link() -> None:
    link = "https://a.example/?sig=s3cr3t"
    waiting = [
        NewItem(link, "a.example", None),
        JobItem("j", 1, link, "a.example", None, 0),
        Webhook(Job("a", NOW, None, 1, 0, 0), link, 0, 0),
    ]
    assert "s3cr3t" not in repr(waiting)


@pytest.mark.parametrize(
    ("host", "provider", "label"),
    [("a.example", "Acme", "Acme"), ("a.example", None, "other"), ("", None, "upload")],
)
def test_provider_label_comes_from_a_bounded_set(host: str, provider: str | None, label: str) -> None:
    assert Subject(Key("0" * 64), host, provider).label == label
