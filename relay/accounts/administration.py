"""What an operator does to accounts; every function joins the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from p2psync.crypto.password import normalise_email
from p2psync.errors import InputError
from relay.accounts.ledger import Ledger, Usage
from relay.accounts.plans import FREE, Plans, set_plan
from relay.accounts.sessions import end_all_sessions
from relay.accounts.tables import accounts, invitations, subscriptions
from relay.db.upsert import put


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account in the operator's list."""

    account_id: bytes
    email: str
    plan: str
    created: int
    suspended: bool
    usage: Usage


def list_accounts(c: Connection, ledger: Ledger, after: bytes = b"", limit: int = 1000) -> list[AccountRow]:
    """Accounts in the order of their ids, from `after` on."""
    rows = c.execute(
        select(accounts).where(accounts.c.account_id > after).order_by(accounts.c.account_id).limit(limit)
    ).all()
    return [
        AccountRow(row.account_id, row.email, row.plan, row.created, row.suspended, ledger.usage(c, row.account_id))
        for row in rows
    ]


def find_account(c: Connection, email: str) -> bytes:
    """The id of the account with this address. InputError when there is none."""
    address = normalise_email(email)
    row = c.execute(select(accounts.c.account_id).where(accounts.c.email == address)).one_or_none()
    if row is None:
        raise InputError(f"no account has the address {address}")
    account_id: bytes = row.account_id
    return account_id


def grant_plan(c: Connection, plans: Plans, account_id: bytes, plan: str) -> None:
    """Put an account on a plan without billing, or on `FREE`. InputError when there is no such plan."""
    if plan != FREE and plans.named(plan) is None:
        raise InputError(f"no plan is called {plan!r}; the configuration has {[p.name for p in plans.listed]}")
    c.execute(delete(subscriptions).where(subscriptions.c.account_id == account_id))
    set_plan(c, account_id, plan)


def suspend(c: Connection, account_id: bytes) -> None:
    """End every session of an account and let it open no other; what it stored stays."""
    c.execute(update(accounts).where(accounts.c.account_id == account_id).values(suspended=True))
    end_all_sessions(c, account_id)


def resume(c: Connection, account_id: bytes) -> None:
    """Undo `suspend`."""
    c.execute(update(accounts).where(accounts.c.account_id == account_id).values(suspended=False))


def invite(c: Connection, email: str, plan: str) -> None:
    """Let an address sign up although sign-up is closed, onto a plan. InputError when it is no address."""
    put(c, invitations, email=normalise_email(email), plan=plan)
