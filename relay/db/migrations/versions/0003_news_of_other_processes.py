"""News is found by its number alone, whoever it is for."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_index(op.f("ix_events_event_id"), "events", ["event_id"], unique=False)
