"""Events: what stands for what, whom it is for, and that a cursor misses none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from p2psync.protocol.relay_api import MAX_EVENTS, Event, EventKind
from p2psync.testing.world import SimRng
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.errors import ApiError
from relay.mailbox import folders, notifications
from relay.mailbox.folders import Rights
from relay.mailbox.hub import Hub
from relay.mailbox.notifications import RETENTION_S
from relay.mailbox.subscriptions import (
    MAX_PER_ACCOUNT,
    MAX_PER_DEVICE,
    RECHECK_S,
    SubscriptionEnded,
    Subscriptions,
)
from relay.mailbox.tables import take_numbers
from tests.relay.mailbox.helpers import NOW, Limits, account, folder_id
from tests.relay.stack import Inline, ManualClock

DEVICE, OTHER = b"d" * 32, b"o" * 32


@pytest.fixture
def c(database: Database) -> Iterator[Connection]:
    with database.engine.connect() as connection, connection.begin():
        yield connection


def emit(c: Connection, audience: bytes, event: Event, **options: Any) -> int:
    number = take_numbers(c, 1)
    notifications.emit(c, audience, event, number, options.pop("now", NOW), **options)
    return number


def read(c: Connection, after: int, device: bytes = DEVICE, now: int = NOW) -> list[Event]:
    found = notifications.read(c, account(1), device, after, now).batch
    assert not found.reset
    return found.events


def test_newer_news_take_the_place_of_older_ones(c: Connection) -> None:
    emit(c, account(1), Event(EventKind.CHAIN))
    for seq in (1, 2, 3):
        emit(c, account(1), Event(EventKind.OBJECTS, folder_id=folder_id(1), seq=seq))
    emit(c, account(1), Event(EventKind.OBJECTS, folder_id=folder_id(2), seq=1))
    assert [(event.kind, event.seq) for event in read(c, 0)] == [("chain", 0), ("objects", 3), ("objects", 1)]


def test_calls_of_two_devices_stand_side_by_side(c: Connection) -> None:
    for sender in (b"a" * 32, b"b" * 32):
        emit(c, account(1), Event(EventKind.CALL, device_id=DEVICE, sender=sender), only=DEVICE, lifetime_s=60)
    assert len(read(c, 0)) == 2
    assert read(c, 0, OTHER) == []
    assert read(c, 0, now=NOW + 60) == []


def test_who_hears_of_a_folder(c: Connection) -> None:
    folders.create(c, Limits(), folder_id(1), account(0), NOW)
    start = take_numbers(c, 1)
    emit(c, folder_id(1), Event(EventKind.OBJECTS, folder_id=folder_id(1), seq=1))
    assert read(c, start) == []
    owned = folders.require(c, folder_id(1), account(0), Rights.MANAGE, lock=True)
    folders.set_access(c, owned, account(1), Rights.READ, NOW)
    assert [event.kind for event in read(c, start)] == ["objects", "access"]
    folders.remove_access(c, owned, account(1), NOW)
    assert [(event.kind, event.rights) for event in read(c, start)] == [("access", None)]


def test_what_was_forgotten_is_said(c: Connection) -> None:
    first = emit(c, account(1), Event(EventKind.CHAIN))
    emit(c, account(1), Event(EventKind.QUOTA), now=NOW + 5)
    call = Event(EventKind.CALL, device_id=DEVICE, sender=OTHER)
    emit(c, account(1), call, now=NOW + RETENTION_S - 100, lifetime_s=60)
    assert notifications.forget_old(c, NOW + RETENTION_S - 1) == 1
    assert not notifications.read(c, account(1), DEVICE, 0, NOW).batch.reset
    assert notifications.forget_old(c, NOW + RETENTION_S) == 1
    assert notifications.read(c, account(1), DEVICE, first - 1, NOW).batch.reset
    assert [event.kind for event in read(c, first)] == ["quota"]
    assert notifications.read(c, account(1), DEVICE, 10**6, NOW).batch.reset


kinds = st.sampled_from([EventKind.OBJECTS, EventKind.CHAIN, EventKind.QUOTA])
steps = st.lists(
    st.one_of(st.tuples(st.just("emit"), kinds, st.integers(0, 3)), st.just(("read",))), min_size=10, max_size=40
)


@settings(max_examples=20, deadline=None)
@given(steps)
def test_a_cursor_misses_nothing(script: list[tuple[Any, ...]]) -> None:
    """Each piece of news, or a newer one about the same, is read after it came."""
    database = database_from_url(IN_MEMORY, Inline(), SimRng("database"))
    metadata.create_all(database.engine)
    latest: dict[bytes, int] = {}
    seen: dict[bytes, int] = {}
    cursor = 0
    with database.engine.connect() as c, c.begin():
        for number, step in enumerate([*script, ("read",)]):
            if step[0] == "emit":
                event = Event(step[1], folder_id=folder_id(step[2]), seq=number)
                emit(c, account(1), event)
                latest[event.topic] = number
                continue
            batch = notifications.read(c, account(1), DEVICE, cursor, NOW).batch
            assert [event.event_id for event in batch.events] == sorted({event.event_id for event in batch.events})
            assert all(cursor < event.event_id <= batch.cursor for event in batch.events)
            seen |= {event.topic: event.seq for event in batch.events}
            cursor = batch.cursor
        assert seen == latest
    database.close()


def test_pages(c: Connection) -> None:
    for number in range(MAX_EVENTS + 5):
        emit(c, account(1), Event(EventKind.OBJECTS, folder_id=folder_id(number)))
    first = notifications.read(c, account(1), DEVICE, 0, NOW).batch
    second = notifications.read(c, account(1), DEVICE, first.cursor, NOW).batch
    assert (len(first.events), len(second.events)) == (MAX_EVENTS, 5)


# ── subscriptions ───────────────────────────────────────────────────────────────────────────────────────────────────
class Listening:
    """Subscriptions over a database, and what a test does to it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.hub = Hub()
        self.clock = ManualClock()
        self.alive = True
        self.subscriptions = Subscriptions(database, self.clock, self.hub)

    def open(self, after: int | None = None, number: int = 1, device: bytes = DEVICE) -> Any:
        async def alive() -> bool:
            return self.alive

        return self.subscriptions.open(account(number), device, after, alive)

    def write(self, work: Any, *topics: bytes) -> None:
        self.database.write_now(work)
        self.hub.wake(topics)


@pytest.fixture
def listening(database: Database) -> Listening:
    return Listening(database)


async def test_a_bell_between_reading_and_waiting_is_heard(listening: Listening, autojump_clock: object) -> None:
    with listening.open() as subscription:
        assert (await subscription.next(1)).events == []
        listening.write(lambda c: emit(c, account(1), Event(EventKind.CHAIN)), account(1))
        assert [event.kind for event in (await subscription.next(1)).events] == ["chain"]
        assert await subscription.next(1) is None
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def later() -> None:
                await trio.sleep(5)
                listening.write(lambda c: emit(c, account(1), Event(EventKind.QUOTA)), account(1))

            begun = trio.current_time()
            assert [event.kind for event in (await subscription.next(60)).events] == ["quota"]
            assert trio.current_time() - begun == 5


async def test_a_folder_that_one_is_let_into_is_listened_to(listening: Listening, autojump_clock: object) -> None:
    listening.write(lambda c: folders.create(c, Limits(), folder_id(1), account(0), NOW))

    def let_in(c: Connection) -> None:
        owned = folders.require(c, folder_id(1), account(0), Rights.MANAGE, lock=True)
        folders.set_access(c, owned, account(1), Rights.READ, NOW)

    def shut_out(c: Connection) -> None:
        owned = folders.require(c, folder_id(1), account(0), Rights.MANAGE, lock=True)
        folders.remove_access(c, owned, account(1), NOW)

    news = Event(EventKind.OBJECTS, folder_id=folder_id(1), seq=1)
    with listening.open() as subscription:
        await subscription.next(1)
        listening.write(lambda c: emit(c, folder_id(1), news), folder_id(1))
        assert await subscription.next(1) is None
        listening.write(let_in, account(1))
        assert (await subscription.next(1)).events[-1].kind == "access"
        listening.write(lambda c: emit(c, folder_id(1), news), folder_id(1))
        assert [event.kind for event in (await subscription.next(60)).events] == ["objects"]
        listening.write(shut_out, account(1))
        await subscription.next(1)
        listening.write(lambda c: emit(c, folder_id(1), news), folder_id(1))
        assert await subscription.next(1) is None
    assert listening.hub._listeners == {}


async def test_the_end_of_a_session_ends_its_subscriptions(listening: Listening, autojump_clock: object) -> None:
    with listening.open() as subscription:
        await subscription.next(1)
        listening.alive = False
        assert await subscription.next(1) is None
        listening.clock.advance(RECHECK_S)
        with pytest.raises(SubscriptionEnded):
            await subscription.next(1)
    listening.alive = True
    with listening.open() as subscription:
        async with trio.open_nursery() as nursery:
            await subscription.next(1)

            @nursery.start_soon
            async def log_out() -> None:
                await trio.sleep(1)
                listening.alive = False
                listening.subscriptions.recheck(account(1))

            with pytest.raises(SubscriptionEnded):
                await subscription.next(60)
            assert trio.current_time() < 30


async def test_subscriptions_are_bounded(listening: Listening) -> None:
    ended: list[int] = []

    async def hold(number: int) -> None:
        with listening.open() as subscription:
            await subscription.next(0)
            try:
                await subscription.next(100)
            except SubscriptionEnded:
                ended.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(MAX_PER_DEVICE + 2):
            nursery.start_soon(hold, number)
            await trio.testing.wait_all_tasks_blocked()
        assert ended == [0, 1]
        assert listening.subscriptions.count() == MAX_PER_DEVICE
        with ExitStack() as others:
            for number in range(MAX_PER_ACCOUNT - MAX_PER_DEVICE):
                others.enter_context(listening.open(device=number.to_bytes(32, "big")))
            with pytest.raises(ApiError), listening.open(device=b"x" * 32):
                pass
            with listening.open(number=2):
                pass
        nursery.cancel_scope.cancel()
    assert listening.subscriptions.count() == 0
