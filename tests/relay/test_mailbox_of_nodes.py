"""Folders of two nodes of one account that are never online together, through the whole relay, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from p2psync.errors import InputError, StateError
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


@pytest.fixture
async def home(autojump_clock: MockClock) -> AsyncIterator[Home]:
    relay = VirtualRelay()
    async with relay.running():
        yield Home(relay)
    relay.close()


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
        await until(lambda: len(the_folder(laptop).mailroom.keys.ring) == 1)


async def test_what_one_leaves_at_the_relay_the_other_finds(autojump_clock: MockClock, home: Home) -> None:
    await begun(home)
    async with home.node("a") as desk:
        user = home.device("a").user(FOLDER)
        user.write(b"small", b"1")
        user.write(b"long", bytes(range(256)) * 4000)
        await desk.folder_scan(LABEL)
        await until(lambda: is_posted(desk))
        assert not the_folder(desk).context.problems
    async with home.node("b") as laptop:
        await until(lambda: home.files("b") == home.files("a"))
        home.device("b").user(FOLDER).write(b"answer", b"2")
        await laptop.folder_scan(LABEL)
        await until(lambda: is_posted(laptop))
        assert not the_folder(laptop).context.problems
    async with home.node("a") as desk:
        await until(lambda: home.files("a") == home.files("b"))
        assert not the_folder(desk).context.problems


async def test_news_comes_at_once(autojump_clock: MockClock, home: Home) -> None:
    await begun(home)
    async with home.node("a") as desk, home.node("b") as laptop:
        home.sim.network.part("a", "b")
        await until(lambda: bool(the_folder(desk).mailroom.mailboxes) and bool(the_folder(laptop).mailroom.mailboxes))
        await trio.sleep(60)
        home.device("a").user(FOLDER).write(b"f", b"now")
        await desk.folder_scan(LABEL)
        await until(lambda: b"f" in home.files("b"), timeout=30)


async def test_a_restarted_relay_has_everything(autojump_clock: MockClock) -> None:
    relay = VirtualRelay()
    home = Home(relay)
    async with relay.running():
        await begun(home)
    async with home.node("a") as desk:
        home.device("a").user(FOLDER).write(b"f", b"1")
        await desk.folder_scan(LABEL)
        await trio.sleep(300)
        assert "relay-unreachable" in the_folder(desk).context.problems
        async with relay.running():
            await until(lambda: is_posted(desk), timeout=900)
            assert "relay-unreachable" not in the_folder(desk).context.problems
    async with relay.running(), home.node("b"):
        await until(lambda: home.files("b") == {b"f": b"1"})
    relay.close()


async def test_a_mailbox_is_set_seen_and_left(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        folder = await desk.folder_add(FOLDER, LABEL)
        with pytest.raises(StateError, match="account signup"):
            await desk.folder_mailbox(folder.id, "always")
        assert (await desk.folder_mailbox(folder.id)).policy == "never"
        await desk.account_sign_up([str(ADDRESS)], EMAIL, KEY)
        await desk.account_verify(await home.relay.code(EMAIL))
        with pytest.raises(InputError, match="not 'sometimes'"):
            await desk.folder_mailbox(folder.id, "sometimes")  # type: ignore[arg-type]
        home.device("a").user(FOLDER).write(b"f", b"1" * 500)
        await desk.folder_mailbox(folder.id, "always")
        await desk.folder_scan(LABEL)
        await until(lambda: is_posted(desk))
        view = await desk.folder_mailbox(folder.id)
        assert (view.policy, view.relay, view.waiting, view.sent) == ("always", ADDRESS.authority, 0, 500)
    async with home.node("a") as desk:
        await until(lambda: bool(the_folder(desk).mailroom.mailboxes))
        assert (await desk.folder_mailbox(LABEL, "never")).relay == ""
        await until(lambda: not the_folder(desk).mailroom.mailboxes)
        await desk.account_log_out()
        with pytest.raises(StateError, match="logged out"):
            await desk.folder_mailbox(LABEL, "always")
