"""Jobs, newest first."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_index("jobs_by_time", "jobs", ["created_at", "id"])


def downgrade() -> None:
    op.drop_index("jobs_by_time", "jobs")
