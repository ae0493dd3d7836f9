"""The tables of a cluster, and an outbox for each node."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_CONDITIONAL_INDEXES = (
    ("jobs_by_webhook", "jobs", ["webhook_due_at"], "webhook IS NOT NULL"),
    ("jobs_unfinished", "jobs", ["id"], "finished_at IS NULL"),
    ("items_by_member", "items", ["member", "host"], "member IS NOT NULL"),
)
_IMAGES = {
    "images_by_host_time": ["host", "stored_at"],
    "images_by_provider_time": ["provider", "stored_at"],
    "images_by_second": ["stored_at"],
}
"""Indexes of `images` by name."""
_IMAGES_BEFORE = {"images_by_host": ["host"], "images_by_time": ["stored_at", "key"]}
"""The indexes in whose place they come."""


def upgrade() -> None:
    is_postgresql = op.get_context().dialect.name == "postgresql"
    _replace_indexes("images", _IMAGES_BEFORE, _IMAGES)
    op.rename_table("outbox", "outbox_0006")
    op.drop_index("outbox_by_time")
    op.create_table(
        "outbox",
        sa.Column("node", sa.String(63), primary_key=True, comment="whose fallback has it; empty: there is one node"),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("since", sa.BigInteger, nullable=False, comment="when the image was stored in the fallback"),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("error", sa.String(255)),
        sa.Column("digest", sa.String(64), nullable=False, comment="of the object that waits"),
        sqlite_with_rowid=False,
    )
    op.create_index("outbox_by_time", "outbox", ["node", "since", "key"])
    op.create_index("outbox_by_key", "outbox", ["key"])
    op.create_index("outbox_by_digest", "outbox", ["digest"])
    if not is_postgresql:  # the nodes of a PostgreSQL enlist what their fallbacks have, each under its name
        op.execute(
            "INSERT INTO outbox (node, key, since, attempts, due_at, error, digest) "
            "SELECT '', waiting.key, since, attempts, due_at, error, COALESCE(digest, '') "
            "FROM outbox_0006 AS waiting LEFT JOIN images ON images.key = waiting.key"
        )
    op.drop_table("outbox_0006")
    member = "which member of a cluster saves it at the moment"
    deliverer = "which member of a cluster delivers it at the moment"
    op.add_column("items", sa.Column("member", sa.String(96), comment=member))
    op.add_column("jobs", sa.Column("webhook_member", sa.String(96), comment=deliverer))
    op.drop_index("jobs_by_webhook", "jobs")
    for name, table, columns, condition in _CONDITIONAL_INDEXES:
        where = sa.text(condition)
        op.create_index(name, table, columns, postgresql_where=where, sqlite_where=where)
    if is_postgresql:
        _create_cluster_tables()


def downgrade() -> None:
    _replace_indexes("images", _IMAGES, _IMAGES_BEFORE)
    if op.get_context().dialect.name == "postgresql":
        for table in ("cluster_changes", "cluster_leases", "cluster_members"):
            op.drop_table(table)
    for name, table, _, _ in _CONDITIONAL_INDEXES:
        op.drop_index(name, table)
    op.create_index("jobs_by_webhook", "jobs", ["webhook_due_at"])
    op.drop_column("jobs", "webhook_member")
    op.drop_column("items", "member")
    op.drop_table("outbox")
    op.create_table(
        "outbox",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("since", sa.BigInteger, nullable=False, comment="when the image was stored in the fallback"),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("error", sa.String(255)),
        sqlite_with_rowid=False,
    )
    op.create_index("outbox_by_time", "outbox", ["since", "key"])


def _replace_indexes(table: str, old: dict[str, list[str]], new: dict[str, list[str]]) -> None:
    for name in old:
        op.drop_index(name, table)
    for name, columns in new.items():
        op.create_index(name, table, columns)


def _create_cluster_tables() -> None:
    op.create_table(
        "cluster_members",
        sa.Column(
            "id", sa.String(96), primary_key=True, comment="name of the node, a slash, and a name of the process"
        ),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("host", sa.String(64), nullable=False, comment="identity of the data folder of the node"),
        sa.Column("advertise_url", sa.Text, nullable=False, comment="of the peer API; empty: there is one node"),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column(
            "applied",
            sa.BigInteger,
            nullable=False,
            comment="the last of `cluster_changes` that the member has applied",
        ),
        prefixes=["UNLOGGED"],
    )
    op.create_index("cluster_members_by_node", "cluster_members", ["node"])
    op.create_table(
        "cluster_leases",
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column("member", sa.String(96), nullable=False),
        sa.Column(
            "token", sa.String(32), nullable=False, comment="of this very lease: a late release ends no other one"
        ),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "stored", sa.Boolean, nullable=False, server_default="false", comment="the fill has stored its image"
        ),
        sa.Column("link", sa.LargeBinary, comment="hash of the link that failed"),
        sa.Column("failure", sa.LargeBinary, comment="why; the lease is free for other links"),
        prefixes=["UNLOGGED"],
    )
    op.create_index("cluster_leases_by_member", "cluster_leases", ["member"])
    op.create_index("cluster_leases_by_end", "cluster_leases", ["until"])
    op.create_table(
        "cluster_changes",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("member", sa.String(96), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_index("cluster_changes_by_time", "cluster_changes", ["at"])
