"""The account of bytes that somebody pays for: what is stored, and what is promised to uploads under way.

Whatever is stored is counted in the transaction that stores it. An upload, whose bytes lie elsewhere than in the
database, first reserves its size; it then commits, which only the holder of a live reservation can, or its reservation
is released or expires. One conditional `UPDATE` decides whether there is room, so that any number of uploads at once
stay within the limit together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    Table,
    Update,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    true,
    update,
)

from relay.accounts.plans import Limits
from relay.db.metadata import metadata
from relay.db.upsert import insert_if_missing
from relay.errors import ApiError

RESERVATION_ID_SIZE: Final = 16
EXPIRY_BATCH: Final = 500
"""Reservations that one transaction ends."""

account_usage = Table(
    "account_usage",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("used", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    CheckConstraint("used >= 0", name="used"),
    CheckConstraint("reserved >= 0", name="reserved"),
    comment="bytes in all folders that the account owns; no row: none",
)

reservations = Table(
    "reservations",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("reservation_id", LargeBinary(RESERVATION_ID_SIZE), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False, index=True),
)


def _take(column: Column[int]) -> Update:
    taken = account_usage.c.used + account_usage.c.reserved
    mine = account_usage.c.account_id == bindparam("account")
    return update(account_usage).where(mine, taken <= bindparam("most")).values({column: column + bindparam("size")})


def _not_below_zero(figure: ColumnElement[int]) -> ColumnElement[int]:
    """A figure that was wrong before must not keep anything from being deleted; the check of the store finds it."""
    return case((figure < 0, 0), else_=figure)


# Built once: these run for every chunk, and building takes longer than running.
_TAKE_USED, _TAKE_RESERVED = _take(account_usage.c.used), _take(account_usage.c.reserved)
_ADD = (
    update(account_usage)
    .where(account_usage.c.account_id == bindparam("account"))
    .values(
        used=_not_below_zero(account_usage.c.used + bindparam("more_used")),
        reserved=_not_below_zero(account_usage.c.reserved + bindparam("more_reserved")),
    )
)
_RESERVE = insert(reservations)
_END = (
    delete(reservations)
    .where(reservations.c.account_id == bindparam("account"), reservations.c.reservation_id == bindparam("reservation"))
    .returning(reservations.c.size)
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of one account."""

    used: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Correction:
    """Figures that a recount found wrong, and the right ones."""

    account_id: bytes
    before: Usage
    after: Usage


class Allowances(Protocol):
    """What accounts may use (`relay.accounts.plans.Plans`)."""

    def limits(self, c: Connection, account_id: bytes) -> Limits:
        """The limits of an account; all zero when there is no such account."""
        ...


class Ledger:
    """Every method works in the caller's transaction and is undone with it."""

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances

    # ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def reserve(
        self, c: Connection, account_id: bytes, reservation_id: bytes, size: int, *, expires: int, now: int
    ) -> None:
        """Keep room for `size` bytes until `expires` (seconds since the epoch); `reservation_id` is 16 random bytes.

        Raises:
            ApiError: 507 `over-quota` when the account's plan has no room for them.
        """
        self._take(c, account_id, size, _TAKE_RESERVED, now)
        values = {"account_id": account_id, "reservation_id": reservation_id, "size": size, "expires": expires}
        c.execute(_RESERVE, values)

    def commit(self, c: Connection, account_id: bytes, reservation_id: bytes) -> bool:
        """What was reserved is stored now. False when there is no such reservation (any more): store nothing then."""
        size = self._end(c, account_id, reservation_id)
        if size is None:
            return False
        _add(c, account_id, used=size, reserved=-size)
        return True

    def release(self, c: Connection, account_id: bytes, reservation_id: bytes) -> bool:
        """What was reserved will not be stored. False when there is no such reservation (any more)."""
        size = self._end(c, account_id, reservation_id)
        if size is None:
            return False
        _add(c, account_id, reserved=-size)
        return True

    def live(self, c: Connection, reservation_ids: list[bytes]) -> set[bytes]:
        """Which of these reservations exist, whoever has them."""
        statement = select(reservations.c.reservation_id).where(reservations.c.reservation_id.in_(reservation_ids))
        return set(c.execute(statement).scalars())

    def expire(self, c: Connection, now: int) -> int:
        """Release reservations whose time is over, at most `EXPIRY_BATCH`; returns how many."""
        return self._release(c, reservations.c.expires <= now)

    def release_all(self, c: Connection) -> int:
        """Release every reservation, at most `EXPIRY_BATCH`; returns how many. Their uploads can no longer end."""
        return self._release(c, true())

    # ── what is in the database itself ──────────────────────────────────────────────────────────────────────────────
    def charge(self, c: Connection, account_id: bytes, size: int, now: int) -> None:
        """Count bytes that this transaction stores. ApiError 507 `over-quota` when there is no room for them."""
        self._take(c, account_id, size, _TAKE_USED, now)

    def refund(self, c: Connection, account_id: bytes, size: int, now: int) -> None:
        """Bytes that are stored no longer."""
        _add(c, account_id, used=-size)

    # ── looking after it ────────────────────────────────────────────────────────────────────────────────────────────
    def usage(self, c: Connection, account_id: bytes) -> Usage:
        """What an account uses now."""
        row = c.execute(select(account_usage).where(_is(account_id))).one_or_none()
        return Usage(row.used, row.reserved) if row else Usage(0, 0)

    def forget(self, c: Connection, account_id: bytes) -> None:
        """Delete the account's figures, after its folders; an upload under way can no longer commit."""
        c.execute(delete(reservations).where(reservations.c.account_id == account_id))
        c.execute(delete(account_usage).where(_is(account_id)))

    def recount(self, c: Connection, account_id: bytes, used: int, *, repair: bool) -> Correction | None:
        """Compare the figures with what is truly stored, `used`, as this transaction sees it. None: they are right.

        With `repair` they are put right; the caller has locked the account by `lock` before it counted.
        """
        before = self.usage(c, account_id)
        total = select(func.coalesce(func.sum(reservations.c.size), 0)).where(reservations.c.account_id == account_id)
        after = Usage(used, int(c.execute(total).scalar_one()))
        if before == after:
            return None
        if repair:
            c.execute(update(account_usage).where(_is(account_id)).values(used=after.used, reserved=after.reserved))
        return Correction(account_id, before, after)

    def lock(self, c: Connection, account_id: bytes) -> None:
        """Let nobody else count for this account before the transaction ends."""
        insert_if_missing(c, account_usage, account_id=account_id, used=0, reserved=0)
        c.execute(select(account_usage.c.used).where(_is(account_id)).with_for_update())

    def _take(self, c: Connection, account_id: bytes, size: int, statement: Update, now: int) -> None:
        assert size >= 0
        limits = self._allowances.limits(c, account_id)
        given = {"account": account_id, "size": size, "most": limits.bytes - size}
        if c.execute(statement, given).rowcount:
            return
        if size <= limits.bytes:
            # There may have been no row yet, or what is in the way is promised to uploads that were given up.
            insert_if_missing(c, account_usage, account_id=account_id, used=0, reserved=0)
            self._release(c, (reservations.c.account_id == account_id) & (reservations.c.expires <= now))
            if c.execute(statement, given).rowcount:
                return
        raise over_quota(self.usage(c, account_id), limits, size)

    def _release(self, c: Connection, which: ColumnElement[bool]) -> int:
        # In one order of accounts, so that two of these cannot wait for each other.
        due = c.execute(
            select(reservations.c.account_id, reservations.c.reservation_id)
            .where(which)
            .order_by(reservations.c.account_id, reservations.c.reservation_id)
            .limit(EXPIRY_BATCH)
        ).all()
        return sum(self.release(c, row.account_id, row.reservation_id) for row in due)

    def _end(self, c: Connection, account_id: bytes, reservation_id: bytes) -> int | None:
        return c.execute(_END, {"account": account_id, "reservation": reservation_id}).scalar_one_or_none()


def over_quota(usage: Usage, limits: Limits, asked: int) -> ApiError:
    """The refusal of bytes that the account's plan has no room for, with the figures."""
    return ApiError(
        507,
        "over-quota",
        f"{asked} bytes do not fit: the plan has {limits.bytes}, of which {usage.used + usage.reserved} are taken; "
        "remove something or choose another plan",
        used=usage.used,
        reserved=usage.reserved,
        limit=limits.bytes,
        asked=asked,
        plan=limits.plan,
    )


def _add(c: Connection, account_id: bytes, *, used: int = 0, reserved: int = 0) -> None:
    c.execute(_ADD, {"account": account_id, "more_used": used, "more_reserved": reserved})


def _is(account_id: bytes) -> ColumnElement[bool]:
    return account_usage.c.account_id == account_id
