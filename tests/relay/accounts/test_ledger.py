"""The ledger: whatever happens in whatever order, nobody exceeds a limit and nothing is counted twice or never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Connection, func, select

from p2psync.system import ThreadOffload
from p2psync.testing.world import SimRng
from relay.accounts.ledger import Ledger, Usage, account_usage, reservations
from relay.accounts.plans import Limits
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.errors import ApiError
from tests.relay.stack import Inline

T = TypeVar("T")
LIMIT = 1000
ACCOUNTS = (b"a" * 16, b"b" * 16)
ALICE = ACCOUNTS[0]


class Fixed:
    """Every account has the same plan."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit

    def limits(self, _c: Connection, _account_id: bytes) -> Limits:
        return Limits("small", self.limit, 1, 1)


class CrashError(Exception):
    """The transaction does not come to its end."""


class LedgerMachine(RuleBasedStateMachine):
    """What accounts were promised and what they store, beside the ledger's own figures."""

    def __init__(self) -> None:
        super().__init__()
        self.database = database_from_url(IN_MEMORY, Inline(), SimRng("ledger"))
        metadata.create_all(self.database.engine, [account_usage, reservations])
        self.ledger = Ledger(Fixed())
        self.now = 1000
        self.made = 0
        self.open: dict[bytes, tuple[bytes, int, int]] = {}
        self.stored = dict.fromkeys(ACCOUNTS, 0)

    def run(self, work: Callable[[Connection], T], *, crash: bool) -> T | None:
        """The result; None after a crash, which leaves nothing."""

        def whole(c: Connection) -> T:
            result = work(c)
            if crash:
                raise CrashError
            return result

        try:
            return self.database.write_now(whole)
        except CrashError:
            return None

    def taken(self, account: bytes, *, of_the_past: bool) -> int:
        promised = [
            size
            for owner, size, expires in self.open.values()
            if owner == account and (of_the_past or expires > self.now)
        ]
        return self.stored[account] + sum(promised)

    def expect(self, account: bytes, size: int, work: Callable[[Connection], object], *, crash: bool) -> bool:
        """Whether it was counted: exactly when it fits, what has expired left out."""
        fits = self.taken(account, of_the_past=False) + size <= LIMIT
        if not fits:
            with pytest.raises(ApiError) as caught:
                self.run(work, crash=crash)
            figures = caught.value.figures
            assert (caught.value.code, figures["limit"], figures["asked"]) == ("over-quota", LIMIT, size)
            return False
        self.run(work, crash=crash)
        if not crash and self.taken(account, of_the_past=True) + size > LIMIT:
            self.forget_expired(account)
        return not crash

    def forget_expired(self, account: bytes | None = None) -> None:
        self.open = {
            key: value
            for key, value in self.open.items()
            if value[2] > self.now or (account is not None and value[0] != account)
        }

    @rule(
        account=st.sampled_from(ACCOUNTS),
        size=st.integers(0, LIMIT + 1),
        lifetime=st.integers(1, 20),
        crash=st.booleans(),
    )
    def reserve(self, account: bytes, size: int, lifetime: int, crash: bool) -> None:
        self.made += 1
        key, expires = self.made.to_bytes(16, "big"), self.now + lifetime

        def work(c: Connection) -> None:
            self.ledger.reserve(c, account, key, size, expires=expires, now=self.now)

        if self.expect(account, size, work, crash=crash):
            self.open[key] = (account, size, expires)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), crash=st.booleans())
    def commit(self, data: st.DataObject, crash: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        account, size, _ = self.open[key]
        if self.run(lambda c: self.ledger.commit(c, account, key), crash=crash):
            del self.open[key]
            self.stored[account] += size
            assert not self.run(lambda c: self.ledger.commit(c, account, key), crash=False)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), crash=st.booleans())
    def release(self, data: st.DataObject, crash: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        account = self.open[key][0]
        if self.run(lambda c: self.ledger.release(c, account, key), crash=crash):
            del self.open[key]
            assert not self.run(lambda c: self.ledger.release(c, account, key), crash=False)

    @rule(account=st.sampled_from(ACCOUNTS), size=st.integers(0, LIMIT), crash=st.booleans())
    def charge(self, account: bytes, size: int, crash: bool) -> None:
        if self.expect(account, size, lambda c: self.ledger.charge(c, account, size, self.now), crash=crash):
            self.stored[account] += size

    @rule(account=st.sampled_from(ACCOUNTS), data=st.data(), crash=st.booleans())
    def refund(self, account: bytes, data: st.DataObject, crash: bool) -> None:
        size = data.draw(st.integers(0, self.stored[account]))
        self.run(lambda c: self.ledger.refund(c, account, size, self.now), crash=crash)
        self.stored[account] -= 0 if crash else size

    @rule(seconds=st.integers(0, 10), crash=st.booleans())
    def expire(self, seconds: int, crash: bool) -> None:
        self.now += seconds
        count = self.run(lambda c: self.ledger.expire(c, self.now), crash=crash)
        if not crash:
            before = len(self.open)
            self.forget_expired()
            assert count == before - len(self.open)

    @invariant()
    def figures(self) -> None:
        def read(c: Connection) -> list[Usage]:
            rows = c.execute(select(reservations.c.reservation_id)).scalars()
            assert set(rows) == set(self.open)
            assert self.ledger.live(c, [*self.open, b"x" * 16]) == set(self.open)
            return [self.ledger.usage(c, account) for account in ACCOUNTS]

        for account, usage in zip(ACCOUNTS, self.database.read_now(read), strict=True):
            reserved = sum(size for owner, size, _ in self.open.values() if owner == account)
            assert usage == Usage(self.stored[account], reserved)
            assert usage.used + usage.reserved <= LIMIT

    def teardown(self) -> None:
        self.database.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(Fixed())


def test_figures_that_are_wrong_hinder_nothing_and_are_put_right(database: Database, ledger: Ledger) -> None:
    def damage(c: Connection) -> None:
        ledger.charge(c, ALICE, 10, 0)
        ledger.refund(c, ALICE, 25, 0)
        assert ledger.usage(c, ALICE) == Usage(0, 0)
        ledger.reserve(c, ALICE, b"r" * 16, 7, expires=100, now=0)
        c.execute(account_usage.update().values(reserved=3))

    database.write_now(damage)

    def repair(c: Connection) -> None:
        ledger.lock(c, ALICE)
        for repair in (False, True):
            correction = ledger.recount(c, ALICE, 40, repair=repair)
            assert correction is not None
            assert (correction.before, correction.after) == (Usage(0, 3), Usage(40, 7))
        assert ledger.recount(c, ALICE, 40, repair=True) is None
        ledger.forget(c, ALICE)
        assert ledger.usage(c, ALICE) == Usage(0, 0)
        assert not ledger.commit(c, ALICE, b"r" * 16)

    database.write_now(repair)


def test_a_refusal_has_the_figures_and_leaves_no_trace(database: Database, ledger: Ledger) -> None:
    with pytest.raises(ApiError) as caught:
        database.write_now(lambda c: ledger.charge(c, ALICE, LIMIT + 1, 0))
    assert caught.value.document() == {
        "type": "urn:p2psync:problem:over-quota",
        "title": "The account's storage is full",
        "status": 507,
        "detail": f"{LIMIT + 1} bytes do not fit: the plan has {LIMIT}, of which 0 are taken; "
        "remove something or choose another plan",
        "used": 0,
        "reserved": 0,
        "limit": LIMIT,
        "asked": LIMIT + 1,
        "plan": "small",
    }
    assert database.read_now(lambda c: c.execute(select(func.count()).select_from(account_usage)).scalar_one()) == 0


async def test_two_hundred_uploads_at_the_limit(tmp_path: Path) -> None:
    """All at once, in threads, on a database in a file: exactly as many as fit."""
    database = database_from_url(f"sqlite:///{tmp_path / 'relay.db'}", ThreadOffload(), SimRng("database"))
    metadata.create_all(database.engine, [account_usage, reservations])
    await upload_two_hundred(database)
    database.close()


async def upload_two_hundred(database: Database) -> None:
    chunk, fit = 4 << 20, 60
    ledger = Ledger(Fixed(fit * chunk + chunk // 2))
    stored: list[int] = []
    refused: list[int] = []

    async def upload(number: int) -> None:
        key = number.to_bytes(16, "big")
        try:
            await database.write(lambda c: ledger.reserve(c, ALICE, key, chunk, expires=100, now=0))
        except ApiError:
            refused.append(number)
            return
        if await database.write(lambda c: ledger.commit(c, ALICE, key)):
            stored.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(upload, number)
    assert (len(stored), len(refused)) == (fit, 200 - fit)
    assert await database.read(lambda c: ledger.usage(c, ALICE)) == Usage(fit * chunk, 0)


def test_figures_of_terabytes(database: Database) -> None:
    """Nothing is counted in 32 bits, whichever database does it."""
    ledger, size, now = Ledger(Fixed(1 << 50)), 1 << 45, 1 << 40

    def work(c: Connection) -> Usage:
        ledger.charge(c, ALICE, size, now)
        for key in (b"a" * 16, b"b" * 16, b"c" * 16):
            ledger.reserve(c, ALICE, key, size, expires=now, now=now)
        assert ledger.commit(c, ALICE, b"a" * 16)
        assert ledger.release(c, ALICE, b"b" * 16)
        ledger.refund(c, ALICE, size, now)
        assert ledger.expire(c, now) == 1
        ledger.lock(c, ALICE)
        assert ledger.recount(c, ALICE, 2 * size, repair=True) is not None
        return ledger.usage(c, ALICE)

    assert database.write_now(work) == Usage(2 * size, 0)
