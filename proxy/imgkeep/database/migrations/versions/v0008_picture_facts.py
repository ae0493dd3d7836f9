"""The facts of pictures. A node of version 0007 does without them."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "picture_facts",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("frames", sa.Integer, nullable=False),
        sa.Column("has_alpha", sa.Boolean, nullable=False),
        sa.Column("orientation", sa.Integer, nullable=False),
        sa.Column("colour", sa.String(6), nullable=False),
        sa.Column("thumbhash", sa.String(36), nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("picture_facts")
