"""A relay whose disk has lost chunks gets them again from a node that has their content."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.relay.homes import FOLDER, LABEL, Home, begun, is_posted, until
from tests.relay.simulated import VirtualRelay

CONTENT = bytes(range(256)) * 5000


def chunks(relay: VirtualRelay) -> dict[str, bytes]:
    return {key: data for key, data in relay.store.objects.items() if key.startswith("chunks/")}


async def test_what_the_relay_has_lost_comes_back_and_reaches_who_was_away(autojump_clock: MockClock) -> None:
    relay = VirtualRelay()
    home = Home(relay)
    async with relay.running():
        await begun(home)
        async with home.node("a") as desk:
            home.device("a").user(FOLDER).write(b"f", CONTENT)
            await desk.folder_scan(LABEL)
            await until(lambda: is_posted(desk))
        stored = chunks(relay)
        assert stored
        relay.store.delete(list(stored))
        home.sim.network.part("a", "b")
        async with home.node("b"):
            # It asks for what is lost, and so the relay notices.
            await trio.sleep(300)
            assert home.files("b") == {}
            assert chunks(relay) == {}
            async with home.node("a"):
                await until(lambda: home.files("b") == {b"f": CONTENT}, timeout=1200)
        assert sorted(chunks(relay).values()) == sorted(stored.values())
    relay.close()
