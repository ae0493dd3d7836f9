"""The tables, as the newest migration makes them. Times are whole seconds since the epoch, sizes are bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    func,
    select,
    text,
)

if TYPE_CHECKING:
    from sqlalchemy import BindParameter, Select

metadata = MetaData()

CONDITION: Final = "condition"
"""In the facts of an index: the rows that it has. The form that a dialect has for it would import the dialect."""

images = Table(
    "images",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("identity", Text, nullable=False),
    Column("host", String(253), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("extension", String(4), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("width", Integer),
    Column("height", Integer),
    Column("etag", String(66), nullable=False),
    Column("stored_at", BigInteger, nullable=False),
    Column("provider", String(64)),
    Column("temporary", Boolean, nullable=False),
    Column("expires_at", BigInteger),
    Column("indexed_at", BigInteger, nullable=False, comment="when this row was last written"),
    Column("origin_etag", Text),
    Column("origin_modified", Text),
    Column("doubts", String(64), comment="words of `core.records.Doubt` with commas between; empty or null: confirmed"),
    Column("brought_by", String(32)),
    Index("images_by_digest", "digest"),
    # Without the key, which would make them three times as large: pages sort what was stored in the same second.
    Index("images_by_host_time", "host", "stored_at"),
    Index("images_by_provider_time", "provider", "stored_at"),
    Index("images_by_second", "stored_at"),
    sqlite_with_rowid=False,
)

outbox = Table(
    "outbox",
    metadata,
    Column("node", String(63), primary_key=True, comment="whose fallback has it; empty: there is one node"),
    Column("key", String(64), primary_key=True),
    Column("since", BigInteger, nullable=False, comment="when the image was stored in the fallback"),
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("error", String(255)),
    Column("digest", String(64), nullable=False, comment="of the object that waits"),
    Index("outbox_by_time", "node", "since", "key"),
    Index("outbox_by_key", "key"),
    Index("outbox_by_digest", "digest"),
    sqlite_with_rowid=False,
)
"""The images that wait for the primary store, in the fallback of each node."""

refused = Table("refused", metadata, Column("digest", String(64), primary_key=True), sqlite_with_rowid=False)
"""The blocked digests, for a start without the store."""

picture_facts = Table(
    "picture_facts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("frames", Integer, nullable=False),
    Column("has_alpha", Boolean, nullable=False),
    Column("orientation", Integer, nullable=False),
    Column("colour", String(6), nullable=False),
    Column("thumbhash", String(36), nullable=False),
    sqlite_with_rowid=False,
)
"""What the pixels of images tell (`core/picture_facts.py`). Every row may be lost: the image tells it again."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("total", Integer, nullable=False),
    Column("saved", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("webhook", Text, comment="URL of the webhook; null once it was delivered"),
    Column("webhook_attempts", Integer, nullable=False),
    Column("webhook_due_at", BigInteger, nullable=False),
    Column("webhook_member", String(96), comment="which member of a cluster delivers it at the moment"),
    Index(
        "jobs_by_webhook",
        "webhook_due_at",
        info={CONDITION: "webhook IS NOT NULL"},
    ),
    Index(
        "jobs_unfinished",
        "id",
        info={CONDITION: "finished_at IS NULL"},
    ),
    Index("jobs_by_time", "created_at", "id"),
    sqlite_with_rowid=False,
)

items = Table(
    "items",
    metadata,
    Column("job", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("link", Text, comment="a credential: null once nothing is left to do"),
    Column("host", String(253), nullable=False),
    Column("expires_at", BigInteger, nullable=False, comment="of the link; the far future where it has no end"),
    Column("state", String(7), nullable=False, comment="waiting, saved or failed"),
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("key", String(64)),
    Column("created", Boolean),
    Column("code", String(32)),
    Column("detail", String(255)),
    Column("member", String(96), comment="which member of a cluster saves it at the moment"),
    Index("items_by_expiry", "state", "expires_at", "job", "number"),
    Index(
        "items_by_member",
        "member",
        "host",
        info={CONDITION: "member IS NOT NULL"},
    ),
    sqlite_with_rowid=False,
)
"""The links of jobs."""

state = Table(
    "state",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(255), nullable=False),
)


def select_records(node: str | BindParameter[str]) -> Select[Any]:
    """
    Select the rows of records, each with the node whose fallback has it for the primary: this one, if it is among them.

    `node`: the name of this node of a cluster; empty: it is the only one.
    """
    same = and_(outbox.c.key == images.c.key, outbox.c.digest == images.c.digest)
    mine = select(outbox.c.node).where(same, outbox.c.node == node).scalar_subquery()
    if isinstance(node, str) and not node:
        return select(images, mine.label("node"))
    others = select(func.min(outbox.c.node)).where(same).scalar_subquery()
    return select(images, func.coalesce(mine, others).label("node"))


def apply_conditions(dialect: str) -> None:
    """Give the indexes with a condition the form that a dialect has for it."""
    for table in metadata.tables.values():
        for index in table.indexes:
            if CONDITION in index.info:
                index.dialect_options[dialect]["where"] = text(index.info[CONDITION])
