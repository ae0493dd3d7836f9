"""Which records stand for every link of their key."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "images",
        sa.Column(
            "doubts", sa.String(64), comment="words of `core.model.Doubt` with commas between; empty or null: confirmed"
        ),
    )
    op.add_column("images", sa.Column("brought_by", sa.String(32)))


def downgrade() -> None:
    op.drop_column("images", "brought_by")
    op.drop_column("images", "doubts")
