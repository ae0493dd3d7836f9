"""The first tables: images and the database's own state."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
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
        sqlite_with_rowid=False,
    )
    op.create_index("images_by_digest", "images", ["digest"])
    op.create_index("images_by_host", "images", ["host"])
    op.create_index("images_by_time", "images", ["stored_at", "key"])
    op.create_table(
        "state",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.String(255), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("state")
    op.drop_table("images")
