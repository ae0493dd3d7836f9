"""
Counts of the image index.

Of many rows in a PostgreSQL they are estimates from samples: to read all rows takes six seconds for ten million, and
other calls would wait. Keys and digests are hashes, so those that begin with small digits are as good as drawn by lot.
The same ones are read each time: an estimate changes as the images do, and not by chance. To count keys or digests the
server reads an index; each row that it reads for its size or host is on a page of its own, so these are fewer. The
estimates count blocked images, too: a removal deletes nearly all records of its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from imgkeep.database.schema import images, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

EXACT_MAX: Final = 1_000_000
"""Maximum number of rows that are all counted: half a second."""
COUNTED_MIN: Final = 50_000
"""Minimum number of keys or digests that are counted for an estimate: its standard error is 0.5 %."""
READ_MIN: Final = 5_000
"""Minimum number of rows that are read for the mean size and for hosts: the standard error is some 1.5 %."""
HOSTS_MAX: Final = 10

NOT_BLOCKED: Final = ~sa.exists().where(refused.c.digest == images.c.digest)
"""
A record in doubt stays when its bytes are removed, because another link of its key may bring others.

Not `NOT IN`, for which PostgreSQL reads all blocked digests for every row once they exceed its `work_mem`: with 100,000
of them a page took a second.
"""
_PLANNED_ROWS: Final = sa.text("SELECT reltuples::bigint FROM pg_class WHERE oid = 'images'::regclass")
"""The number of rows as of the server's last analysis, which costs nothing."""


@dataclass(frozen=True, slots=True)
class Totals:
    """
    The totals of a store.

    Attributes:
        object_bytes: The sum of the sizes of the objects; equal bytes count once.
        hosts: The ten with most images.
        is_estimate: Whether the numbers come from a sample.
    """

    images: int
    objects: int
    object_bytes: int
    oldest: datetime | None
    newest: datetime | None
    hosts: tuple[tuple[str, int], ...]
    is_estimate: bool


def count_images(connection: sa.Connection) -> tuple[int, int]:
    """Return the number of images, and the sum of their sizes in bytes."""
    if rows := _count_planned(connection):
        part, read = _choose_part(rows, COUNTED_MIN), _choose_part(rows, READ_MIN)
        number = part * (connection.scalar(sa.select(sa.func.count()).where(_first(images.c.key, part))) or 0)
        mean = connection.scalar(sa.select(sa.func.avg(images.c.size)).where(_first(images.c.key, read))) or 0
        return number, round(number * mean)
    sums = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(images.c.size), 0)).where(NOT_BLOCKED)
    number, size = connection.execute(sums).one()
    return number, int(size)


def count_totals(connection: sa.Connection) -> Totals:
    """Return the totals of a store."""
    rows = _count_planned(connection)
    number, _ = count_images(connection)
    objects, object_bytes = _estimate_objects(connection, rows) if rows else _count_objects(connection)
    read = _choose_part(rows, READ_MIN) if rows else 1
    images_of = sa.func.count().label("images_of")
    hosts = connection.execute(
        sa.select(images.c.host, images_of)
        .where(_first(images.c.key, read) if rows else NOT_BLOCKED)
        .group_by(images.c.host)
        .order_by(images_of.desc(), images.c.host)
        .limit(HOSTS_MAX)
    ).all()
    times = sa.select(images.c.stored_at).where(NOT_BLOCKED).limit(1)
    return Totals(
        images=number,
        objects=objects,
        object_bytes=object_bytes,
        oldest=_time(connection.scalar(times.order_by(images.c.stored_at))),
        newest=_time(connection.scalar(times.order_by(images.c.stored_at.desc()))),
        hosts=tuple((host, n * read) for host, n in hosts),
        is_estimate=rows > 0,
    )


def _count_objects(connection: sa.Connection) -> tuple[int, int]:
    """Return the number of objects, and the sum of their sizes."""
    sizes = sa.select(sa.func.max(images.c.size).label("size")).where(NOT_BLOCKED).group_by(images.c.digest).subquery()
    number, size = connection.execute(sa.select(sa.func.count(), sa.func.sum(sizes.c.size))).one()
    return number, int(size or 0)


def _estimate_objects(connection: sa.Connection, rows: int) -> tuple[int, int]:
    part, read = _choose_part(rows, COUNTED_MIN), _choose_part(rows, READ_MIN)
    different = sa.select(images.c.digest).where(_first(images.c.digest, part)).distinct().subquery()
    number = part * (connection.scalar(sa.select(sa.func.count()).select_from(different)) or 0)
    of_each = sa.select(sa.func.max(images.c.size).label("size")).where(_first(images.c.digest, read))
    mean = connection.scalar(sa.select(sa.func.avg(of_each.group_by(images.c.digest).subquery().c.size))) or 0
    return number, round(number * mean)


def split_keys(parts: int) -> Iterator[sa.ColumnElement[bool]]:
    """Yield conditions that split all keys into `parts` equal ranges, or one."""
    bounds = [f"{(number << 16) // parts:04x}" for number in range(1, parts)]
    for low, high in zip([None, *bounds], [*bounds, None], strict=True):
        yield sa.and_(
            sa.true(),
            *([] if low is None else [images.c.key >= low]),
            *([] if high is None else [images.c.key < high]),
        )


def _count_planned(connection: sa.Connection) -> int:
    """Return the number of rows for an estimate; 0: they are all counted."""
    if connection.dialect.name != "postgresql":
        return 0
    rows = connection.scalar(_PLANNED_ROWS) or 0
    return rows if rows > EXACT_MAX else 0


def _choose_part(rows: int, sample_min: int) -> int:
    """Return n, a power of two, so that the n-th part of the rows is the smallest sample that suffices."""
    return min(1 << max(0, (rows // sample_min).bit_length() - 1), 1 << 20)


def _first(column: sa.Column[str], part: int) -> sa.ColumnElement[bool]:
    """Return the condition of the first n-th of the hashes in a column."""
    return sa.true() if part == 1 else column < f"{(1 << 20) // part:05x}"


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
