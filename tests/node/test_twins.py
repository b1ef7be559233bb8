"""Two copies of one home that run at the same time (I7)."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from p2psync.node.node import NodeOperations
from tests.simulation.nodes import PORT, make_node
from tests.sync.conftest import simulated, told


async def listen(node: NodeOperations, into: list[str]) -> None:
    async with node.events() as events:
        async for event in events:
            into += [event.text] * (event.kind == "device.twin")


@simulated
async def test_two_copies_of_one_home_are_refused_and_told() -> None:
    async with told() as story, trio.open_nursery() as nursery:
        await story.start("one", "two")
        await story.share("one", two="editor")
        one, two = story.nodes["one"], story.nodes["two"]
        heard: Sequence[list[str]] = ([], [], [])
        copy = story.sim.device("z").world()
        async with make_node(copy, b"/home", story.letter("two")) as twin:
            for node, into in zip((one, two, twin), heard, strict=True):
                nursery.start_soon(listen, node, into)
            await twin.device_add((await one.identity()).id, "one", [f"{story.letter('one')}:{PORT}"])
            await story.until(lambda: all(heard), timeout=600)
            assert all("in two places" in texts[0] for texts in heard)
            await trio.sleep(30)
            assert not any(device.connected for device in (await one.status()).devices), "neither is trusted"
        await story.until(lambda: any(c.peer is not None for c in one.connections.contacts.values()), timeout=900)
        story.user("two").write(b"later", b"goes on")
        await story.settle("two")
        assert story.user("one").read(b"later") == b"goes on"
        nursery.cancel_scope.cancel()
