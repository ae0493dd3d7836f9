"""What waits for the primary store."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("since", sa.BigInteger, nullable=False, comment="when the image was kept in the fallback"),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("error", sa.String(255)),
        sqlite_with_rowid=False,
    )
    op.create_index("outbox_by_time", "outbox", ["since", "key"])


def downgrade() -> None:
    op.drop_table("outbox")
