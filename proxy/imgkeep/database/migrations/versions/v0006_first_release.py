"""
The tables of the first release.

The revision is not "0001": databases that were made shortly before the first release bear this one, and are up to date.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = None


def upgrade() -> None:
    _create_images()
    _create_outbox()
    op.create_table("refused", sa.Column("digest", sa.String(64), primary_key=True), sqlite_with_rowid=False)
    _create_jobs()
    _create_items()
    op.create_table(
        "state",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.String(255), nullable=False),
    )


def downgrade() -> None:
    for table in ("state", "items", "jobs", "refused", "outbox", "images"):
        op.drop_table(table)


def _create_images() -> None:
    op.create_table(
        "images",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("extension", sa.String(4), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("etag", sa.String(66), nullable=False),
        sa.Column("stored_at", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.String(64)),
        sa.Column("temporary", sa.Boolean, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("indexed_at", sa.BigInteger, nullable=False, comment="when this row was last written"),
        sa.Column("origin_etag", sa.Text),
        sa.Column("origin_modified", sa.Text),
        sa.Column(
            "doubts",
            sa.String(64),
            comment="words of `core.records.Doubt` with commas between; empty or null: confirmed",
        ),
        sa.Column("brought_by", sa.String(32)),
        sqlite_with_rowid=False,
    )
    op.create_index("images_by_digest", "images", ["digest"])
    op.create_index("images_by_host", "images", ["host"])
    op.create_index("images_by_time", "images", ["stored_at", "key"])


def _create_outbox() -> None:
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


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("saved", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("webhook", sa.Text, comment="URL of the webhook; null once it was delivered"),
        sa.Column("webhook_attempts", sa.Integer, nullable=False),
        sa.Column("webhook_due_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("jobs_by_webhook", "jobs", ["webhook_due_at"])
    op.create_index("jobs_by_time", "jobs", ["created_at", "id"])


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column("job", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("link", sa.Text, comment="a credential: null once nothing is left to do"),
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
