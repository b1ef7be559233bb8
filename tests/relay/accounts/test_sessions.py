"""Tokens: bound to a device's key, short-lived, and ended by a refresh token that comes twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, insert, select, update

from relay.accounts import sessions
from relay.accounts.sessions import ACCESS_LIFETIME_S, REFRESH_LIFETIME_S, Tokens
from relay.accounts.tables import accounts, devices
from relay.accounts.tables import sessions as table
from relay.db.database import engine_from_url
from relay.db.metadata import metadata

NOW = 1_800_000_000
ACCOUNT, DEVICE, OTHER = b"a" * 16, b"d" * 32, b"e" * 32


@pytest.fixture
def c() -> Iterator[Connection]:
    engine = engine_from_url("sqlite://")
    metadata.create_all(engine)
    with engine.connect() as connection:
        account = {"verifier": b"v", "plan": "", "created": NOW, "suspended": False}
        connection.execute(insert(accounts).values(account_id=ACCOUNT, email="a@example.org", **account))
        device = {"account_id": ACCOUNT, "kind": 1, "added": NOW, "seen": 0, "logged_out": False}
        connection.execute(insert(devices), [{"device_id": DEVICE, **device}, {"device_id": OTHER, **device}])
        yield connection
    engine.dispose()


def entropy(number: int) -> bytes:
    return bytes([number]) * 32 + bytes([number + 100]) * 32


def opened(c: Connection, number: int = 1, device: bytes = DEVICE) -> Tokens:
    tokens = sessions.open_session(c, ACCOUNT, device, NOW, entropy(number))
    assert tokens is not None
    return tokens


def live(c: Connection, tokens: Tokens, device: bytes = DEVICE, now: int = NOW) -> bool:
    found = sessions.account_of(c, tokens.access, device, now)
    assert found in {None, ACCOUNT}
    return found is not None


def test_a_token_is_good_for_its_device_and_its_time(c: Connection) -> None:
    tokens = opened(c)
    opened(c, 2, OTHER)
    assert live(c, tokens)
    assert not live(c, tokens, OTHER)
    assert live(c, tokens, now=NOW + ACCESS_LIFETIME_S - 1)
    assert not live(c, tokens, now=NOW + ACCESS_LIFETIME_S)
    assert sessions.account_of(c, tokens.refresh, DEVICE, NOW) is None
    assert sessions.account_of(c, b"", DEVICE, NOW) is None


def test_refresh_makes_both_tokens_anew(c: Connection) -> None:
    first = opened(c)
    second = sessions.refresh_session(c, first.refresh, DEVICE, NOW + 60, entropy(2))
    assert second is not None
    assert live(c, second)
    assert not live(c, first)
    assert second.access_expires == NOW + 60 + ACCESS_LIFETIME_S


def test_a_refresh_token_works_once(c: Connection) -> None:
    first = opened(c)
    second = sessions.refresh_session(c, first.refresh, DEVICE, NOW, entropy(2))
    assert second is not None
    assert sessions.refresh_session(c, first.refresh, DEVICE, NOW, entropy(3)) is None
    assert sessions.end_session(c, ACCOUNT, DEVICE)
    assert not sessions.end_session(c, ACCOUNT, DEVICE)
    assert not live(c, second)
    assert sessions.refresh_session(c, second.refresh, DEVICE, NOW, entropy(4)) is None


def test_a_stolen_refresh_token_is_worth_nothing_and_harms_nobody(c: Connection) -> None:
    tokens = opened(c)
    assert sessions.refresh_session(c, tokens.refresh, OTHER, NOW, entropy(2)) is None
    assert live(c, tokens)


def test_a_session_not_refreshed_in_time_is_over(c: Connection) -> None:
    tokens = opened(c)
    assert sessions.forget_expired(c, NOW + REFRESH_LIFETIME_S - 1) == 0
    assert sessions.refresh_session(c, tokens.refresh, DEVICE, NOW + REFRESH_LIFETIME_S, entropy(2)) is None
    opened(c)
    assert sessions.forget_expired(c, NOW + REFRESH_LIFETIME_S) == 1


def test_a_device_has_one_session(c: Connection) -> None:
    first, other = opened(c), opened(c, 2, OTHER)
    second = opened(c, 3)
    assert (live(c, first), live(c, second), live(c, other, OTHER)) == (False, True, True)


def test_a_suspended_account_refreshes_nothing(c: Connection) -> None:
    tokens = opened(c)
    c.execute(update(accounts).values(suspended=True))
    assert sessions.refresh_session(c, tokens.refresh, DEVICE, NOW, entropy(2)) is None


def test_the_database_holds_no_token(c: Connection) -> None:
    tokens = opened(c)
    stored = b"".join(value for row in c.execute(select(table)) for value in row if isinstance(value, bytes))
    assert tokens.access[16:] not in stored
    assert tokens.refresh[16:] not in stored
    assert tokens.access.hex() not in repr(tokens)


def test_logging_out_is_remembered(c: Connection) -> None:
    tokens = opened(c)
    sessions.log_out(c, ACCOUNT, DEVICE)
    assert not live(c, tokens)
    logged_out = dict(c.execute(select(devices.c.device_id, devices.c.logged_out)).all())
    assert logged_out == {DEVICE: True, OTHER: False}
    assert sessions.open_session_by_key(c, ACCOUNT, DEVICE, NOW, entropy(2)) is None
    assert sessions.open_session_by_key(c, ACCOUNT, OTHER, NOW, entropy(2)) is not None
    opened(c, 3)
    assert sessions.open_session_by_key(c, ACCOUNT, DEVICE, NOW, entropy(4)) is not None


def test_a_device_that_is_not_in_the_account_gets_none(c: Connection) -> None:
    assert sessions.open_session(c, ACCOUNT, b"x" * 32, NOW, entropy(1)) is None
    assert sessions.open_session(c, b"x" * 16, DEVICE, NOW, entropy(1)) is None
