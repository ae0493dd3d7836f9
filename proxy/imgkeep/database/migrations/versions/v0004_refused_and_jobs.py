"""Pictures that are refused, and links that are to be saved."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table("refused", sa.Column("digest", sa.String(64), primary_key=True), sqlite_with_rowid=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("saved", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("webhook", sa.Text, comment="whom to tell; empty once that is done"),
        sa.Column("webhook_attempts", sa.Integer, nullable=False),
        sa.Column("webhook_due_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("jobs_by_webhook", "jobs", ["webhook_due_at"])
    op.create_table(
        "items",
        sa.Column("job", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("link", sa.Text, comment="a credential: gone once nothing is left to do"),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column(
            "expires_at", sa.BigInteger, nullable=False, comment="of the link; the far future where it has no end"
        ),
        sa.Column("state", sa.String(7), nullable=False, comment="waiting, saved or failed"),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("key", sa.String(64)),
        sa.Column("created", sa.Boolean),
        sa.Column("code", sa.String(32)),
        sa.Column("detail", sa.String(255)),
        sqlite_with_rowid=False,
    )
    op.create_index("items_by_expiry", "items", ["state", "expires_at", "job", "number"])


def downgrade() -> None:
    op.drop_table("items")
    op.drop_table("jobs")
    op.drop_table("refused")
