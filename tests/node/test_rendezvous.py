"""A node's place at a relay, as long as there is no account."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from p2psync.errors import IntegrityError, StateError
from p2psync.node.rendezvous import Rendezvous
from p2psync.sync.pulse import Pulse
from p2psync.testing.world import SimWorld


@pytest.mark.parametrize("error", [StateError("in no account"), IntegrityError("damaged"), OSError("unreadable")])
async def test_a_device_without_an_account_does_nothing_until_that_changes(
    autojump_clock: MockClock, nursery: trio.Nursery, error: Exception
) -> None:
    asked: list[float] = []

    def client() -> NoReturn:
        asked.append(trio.current_time())
        raise error

    changed, world = Pulse(), SimWorld(0).device("a").world()
    connections: Any = SimpleNamespace(listening=[])
    nursery.start_soon(Rendezvous(world, connections, client, changed, list, relayed="any").run)
    await trio.sleep(10_000)
    waiting = len(asked)
    assert waiting == 2
    changed.fire()
    await trio.sleep(10_000)
    assert len(asked) == 2 * waiting
