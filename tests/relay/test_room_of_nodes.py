"""An account that is full: what waits for room goes on as soon as the relay says that there is some."""

from __future__ import annotations

import msgspec
from trio.testing import MockClock

from relay.config import Allowance, Config, Plan, Size
from tests.relay.homes import FOLDER, LABEL, Home, begun, is_posted, the_folder, until
from tests.relay.simulated import VirtualRelay

BIG = 200_000
CONFIG = msgspec.structs.replace(
    Config(), free=Allowance(bytes=Size(BIG)), plans=(Plan(name="more", bytes=Size(10 * BIG)),)
)


async def test_a_plan_that_is_lifted_is_noticed_at_once(autojump_clock: MockClock) -> None:
    relay = VirtualRelay(config=CONFIG)
    home = Home(relay)
    async with relay.running():
        await begun(home)
        async with home.node("a") as desk:
            home.device("a").user(FOLDER).write(b"big", bytes(BIG))
            await desk.folder_scan(LABEL)
            await until(lambda: "relay-quota" in the_folder(desk).context.problems)
            assert relay.services is not None
            await relay.services.accounts.grant("ann@example.org", "more", relay.services.now())
            await until(lambda: is_posted(desk) and "relay-quota" not in the_folder(desk).context.problems, timeout=20)
    relay.close()
