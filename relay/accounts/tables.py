"""What the relay keeps of accounts; nothing in it opens content, and secrets are there as hashes only.

Tables of accounts have `account_id` first in their key. The directory tables, keyed by a keyed hash of an e-mail
address or of a network, and the outbox are small and stay in one place when accounts are spread over databases.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
)

from relay.db.metadata import metadata

ADDRESS_LENGTH = 254
PLAN_LENGTH = 64

accounts = Table(
    "accounts",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("email", String(ADDRESS_LENGTH), nullable=False, unique=True, comment="normalised"),
    Column("verifier", LargeBinary, nullable=False, comment="see relay.accounts.passwords"),
    Column("plan", String(PLAN_LENGTH), nullable=False, comment="a name in the configuration; empty: the default"),
    Column("created", BigInteger, nullable=False),
    Column("suspended", Boolean, nullable=False, comment="by the operator: no new sessions"),
)

chain_links = Table(
    "chain_links",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("link", LargeBinary, nullable=False),
    ForeignKeyConstraint(["account_id"], ["accounts.account_id"], ondelete="CASCADE"),
)

devices = Table(
    "devices",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("device_id", LargeBinary(32), primary_key=True),
    Column("kind", SmallInteger, nullable=False, comment="sigchain.DeviceKind"),
    Column("added", BigInteger, nullable=False),
    Column("seen", BigInteger, nullable=False, comment="when it last opened or refreshed a session; 0: never"),
    Column("logged_out", Boolean, nullable=False, comment="its key alone opens no session"),
    ForeignKeyConstraint(["account_id"], ["accounts.account_id"], ondelete="CASCADE"),
    comment="the chain's present devices, and what the relay alone knows of them",
)

sessions = Table(
    "sessions",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("device_id", LargeBinary(32), primary_key=True),
    Column("access_hash", LargeBinary(32), nullable=False),
    Column("access_expires", BigInteger, nullable=False),
    Column("refresh_hash", LargeBinary(32), nullable=False),
    Column("refresh_expires", BigInteger, nullable=False),
    ForeignKeyConstraint(["account_id", "device_id"], ["devices.account_id", "devices.device_id"], ondelete="CASCADE"),
    comment="one per device: the newest access and refresh token",
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column(
        "reference", LargeBinary(16), primary_key=True, unique=True, comment="what the billing provider names it by"
    ),
    Column("plan", String(PLAN_LENGTH), nullable=False),
    Column("state", SmallInteger, nullable=False, comment="billing.State"),
    Column("changed", BigInteger, nullable=False, comment="by the provider's clock"),
    ForeignKeyConstraint(["account_id"], ["accounts.account_id"], ondelete="CASCADE"),
    comment="to plans that have a price: at most one is active, and one pending",
)

billing_events = Table(
    "billing_events",
    metadata,
    Column("event_id", String(128), primary_key=True),
    Column("received", BigInteger, nullable=False),
    Index(None, "received"),
)

signups = Table(
    "signups",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("email", String(ADDRESS_LENGTH), nullable=False, index=True),
    Column("verifier", LargeBinary, nullable=False),
    Column("genesis", LargeBinary, nullable=False),
    Column("code_hash", LargeBinary(32), nullable=False),
    Column("tries_left", SmallInteger, nullable=False),
    Column("expires", BigInteger, nullable=False, index=True),
    comment="asked for and not yet verified; of an address that has an account, no code fits",
)

invitations = Table(
    "invitations",
    metadata,
    Column("email", String(ADDRESS_LENGTH), primary_key=True, comment="normalised"),
    Column("plan", String(PLAN_LENGTH), nullable=False),
    comment="who may sign up although sign-up is closed, and under which plan",
)

resets = Table(
    "resets",
    metadata,
    Column("address_hash", LargeBinary(32), primary_key=True),
    Column("device_id", LargeBinary(32), primary_key=True, comment="which asked, and may use the code"),
    Column("code_hash", LargeBinary(32), nullable=False),
    Column("tries_left", SmallInteger, nullable=False),
    Column("expires", BigInteger, nullable=False, index=True),
    comment="new passwords asked for; of an address without an account, no code fits",
)

attempts = Table(
    "attempts",
    metadata,
    Column("subject", LargeBinary(32), primary_key=True, comment="keyed hash of what is counted and for whom"),
    Column("failures", Integer, nullable=False),
    Column("until", BigInteger, nullable=False, comment="nothing is tried for it before"),
    Column("forget", BigInteger, nullable=False, index=True),
)

outbox = Table(
    "outbox",
    metadata,
    Column("mail_id", Integer, primary_key=True),
    Column("sealed", LargeBinary, nullable=False, comment="the message, under a key that is not in the database"),
    Column("queued", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("due", BigInteger, nullable=False, index=True),
)
