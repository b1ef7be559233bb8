"""News that another process writes is heard of in this one, and what was read already rings no bell again."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, event

from p2psync.protocol.relay_api import Event, EventKind
from p2psync.testing.world import SimRng
from relay.api.routes import all_routes
from relay.db.database import database_from_url
from relay.db.metadata import metadata
from relay.errors import ApiError
from relay.mailbox import notifications
from relay.mailbox.hub import Hub
from relay.mailbox.subscriptions import Subscriptions
from relay.mailbox.tables import take_numbers
from relay.mailbox.watch import EVERY_S, Watch
from tests.relay.mailbox.helpers import NOW, account
from tests.relay.stack import Inline, ManualClock

DEVICE = b"d" * 32


def tell(c: Connection, number: int, kind: EventKind) -> None:
    notifications.emit(c, account(number), Event(kind), take_numbers(c, 1), NOW)


async def always() -> bool:
    return True


@pytest.fixture
def url(tmp_path: Path) -> str:
    all_routes()
    return f"sqlite:///{tmp_path}/relay.db"


async def test_what_another_process_says_is_heard(url: str, autojump_clock: object) -> None:
    here, there = (database_from_url(url, Inline(), SimRng(name)) for name in ("here", "there"))
    metadata.create_all(here.engine)
    there.write_now(lambda c: tell(c, 1, EventKind.CHAIN))
    hub = Hub()
    subscriptions = Subscriptions(here, ManualClock(), hub)
    reads = 0

    @event.listens_for(here.engine, "begin")
    def count(_: Connection) -> None:
        nonlocal reads
        reads += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watch(here, hub).run)
        with subscriptions.open(account(1), DEVICE, None, always) as one:
            assert (await one.next(0)).events == []  # type: ignore[union-attr]
            await trio.sleep(2 * EVERY_S)
            there.write_now(lambda c: tell(c, 1, EventKind.QUOTA))
            begun = trio.current_time()
            assert [e.kind for e in (await one.next(60)).events] == ["quota"]  # type: ignore[union-attr]
            assert trio.current_time() - begun <= EVERY_S
            # What this process has said itself is not read twice, and what is for others not at all.
            here.write_now(lambda c: tell(c, 1, EventKind.CHAIN))
            hub.wake([account(1)])
            assert [e.kind for e in (await one.next(0)).events] == ["chain"]  # type: ignore[union-attr]
            there.write_now(lambda c: tell(c, 2, EventKind.QUOTA))
            reads = 0
            assert await one.next(10 * EVERY_S + EVERY_S / 2) is None
            assert reads <= 12  # its own looks, one of the subscription
        nursery.cancel_scope.cancel()
    here.close()
    there.close()


async def test_a_database_that_is_away_is_looked_at_again(url: str, autojump_clock: object) -> None:
    database = database_from_url(url, Inline(), SimRng("here"))
    metadata.create_all(database.engine)
    hub, looks = Hub(), 0
    read = database.read

    async def broken(work: object) -> object:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise ApiError(503, "unavailable")
        return await read(work)  # type: ignore[arg-type]

    database.read = broken  # type: ignore[method-assign]
    with Subscriptions(database, ManualClock(), hub).open(account(1), DEVICE, None, always) as one:
        looks = -100
        await one.next(0)
        looks = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Watch(database, hub).run)
            await trio.sleep(EVERY_S / 2)
            database.write_now(lambda c: tell(c, 1, EventKind.QUOTA))
            assert [e.kind for e in (await one.next(60)).events] == ["quota"]  # type: ignore[union-attr]
            nursery.cancel_scope.cancel()
    database.close()
