"""Guessing gets slower: delays that double, counted before the guess is judged and alike whether the account exists.

A try is counted when it begins, in a transaction, so a thousand at once are no better than a thousand in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, case, delete, select, update

from relay.accounts.tables import attempts
from relay.db.upsert import insert_if_missing
from relay.errors import ApiError


@dataclass(frozen=True, slots=True)
class Policy:
    """So many tries are free; each one after doubles the wait, up to a limit. Times in seconds."""

    free: int
    first_s: int
    longest_s: int
    forget_s: int
    """A subject that was quiet for this long starts anew."""

    def delay(self, tries: int) -> int:
        """Seconds before the next try, after so many."""
        over = tries - self.free
        return 0 if over < 0 else min(self.first_s << min(over, 32), self.longest_s)


@dataclass(frozen=True, slots=True)
class Policies:
    """How often what may be tried."""

    guesses_per_account: Policy = Policy(free=5, first_s=2, longest_s=900, forget_s=86_400)
    guesses_per_network: Policy = Policy(free=30, first_s=1, longest_s=900, forget_s=3600)
    mails_per_address: Policy = Policy(free=3, first_s=300, longest_s=6 * 3600, forget_s=86_400)
    mails_per_network: Policy = Policy(free=20, first_s=10, longest_s=3600, forget_s=86_400)


def policies(mails_per_network: int, guesses_per_network: int) -> Policies:
    """With the numbers that depend on who is behind a network."""
    plain = Policies()
    return Policies(
        guesses_per_network=replace(plain.guesses_per_network, free=guesses_per_network),
        mails_per_network=replace(plain.mails_per_network, free=mails_per_network),
    )


def count_try(c: Connection, subjects: Sequence[tuple[bytes, Policy]], now: int) -> int:
    """Count a try for each subject, unless one of them must wait: then seconds to wait, and nothing is counted."""
    ordered = sorted(subjects, key=lambda pair: pair[0])  # rows are locked in one order, so nobody waits in a circle
    rows = []
    for subject, _ in ordered:
        insert_if_missing(c, attempts, subject=subject, failures=0, until=0, forget=0)
        rows.append(c.execute(select(attempts).where(attempts.c.subject == subject).with_for_update()).one())
    wait: int = max(row.until for row in rows) - now
    if wait > 0:
        return wait
    for (subject, policy), row in zip(ordered, rows, strict=True):
        tries = 1 if row.forget <= now else row.failures + 1
        c.execute(
            update(attempts)
            .where(attempts.c.subject == subject)
            .values(failures=tries, until=now + policy.delay(tries), forget=now + policy.forget_s)
        )
    return 0


def forgive(c: Connection, subject: bytes) -> None:
    """The try was right: this subject has a clean record."""
    c.execute(delete(attempts).where(attempts.c.subject == subject))


def take_back(c: Connection, subject: bytes) -> None:
    """The try was right, and says nothing of the others that this subject made."""
    fewer = case((attempts.c.failures > 0, attempts.c.failures - 1), else_=0)
    c.execute(update(attempts).where(attempts.c.subject == subject).values(failures=fewer))


def forget_old(c: Connection, now: int) -> int:
    """Delete subjects that have been quiet; returns how many."""
    return c.execute(delete(attempts).where(attempts.c.forget <= now)).rowcount


def too_often(wait: int) -> ApiError:
    """The refusal of a try that comes too early."""
    return ApiError(
        429, "rate-limited", f"too many tries; wait {wait} s", headers={"Retry-After": str(wait)}, retry_after=wait
    )
