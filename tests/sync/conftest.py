"""Whole nodes on simulated disks and a simulated network, for stories too exact for random simulation."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from p2psync.model.ids import parse_folder_id
from p2psync.node.node import NodeOperations
from p2psync.sync.folder import Folder
from p2psync.testing import SimDevice, SimWorld, User
from p2psync.testing.determinism import run_deterministic
from tests.simulation.nodes import PORT, make_node

FOLDER = b"/data/docs"
LABEL = "docs"


class Story:
    """Devices by name, each with a running node, a user, and the one shared folder."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.sim = SimWorld(1)
        self.nodes: dict[str, NodeOperations] = {}
        self._nursery = nursery
        self._stops: dict[str, tuple[trio.Event, trio.Event]] = {}
        self._letters: dict[str, str] = {}

    def letter(self, name: str) -> str:
        """A device's name in the simulated world: one letter, from which its keys are made."""
        return self._letters.setdefault(name, chr(ord("a") + len(self._letters)))

    def device(self, name: str) -> SimDevice:
        """What a device is made of."""
        return self.sim.device(self.letter(name))

    async def start(self, *names: str) -> None:
        """Start the nodes of these devices."""
        for name in names:
            device = self.device(name)
            device.disk.make_directories(FOLDER if not self.nodes else b"/data")
            await self.again(name)

    async def again(self, name: str) -> None:
        """Start a node, perhaps one that was stopped."""
        self._stops[name] = (trio.Event(), trio.Event())
        await self._nursery.start(self._run, name)

    async def stop(self, name: str) -> None:
        """Stop a node in order; its user may go on."""
        stop, stopped = self._stops.pop(name)
        stop.set()
        await stopped.wait()

    async def _run(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        stop, stopped = self._stops[name]
        async with make_node(self.device(name).world(), b"/home", self.letter(name)) as self.nodes[name]:
            task_status.started()
            await stop.wait()
        stopped.set()

    async def close(self) -> None:
        """Stop everything."""
        for name in list(self._stops):
            await self.stop(name)

    async def share(self, owner: str, **roles: str) -> None:
        """The owner's folder, shared with the others in these roles."""
        ids = {name: (await node.identity()).id for name, node in self.nodes.items()}
        for name, node in self.nodes.items():
            for other, other_id in ids.items():
                if other != name:
                    await node.device_add(other_id, other, [f"{self.letter(other)}:{PORT}"])
        folder = await self.nodes[owner].folder_add(FOLDER, LABEL)
        for name, role in roles.items():
            await self.nodes[owner].folder_share(folder.id, ids[name], role)  # type: ignore[arg-type]
            await self.until(lambda name=name: bool(self.nodes[name].synchronizer.offers))
            await self.nodes[name].folder_accept(folder.id, FOLDER)
        await self.settle(owner)

    def user(self, name: str) -> User:
        """The person at a device."""
        return self.device(name).user(FOLDER)

    def folder(self, name: str) -> Folder:
        """The folder as the node has it."""
        (entry,) = self.nodes[name].state.folders
        return self.nodes[name].synchronizer.folders[parse_folder_id(entry.id)]

    async def settle(self, name: str, timeout: float = 120) -> None:
        """Wait until everything is identical, as `p2psync wait` does."""
        result = await self.nodes[name].wait(timeout)
        assert result.identical, result.missing

    @staticmethod
    async def until(condition: Callable[[], bool], timeout: float = 60) -> None:
        """Wait, in virtual time, until something holds."""
        with trio.fail_after(timeout):
            while not condition():
                await trio.sleep(0.05)


def contents(story: Story, name: str) -> dict[bytes, bytes]:
    """The files at the top of a device's folder."""
    user = story.user(name)
    return {n: user.read(n) for n in user.names() if n != b".p2psync"}


@asynccontextmanager
async def told() -> AsyncIterator[Story]:
    """A story that is over whatever happens."""
    async with trio.open_nursery() as nursery:
        story = Story(nursery)
        yield story
        await story.close()


def simulated(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test with a seeded scheduler, in virtual time that jumps whenever all tasks wait."""

    @functools.wraps(test)
    def run(*arguments: object, **fixtures: object) -> None:
        run_deterministic(1, functools.partial(test, *arguments, **fixtures))

    return run
