"""What origins said by which to tell whether an image changed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("images", sa.Column("origin_etag", sa.Text))
    op.add_column("images", sa.Column("origin_modified", sa.Text))


def downgrade() -> None:
    op.drop_column("images", "origin_modified")
    op.drop_column("images", "origin_etag")
