"""Two devices of one account with their homes, beside a relay in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from p2psync.model.ids import parse_folder_id
from p2psync.node.node import NodeOperations
from p2psync.sync.folder import Folder
from p2psync.testing import SimDevice, SimWorld
from tests.relay.simulated import ADDRESS, VirtualRelay
from tests.simulation.nodes import PORT, make_node

FOLDER, LABEL = b"/data/docs", "docs"
EMAIL, KEY = "ann@example.org", b"k" * 32


class Home:
    """Devices with their nodes, one account, one folder."""

    def __init__(self, relay: VirtualRelay) -> None:
        self.relay = relay
        self.sim = SimWorld(0)
        self.sim.device("a").disk.make_directories(FOLDER)
        self.sim.device("b").disk.make_directories(b"/data")

    def device(self, name: str) -> SimDevice:
        return self.sim.device(name)

    @asynccontextmanager
    async def node(self, name: str) -> AsyncIterator[NodeOperations]:
        """A node, with everything it has kept."""
        async with make_node(self.relay.world(self.sim, name), b"/home", name) as node:
            yield node

    def files(self, name: str) -> dict[bytes, bytes]:
        user = self.device(name).user(FOLDER)
        return {n: user.read(n) for n in user.names() if n != b".p2psync"}


async def until(condition: Callable[[], bool], timeout: float = 300) -> None:
    with trio.fail_after(timeout):
        while not condition():
            await trio.sleep(0.1)


def the_folder(node: NodeOperations) -> Folder:
    return node.synchronizer.folders[parse_folder_id(node.state.folders[0].id)]


def is_posted(node: NodeOperations) -> bool:
    folder = the_folder(node)
    if not folder.mailroom.mailboxes:
        return False
    (mailbox,) = folder.mailroom.mailboxes
    with folder.context.index.read() as reader:
        return mailbox.reader.caught_up and mailbox.journal.row.posted >= reader.sequence() > 0


async def begun(home: Home) -> None:
    """The two met once: one account, one folder with its key, and nothing in it."""
    async with home.node("a") as desk, home.node("b") as laptop:
        made = await desk.account_sign_up([str(ADDRESS)], EMAIL, KEY)
        await desk.account_verify(await home.relay.code(EMAIL))
        await laptop.account_log_in(EMAIL, KEY, [str(ADDRESS)], made.recovery_key)
        ids = [(await node.identity()).id for node in (desk, laptop)]
        await desk.device_add(ids[1], "b", [f"b:{PORT}"])
        await laptop.device_add(ids[0], "a", [f"a:{PORT}"])
        folder = await desk.folder_add(FOLDER, LABEL)
        await desk.folder_share(folder.id, ids[1], "owner")
        await until(lambda: bool(laptop.synchronizer.offers))
        await laptop.folder_accept(folder.id, FOLDER)
        for node in (desk, laptop):
            assert (await node.folder_mailbox(LABEL)).policy == "never"
            assert (await node.folder_mailbox(LABEL, "always")).policy == "always"
        # Either may have begun the epoch, and must not be gone before the other has its key.
        await until(lambda: all(len(the_folder(node).mailroom.keys.ring) == 1 for node in (desk, laptop)))
