"""The tables of a cluster, and an outbox for each node."""

import sqlalchemy as sa
from alembic import op

from imgkeep.database.cluster_schema import cluster_metadata

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    is_postgresql = op.get_context().dialect.name == "postgresql"
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
        sqlite_with_rowid=False,
    )
    op.create_index("outbox_by_time", "outbox", ["node", "since", "key"])
    op.create_index("outbox_by_key", "outbox", ["key"])
    if not is_postgresql:  # the nodes of a PostgreSQL enlist what their fallbacks have, each under its name
        op.execute(
            "INSERT INTO outbox (node, key, since, attempts, due_at, error) "
            "SELECT '', key, since, attempts, due_at, error FROM outbox_0006"
        )
    op.drop_table("outbox_0006")
    member = "which member of a cluster saves it at the moment"
    deliverer = "which member of a cluster delivers it at the moment"
    op.add_column("items", sa.Column("member", sa.String(96), comment=member))
    op.add_column("jobs", sa.Column("webhook_member", sa.String(96), comment=deliverer))
    if is_postgresql:
        cluster_metadata.create_all(op.get_bind(), checkfirst=False)


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        cluster_metadata.drop_all(op.get_bind())
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
