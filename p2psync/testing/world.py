"""The whole world of a run from one integer: devices with disk, database, clock and host, and what a crash leaves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import trio

from p2psync.model.manifest import MAX_CHUNK
from p2psync.ports import Hint, World
from p2psync.testing.determinism import Trace
from p2psync.testing.discovery import DiscoveryHub
from p2psync.testing.disk import DiskProfile, SimDisk
from p2psync.testing.faults import FaultPlan
from p2psync.testing.inodes import Directory
from p2psync.testing.kv import MemoryDatabase
from p2psync.testing.network import SimNetwork
from p2psync.testing.oracle import Oracle
from p2psync.testing.user import User

T = TypeVar("T")

EPOCH_NS = 1_767_225_600 * 1_000_000_000
"""Wall time when a run starts: 2026-01-01 00:00 UTC."""


class SimClock:
    """A device's clock: virtual time plus what this device believes wrongly."""

    def __init__(self, skew_s: float = 0.0, now: Callable[[], float] = trio.current_time) -> None:
        """`skew_s`: how far the wall clock is ahead of the true one."""
        self._now = now
        self._skew_ns = int(skew_s * 1e9)

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch as this device believes."""
        return EPOCH_NS + self._skew_ns + int(self._now() * 1e9)

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self._now()

    def pause(self, seconds: float) -> None:
        """Does nothing: virtual time stands still while work runs inline."""

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self._skew_ns += int(seconds * 1e9)


class SimRng:
    """Seeded randomness, as `ports.Rng`."""

    def __init__(self, seed: str) -> None:
        """The same seed gives the same sequence in every process."""
        self._random = random.Random(seed)  # noqa: S311

    def token(self, size: int) -> bytes:
        """`size` bytes that only look unpredictable."""
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]."""
        return self._random.uniform(low, high)


class InlineOffload:
    """Runs blocking work on the loop, as `ports.Offload`, after a checkpoint in which others may act.

    A share of the calls waits for some virtual time first, as on a busy machine: a wait costs ten times a checkpoint.
    """

    def __init__(self, rng: random.Random, slow_share: float, longest_s: float) -> None:
        """`slow_share`: how many calls wait, 0 to 1. `longest_s`: bound of the wait, drawn anew for each."""
        self._random = rng.random
        self._slow_share = slow_share
        self._longest_s = longest_s

    async def run(self, work: Callable[[], T], /) -> T:
        """As `ports.Offload.run`: cancelled only before the work began."""
        if self._random() < self._slow_share:
            await trio.sleep(self._random() * self._longest_s)
        else:
            await trio.lowlevel.checkpoint()
        return work()


class SimWatch:
    """A running watch, as `ports.Watch`."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.live = True
        """Set to False to say that the watch has failed."""

    def close(self) -> None:
        """As `ports.Watch.close`."""
        self._stop()


class SimWatcher:
    """Hints of one disk, as `ports.Watcher`; a share of them may be lost, with or without notice."""

    def __init__(self, disk: SimDisk, rng: random.Random) -> None:
        """`rng` decides which hints are lost."""
        self._disk = disk
        self._rng = rng
        self.loss = 0.0
        """Share of hints lost without notice, 0 to 1."""
        self.overflow = 0.0
        """Share of hints replaced by the notice that events were lost."""

    def watch(self, path: bytes, hint: Callable[[Hint], None]) -> SimWatch:
        """As `ports.Watcher.watch`."""
        root = self._disk.user_root(path)
        prefix = path.rstrip(b"/") + b"/"

        def heard(directory: Directory, name: bytes, settled: bool) -> None:
            if not root.above(directory):
                return
            draw = self._rng.random()
            if draw < self.loss:
                return
            if draw < self.loss + self.overflow:
                hint(Hint(None))
                return
            changed = self._disk.path_of(directory).rstrip(b"/") + b"/" + name
            if changed.startswith(prefix):
                hint(Hint(changed[len(prefix) :], settled))

        return SimWatch(self._disk.listen(heard))


class SimDevice:
    """One device: what it is made of, and what of it survives a crash. `disk.faults` plans its failures."""

    def __init__(self, sim: SimWorld, name: str, profile: DiskProfile | None) -> None:
        self._sim = sim
        self.name = name
        self.boots = 0
        self.rng = sim.rng(f"device {name}")
        self.clock = SimClock()
        self.disk = SimDisk(profile, wall_ns=self.clock.wall_ns, faults=FaultPlan())
        self.database = MemoryDatabase(self.disk.faults)
        self.network = sim.network.host(name)
        self.watcher = SimWatcher(self.disk, sim.rng(f"watcher {name}"))
        self.slow_share = 0.01
        """How many of a node's blocking calls take time, 0 to 1; from its next start on."""
        self.slow_s = 0.02
        """How long those take at most."""
        self.longest_chunk = MAX_CHUNK
        """Where files are cut; from the node's next start on."""

    def world(self) -> World:
        """The ports of a node that starts now; randomness goes on differently after every start."""
        self.boots += 1
        return World(
            clock=self.clock,
            rng=SimRng(f"{self._sim.seed} node {self.name} {self.boots}"),
            offload=InlineOffload(self._sim.rng(f"offload {self.name} {self.boots}"), self.slow_share, self.slow_s),
            storage=self.disk,
            watcher=self.watcher,
            database=self.database,
            network=self.network,
            discovery=self._sim.discovery.host(self.name),
            longest_chunk=self.longest_chunk,
        )

    def user(self, folder: bytes, oracle: Oracle | None = None) -> User:
        """A person who works in `folder` on this device."""
        return User(self.disk, folder, name=self.name, oracle=oracle)

    def halt(self) -> None:
        """Stop the node at once, as kill -9 or a power cut do: whatever it still tries ends in `SimulatedCrash`.

        Its connections break. Its tasks are the caller's to end, before `restart`.
        """
        self.disk.faults.dead = True
        self.database.crash()
        self._sim.network.kill(self.name)
        self._sim.discovery.withdraw(self.name)

    def restart(self, *, power_cut: bool) -> None:
        """Make the device ready for a new node; after a power cut some of what was not durable is lost."""
        self.halt()
        if power_cut:
            self.disk.crash(self.rng)
        else:
            self.disk.restart()


class SimWorld:
    """Everything around the nodes of one run. Must be used inside the run, as its clock is trio's."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        """`keep_trace`: hold the trace's lines for printing."""
        self.seed = seed
        self.trace = Trace(keep=keep_trace)
        self.network = SimNetwork(self.rng("network"))
        self.discovery = DiscoveryHub(self.network)
        self.devices: dict[str, SimDevice] = {}

    def rng(self, purpose: str) -> random.Random:
        """An independent random source for one purpose: drawing more from one never shifts another."""
        return random.Random(f"{self.seed} {purpose}")  # noqa: S311

    def device(self, name: str, profile: DiskProfile | None = None) -> SimDevice:
        """The device `name`, made on first use."""
        if name not in self.devices:
            self.devices[name] = SimDevice(self, name, profile)
        return self.devices[name]
