"""Bytes forwarded, per account and day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "forwarded",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False, comment="days since the epoch, UTC"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="both ways, as they came in"),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.account_id"],
            name=op.f("fk_forwarded_account_id_accounts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("account_id", "day", name=op.f("pk_forwarded")),
    )
