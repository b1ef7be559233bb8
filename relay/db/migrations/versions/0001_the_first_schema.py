"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "account_usage",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("reserved >= 0", name=op.f("ck_account_usage_reserved")),
        sa.CheckConstraint("used >= 0", name=op.f("ck_account_usage_used")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_account_usage")),
        comment="bytes in all folders that the account owns; no row: none",
    )
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False, comment="normalised"),
        sa.Column("verifier", sa.LargeBinary(), nullable=False, comment="see relay.accounts.passwords"),
        sa.Column(
            "plan", sa.String(length=64), nullable=False, comment="a name in the configuration; empty: the default"
        ),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("suspended", sa.Boolean(), nullable=False, comment="by the operator: no new sessions"),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("email", name=op.f("uq_accounts_email")),
    )
    op.create_table(
        "attempts",
        sa.Column(
            "subject", sa.LargeBinary(length=32), nullable=False, comment="keyed hash of what is counted and for whom"
        ),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False, comment="nothing is tried for it before"),
        sa.Column("forget", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_attempts")),
    )
    op.create_index(op.f("ix_attempts_forget"), "attempts", ["forget"], unique=False)
    op.create_table(
        "billing_events",
        sa.Column("event_id", sa.String(length=128), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_billing_events")),
    )
    op.create_index(op.f("ix_billing_events_received"), "billing_events", ["received"], unique=False)
    op.create_table(
        "block_store",
        sa.Column("number", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "store_id",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="that the store must have, or it is another one",
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_block_store")),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "dropped_folders",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.PrimaryKeyConstraint("folder_id", name=op.f("pk_dropped_folders")),
        comment="whose objects are still to be deleted",
    )
    op.create_table(
        "events",
        sa.Column("audience", sa.LargeBinary(length=16), nullable=False, comment="a folder or an account"),
        sa.Column(
            "topic", sa.LargeBinary(length=128), nullable=False, comment="a newer event about the same takes its place"
        ),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("device_id", sa.LargeBinary(length=32), nullable=True, comment="the only one it is for"),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False, comment="notifications.Event without its number"),
        sa.PrimaryKeyConstraint("audience", "topic", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_audience_event_id"), "events", ["audience", "event_id"], unique=False)
    op.create_index(op.f("ix_events_created"), "events", ["created"], unique=False)
    op.create_index(op.f("ix_events_expires"), "events", ["expires"], unique=False)
    op.create_table(
        "folders",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("owner_account", sa.LargeBinary(length=16), nullable=False, comment="who pays"),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False, comment="of the newest entry; 0: none"),
        sa.Column("last_object", sa.BigInteger(), nullable=False),
        sa.Column(
            "pruned_seq", sa.BigInteger(), nullable=False, comment="entries up to here are gone, but for some heads"
        ),
        sa.Column("pruned_object", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("folder_id", name=op.f("pk_folders")),
    )
    op.create_index(op.f("ix_folders_owner_account"), "folders", ["owner_account"], unique=False)
    op.create_table(
        "invitations",
        sa.Column("email", sa.String(length=254), nullable=False, comment="normalised"),
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("email", name=op.f("pk_invitations")),
        comment="who may sign up although sign-up is closed, and under which plan",
    )
    op.create_table(
        "outbox",
        sa.Column("mail_id", sa.Integer(), nullable=False),
        sa.Column(
            "sealed", sa.LargeBinary(), nullable=False, comment="the message, under a key that is not in the database"
        ),
        sa.Column("queued", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("due", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("mail_id", name=op.f("pk_outbox")),
    )
    op.create_index(op.f("ix_outbox_due"), "outbox", ["due"], unique=False)
    op.create_table(
        "reservations",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("reservation_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "reservation_id", name=op.f("pk_reservations")),
    )
    op.create_index(op.f("ix_reservations_expires"), "reservations", ["expires"], unique=False)
    op.create_table(
        "resets",
        sa.Column("address_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("device_id", sa.LargeBinary(length=32), nullable=False, comment="which asked, and may use the code"),
        sa.Column("code_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tries_left", sa.SmallInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("address_hash", "device_id", name=op.f("pk_resets")),
        comment="new passwords asked for; of an address without an account, no code fits",
    )
    op.create_index(op.f("ix_resets_expires"), "resets", ["expires"], unique=False)
    op.create_table(
        "signups",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("verifier", sa.LargeBinary(), nullable=False),
        sa.Column("genesis", sa.LargeBinary(), nullable=False),
        sa.Column("code_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tries_left", sa.SmallInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_signups")),
        comment="asked for and not yet verified; of an address that has an account, no code fits",
    )
    op.create_index(op.f("ix_signups_email"), "signups", ["email"], unique=False)
    op.create_index(op.f("ix_signups_expires"), "signups", ["expires"], unique=False)
    op.create_table(
        "chain_links",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("link", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.account_id"], name=op.f("fk_chain_links_account_id_accounts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("account_id", "seq", name=op.f("pk_chain_links")),
    )
    op.create_table(
        "chains",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("signer", sa.LargeBinary(length=32), nullable=False, comment="Ed25519 key of the author"),
        sa.Column("chain", sa.LargeBinary(length=8), nullable=False),
        sa.Column("author_seq", sa.BigInteger(), nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False, comment="of the newest entry"),
        sa.Column(
            "statement_seq", sa.BigInteger(), nullable=False, comment="of the newest entry of kind HEAD; 0: none"
        ),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["folders.folder_id"], name=op.f("fk_chains_folder_id_folders"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "signer", "chain", name=op.f("pk_chains")),
    )
    op.create_table(
        "chunks",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False, comment="of the sealed bytes"),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False, comment="SHA-256 of the sealed bytes"),
        sa.Column(
            "upload_id", sa.LargeBinary(length=16), nullable=True, comment="names its object; null: the object was lost"
        ),
        sa.Column("refs", sa.Integer(), nullable=False, comment="that name it"),
        sa.Column("unreferenced", sa.BigInteger(), nullable=True, comment="since when refs is 0; null: it is not"),
        sa.Column("verified", sa.BigInteger(), nullable=False, comment="when its object was last known to be sound"),
        sa.CheckConstraint("(refs = 0) = (unreferenced IS NOT NULL)", name=op.f("ck_chunks_mark")),
        sa.CheckConstraint("refs >= 0", name=op.f("ck_chunks_refs")),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["folders.folder_id"], name=op.f("fk_chunks_folder_id_folders"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "chunk_id", name=op.f("pk_chunks")),
    )
    op.create_index(
        "ix_chunks_lost",
        "chunks",
        ["folder_id", "chunk_id"],
        unique=False,
        postgresql_where=sa.text("upload_id IS NULL"),
        sqlite_where=sa.text("upload_id IS NULL"),
    )
    op.create_index(op.f("ix_chunks_unreferenced"), "chunks", ["unreferenced"], unique=False)
    op.create_index(op.f("ix_chunks_verified"), "chunks", ["verified"], unique=False)
    op.create_table(
        "devices",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("device_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False, comment="sigchain.DeviceKind"),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.Column(
            "seen", sa.BigInteger(), nullable=False, comment="when it last opened or refreshed a session; 0: never"
        ),
        sa.Column("logged_out", sa.Boolean(), nullable=False, comment="its key alone opens no session"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.account_id"], name=op.f("fk_devices_account_id_accounts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("account_id", "device_id", name=op.f("pk_devices")),
        comment="the chain's present devices, and what the relay alone knows of them",
    )
    op.create_table(
        "entries",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("object_id", sa.BigInteger(), nullable=False),
        sa.Column("signer", sa.LargeBinary(length=32), nullable=False),
        sa.Column("chain", sa.LargeBinary(length=8), nullable=False),
        sa.Column("author_seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes of data, as charged"),
        sa.Column(
            "data",
            sa.LargeBinary(),
            nullable=False,
            comment="the encoded entry; last, so that the rest is read without",
        ),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["folders.folder_id"], name=op.f("fk_entries_folder_id_folders"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "seq", name=op.f("pk_entries")),
        sa.UniqueConstraint("folder_id", "object_id", name=op.f("uq_entries_folder_id_object_id")),
        sa.UniqueConstraint(
            "folder_id", "signer", "chain", "author_seq", name=op.f("uq_entries_folder_id_signer_chain_author_seq")
        ),
    )
    op.create_table(
        "folder_access",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("rights", sa.SmallInteger(), nullable=False, comment="folders.Rights"),
        sa.Column("granted_object", sa.BigInteger(), nullable=False, comment="the counter when access began"),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["folders.folder_id"], name=op.f("fk_folder_access_folder_id_folders"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "account_id", name=op.f("pk_folder_access")),
    )
    op.create_index(op.f("ix_folder_access_account_id"), "folder_access", ["account_id"], unique=False)
    op.create_table(
        "grants",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("recipient", sa.LargeBinary(length=32), nullable=False, comment="device id"),
        sa.Column("signer", sa.LargeBinary(length=32), nullable=False),
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("object_id", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["folders.folder_id"], name=op.f("fk_grants_folder_id_folders"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "recipient", "signer", "key_id", name=op.f("pk_grants")),
    )
    op.create_table(
        "refs",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("ref_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("modified", sa.BigInteger(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column(
            "chunk_ids",
            sa.LargeBinary(),
            nullable=False,
            comment="one after the other; last, so the rest is read without",
        ),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["folders.folder_id"], name=op.f("fk_refs_folder_id_folders"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "ref_id", name=op.f("pk_refs")),
    )
    op.create_table(
        "snapshots",
        sa.Column("folder_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False, comment="of its entry"),
        sa.Column("covers", sa.BigInteger(), nullable=False, comment="the last entry that it makes superfluous"),
        sa.Column("ref_id", sa.LargeBinary(length=32), nullable=False, comment="holds its parts"),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["folders.folder_id"], name=op.f("fk_snapshots_folder_id_folders"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "seq", name=op.f("pk_snapshots")),
    )
    op.create_index(op.f("ix_snapshots_created"), "snapshots", ["created"], unique=False)
    op.create_table(
        "subscriptions",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column(
            "reference", sa.LargeBinary(length=16), nullable=False, comment="what the billing provider names it by"
        ),
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False, comment="billing.State"),
        sa.Column("changed", sa.BigInteger(), nullable=False, comment="by the provider's clock"),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.account_id"],
            name=op.f("fk_subscriptions_account_id_accounts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("account_id", "reference", name=op.f("pk_subscriptions")),
        sa.UniqueConstraint("reference", name=op.f("uq_subscriptions_reference")),
        comment="to plans that have a price: at most one is active, and one pending",
    )
    op.create_table(
        "sessions",
        sa.Column("account_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("device_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("access_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("access_expires", sa.BigInteger(), nullable=False),
        sa.Column("refresh_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("refresh_expires", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id", "device_id"],
            ["devices.account_id", "devices.device_id"],
            name=op.f("fk_sessions_account_id_device_id_devices"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("account_id", "device_id", name=op.f("pk_sessions")),
        comment="one per device: the newest access and refresh token",
    )
