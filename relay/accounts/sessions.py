"""Sessions: short-lived tokens that only the device they were made for can use.

A token is the account's id and 32 random bytes, of which the relay keeps the hash. It is looked up under the device
that signed the request: with another device's key it does not exist. There is one session per device. Refreshing makes
both tokens anew; a refresh token that is not the newest was used before, by the device or by a thief, and ends the
session. The device then opens another by its key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, bindparam, delete, select, update

from relay.accounts.tables import accounts, devices, sessions
from relay.db.often import Often
from relay.db.upsert import put

ACCOUNT_ID_SIZE: Final = 16
SECRET_SIZE: Final = 32
TOKEN_SIZE: Final = ACCOUNT_ID_SIZE + SECRET_SIZE
SESSION_ENTROPY: Final = 2 * SECRET_SIZE
"""Random bytes that opening or refreshing a session needs."""
ACCESS_LIFETIME_S: Final = 15 * 60
REFRESH_LIFETIME_S: Final = 90 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a device gets. Never logged, never stored."""

    access: bytes
    refresh: bytes
    access_expires: int
    """Seconds since the epoch."""
    refresh_expires: int

    @property
    def account_id(self) -> bytes:
        """Whose session it is."""
        return self.access[:ACCOUNT_ID_SIZE]

    def __repr__(self) -> str:
        return f"Tokens(expires={self.access_expires})"


def open_session(c: Connection, account_id: bytes, device_id: bytes, now: int, entropy: bytes) -> Tokens | None:
    """A new session of a device of this account; one it had ends, and that it had logged out is over.

    The caller has checked that it may have one. None when the device is not in the account (any more).
    """
    return _open(c, account_id, device_id, now, entropy, logged_out=False)


def open_session_by_key(c: Connection, account_id: bytes, device_id: bytes, now: int, entropy: bytes) -> Tokens | None:
    """As `open_session`, for a device that has shown nothing but its key: None also when it has logged out."""
    return _open(c, account_id, device_id, now, entropy)


def _open(
    c: Connection, account_id: bytes, device_id: bytes, now: int, entropy: bytes, **values: bool
) -> Tokens | None:
    # Holds the device's row, so that nobody removes it before the session stands.
    allowed = _is_device(account_id, device_id)
    if not values:
        allowed &= devices.c.logged_out.is_(False)
    if c.execute(update(devices).where(allowed).values(seen=now, **values)).rowcount != 1:
        return None
    tokens, row = _issue(account_id, now, entropy)
    put(c, sessions, account_id=account_id, device_id=device_id, **row)
    return tokens


# Built once: this is asked for every device that calls, and building takes longer than asking.
_ACCESS = Often(
    select(sessions.c.access_hash, sessions.c.access_expires).where(
        sessions.c.account_id == bindparam("account"), sessions.c.device_id == bindparam("device")
    )
)


def account_of(c: Connection, token: bytes, device_id: bytes, now: int) -> bytes | None:
    """The account of a live access token of this device; None when it is not one."""
    account_id, secret = token[:ACCOUNT_ID_SIZE], token[ACCOUNT_ID_SIZE:]
    found = _ACCESS.one(c, account=account_id, device=device_id)
    if found is None or not hmac.compare_digest(found.access_hash, _hash(secret)) or found.access_expires <= now:
        return None
    return account_id


def refresh_session(c: Connection, token: bytes, device_id: bytes, now: int, entropy: bytes) -> Tokens | None:
    """Both tokens anew, for the newest refresh token of this device; None for any other: then the session must end."""
    account_id, secret = token[:ACCOUNT_ID_SIZE], token[ACCOUNT_ID_SIZE:]
    tokens, row = _issue(account_id, now, entropy)
    # One statement decides, so that of two requests with one token only one can win.
    renewed = c.execute(
        update(sessions)
        .where(
            _is(account_id, device_id),
            sessions.c.refresh_hash == _hash(secret),
            sessions.c.refresh_expires > now,
            select(accounts.c.account_id)
            .where(accounts.c.account_id == account_id, accounts.c.suspended.is_(False))
            .exists(),
        )
        .values(**row)
    )
    if renewed.rowcount != 1:
        return None
    c.execute(update(devices).where(_is_device(account_id, device_id)).values(seen=now))
    return tokens


def end_session(c: Connection, account_id: bytes, device_id: bytes) -> bool:
    """Both tokens of a device are worth nothing from now on. Whether it had any."""
    return c.execute(delete(sessions).where(_is(account_id, device_id))).rowcount == 1


def end_all_sessions(c: Connection, account_id: bytes) -> None:
    """As `end_session`, of every device of the account."""
    c.execute(delete(sessions).where(sessions.c.account_id == account_id))


def log_out(c: Connection, account_id: bytes, device_id: bytes) -> None:
    """End the session; until the password is given again, the device's key alone opens none."""
    end_session(c, account_id, device_id)
    c.execute(update(devices).where(_is_device(account_id, device_id)).values(logged_out=True))


def forget_expired(c: Connection, now: int) -> int:
    """Delete sessions that can no longer be refreshed; returns how many."""
    return c.execute(delete(sessions).where(sessions.c.refresh_expires <= now)).rowcount


def _issue(account_id: bytes, now: int, entropy: bytes) -> tuple[Tokens, dict[str, bytes | int]]:
    assert len(entropy) == SESSION_ENTROPY
    access, refresh = entropy[:SECRET_SIZE], entropy[SECRET_SIZE:]
    tokens = Tokens(account_id + access, account_id + refresh, now + ACCESS_LIFETIME_S, now + REFRESH_LIFETIME_S)
    row: dict[str, bytes | int] = {
        "access_hash": _hash(access),
        "access_expires": tokens.access_expires,
        "refresh_hash": _hash(refresh),
        "refresh_expires": tokens.refresh_expires,
    }
    return tokens, row


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _is(account_id: bytes, device_id: bytes) -> ColumnElement[bool]:
    return (sessions.c.account_id == account_id) & (sessions.c.device_id == device_id)


def _is_device(account_id: bytes, device_id: bytes) -> ColumnElement[bool]:
    return (devices.c.account_id == account_id) & (devices.c.device_id == device_id)
