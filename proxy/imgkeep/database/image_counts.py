"""
Counts of the image index.

Of many rows in a PostgreSQL they are estimates from a sample: to read all rows takes six seconds for ten million, and
other calls would wait. Keys and digests are hashes, so those that begin with small digits are as good as drawn by lot.
The same ones are read each time: an estimate changes as the images do, and not by chance.
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
SAMPLE_MIN: Final = 100_000
"""Minimum number of rows in a sample: the standard error of their number is 0.3 %."""
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
    part = _choose_part(connection)
    numbers = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(images.c.size), 0))
    number, size = connection.execute(numbers.where(NOT_BLOCKED, *_first(images.c.key, part))).one()
    return int(number) * part, int(size) * part


def count_totals(connection: sa.Connection) -> Totals:
    """Return the totals of a store."""
    part = _choose_part(connection)
    number, _ = count_images(connection)
    sizes = sa.select(images.c.digest, sa.func.max(images.c.size).label("size"))
    objects = sizes.where(NOT_BLOCKED, *_first(images.c.digest, part)).group_by(images.c.digest).subquery()
    count, size = connection.execute(sa.select(sa.func.count(), sa.func.sum(objects.c.size))).one()
    images_of = sa.func.count().label("images_of")
    hosts = connection.execute(
        sa.select(images.c.host, images_of)
        .where(NOT_BLOCKED, *_first(images.c.key, part))
        .group_by(images.c.host)
        .order_by(images_of.desc(), images.c.host)
        .limit(HOSTS_MAX)
    ).all()
    times = sa.select(images.c.stored_at).where(NOT_BLOCKED).limit(1)
    return Totals(
        images=number,
        objects=count * part,
        object_bytes=int(size or 0) * part,
        oldest=_time(connection.scalar(times.order_by(images.c.stored_at))),
        newest=_time(connection.scalar(times.order_by(images.c.stored_at.desc()))),
        hosts=tuple((host, n * part) for host, n in hosts),
        is_estimate=part > 1,
    )


def split_keys(parts: int) -> Iterator[sa.ColumnElement[bool]]:
    """Yield conditions that split all keys into `parts` equal ranges, or one."""
    bounds = [f"{(number << 16) // parts:04x}" for number in range(1, parts)]
    for low, high in zip([None, *bounds], [*bounds, None], strict=True):
        yield sa.and_(
            sa.true(),
            *([] if low is None else [images.c.key >= low]),
            *([] if high is None else [images.c.key < high]),
        )


def _choose_part(connection: sa.Connection) -> int:
    """Return n, a power of two: one n-th of the rows is read."""
    if connection.dialect.name != "postgresql":
        return 1
    rows = connection.scalar(_PLANNED_ROWS) or 0
    return 1 if rows <= EXACT_MAX else min(1 << ((rows // SAMPLE_MIN).bit_length() - 1), 1 << 16)


def _first(column: sa.Column[str], part: int) -> list[sa.ColumnElement[bool]]:
    """Return the condition of the first n-th of the hashes in a column."""
    return [] if part == 1 else [column < f"{(1 << 16) // part:04x}"]


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
