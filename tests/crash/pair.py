"""Two whole nodes that share a folder, one of which will be struck: start, strike, restart, settle."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, Literal

import trio

from p2psync.errors import P2PSyncError
from p2psync.node.node import NodeOperations
from p2psync.sync.folder import Folder
from p2psync.testing import Oracle, SimDevice, SimulatedCrash, SimWorld
from p2psync.testing.inodes import Directory, Loss
from p2psync.testing.oracle import SCRATCH
from p2psync.testing.snapshot import Shown, tree
from tests.crash.ledger import Ledger
from tests.crash.workloads import CHUNK, IGNORED, LazyUser, base
from tests.simulation.logs import LogBook
from tests.simulation.nodes import introduce, make_node

HOME: Final = b"/home/node"
FOLDER: Final = b"/sync/folder"
STRUCK, OTHER = "a", "b"
"""Names of the device that will be struck and of the other."""
SETTLE_S = 1800.0
"""Virtual seconds within which both must agree, after whatever happened."""
QUIET_S = 65.0
"""Virtual seconds in which nothing may happen any more: past a full scan and the second look at displaced files."""
WAIT_S = 60.0

Mode = Literal["all", "none", "some", "again", "kill", "EIO", "ENOSPC"]
"""What strikes: a power cut that loses all, none or some of the unsynced writes; `again`: some, and a second cut soon
after the restart; the end of the process; an operation that fails."""


class Host:
    """A device and its node, which is started again whenever it has died."""

    def __init__(self, device: SimDevice, oracle: Oracle) -> None:
        self.device = device
        self.user = device.user(FOLDER, oracle)
        self.lazy_user = LazyUser(device.disk, FOLDER, name=device.name, oracle=oracle)
        self.node: NodeOperations | None = None
        self.up = False
        """Whether a node runs."""
        self.resting_s = 0.0
        self._scope = trio.CancelScope()
        self.died: Callable[[], None] = lambda: None
        """Called between death and restart: decides what the disk keeps."""
        device.longest_chunk = CHUNK
        device.disk.make_directories(HOME)
        device.disk.make_directories(FOLDER)

    @property
    def top(self) -> Directory:
        """The folder's directory."""
        node = self.device.disk.find(FOLDER)
        assert isinstance(node, Directory)
        return node

    @property
    def folder(self) -> Folder:
        """The folder as the running node has it."""
        assert self.node is not None
        (folder,) = self.node.synchronizer.folders.values()
        return folder

    def tree(self) -> dict[bytes, Shown]:
        """What a person sees, but for the files that the two devices do not share."""
        return {path: shown for path, shown in tree(self.top).items() if path not in (IGNORED, SCRATCH)}

    @property
    def dead(self) -> bool:
        """Whether the machine or the process is down and not yet up again."""
        return self.device.disk.faults.dead

    async def run(self) -> None:
        """Keep a node running until cancelled."""
        while True:
            self._scope = trio.CancelScope()
            try:
                with self._scope:
                    async with make_node(self.device.world(), HOME, self.device.name) as self.node:
                        self.up = True
                        await trio.sleep_forever()
            except (SimulatedCrash, Exception, BaseExceptionGroup):
                if not self.dead:
                    raise
            finally:
                self.up = False
            self.died()
            await trio.sleep(self.resting_s)

    def die(self) -> None:
        """Everything of the node ends here: call it from within one of its operations, then raise `SimulatedCrash`."""
        self.device.halt()
        self._scope.cancel()


class Pair:
    """Both devices, what their users did, and what one heard from the other."""

    def __init__(self, seed: int, *, keep_trace: bool) -> None:
        self.sim = SimWorld(seed, keep_trace=keep_trace)
        self.oracle = Oracle()
        self.ledger = Ledger()
        self.log = LogBook(self.note)
        self.hosts = {name: Host(self.sim.device(name), self.oracle) for name in (STRUCK, OTHER)}

    @property
    def struck(self) -> Host:
        """The device under test."""
        return self.hosts[STRUCK]

    @property
    def other(self) -> Host:
        """Its peer, whom nothing happens to."""
        return self.hosts[OTHER]

    def note(self, source: str, event: str, **fields: Any) -> None:
        """Trace something that happened."""
        self.sim.trace.add(source, event, **fields)

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start both nodes, share the folder, and let them agree on the base tree."""
        base(self.other.user)
        for host in self.hosts.values():
            nursery.start_soon(host.run)
        while not all(host.up for host in self.hosts.values()):
            await trio.sleep(0.01)
        nodes = {name: host.node for name, host in reversed(self.hosts.items()) if host.node is not None}
        await introduce(nodes, FOLDER)
        if not await self.settle():
            raise RuntimeError("the two devices do not even agree on the tree they start from")
        await trio.sleep(QUIET_S)
        for host in self.hosts.values():
            host.device.disk.sync_all()

    async def settle(self) -> bool:
        """Wait until `p2psync wait` is content and both trees are equal; False when that takes too long."""
        with trio.move_on_after(SETTLE_S):
            while True:
                await trio.sleep(0.5)
                if await self._agreed():
                    return True
        return False

    async def _agreed(self) -> bool:
        if not all(host.up for host in self.hosts.values()):
            return False
        node = self.struck.node
        assert node is not None
        together = False
        try:
            result = await node.wait(WAIT_S)
            # It speaks of connected devices: when there is none, everything is identical.
            together = result.identical and all(folder.equal_with for folder in result.folders)
        except* (SimulatedCrash, P2PSyncError):
            await trio.lowlevel.checkpoint()
        if not together or self.struck.dead or self.struck.tree() != self.other.tree():
            return False
        # An index that failed in this very moment is opened again a little later.
        return "index" not in self.struck.folder.context.problems

    def lose_power(self, rng: random.Random, mode: Mode) -> None:
        """What a power cut or the end of the process leaves of the struck device's disk; ready for a new node."""
        device = self.struck.device
        if mode == "kill":
            device.disk.restart()
        else:
            loss: Loss = "all" if mode == "all" else "none" if mode == "none" else "some"
            device.disk.crash(rng, loss)
