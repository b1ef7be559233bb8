"""One seed, one story: devices, users, weather and faults; then quiet, and the oracle's verdict.

Safety is judged always, convergence only in the second phase, after every fault has ended. `Plan.draw` turns the seed
into every option of the run, so that the report of a failure says what it was about.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import trio

from p2psync.ports import World
from p2psync.testing import Oracle, SimDevice, SimulatedCrash, SimWorld, Violation, run_deterministic
from p2psync.testing.disk import DiskProfile
from p2psync.testing.inodes import Directory
from p2psync.testing.snapshot import Shown, kept, temporaries, tree
from tests.simulation.logs import LogBook, captured
from tests.simulation.people import ALL_ACTIONS, Person
from tests.simulation.weather import disturb

HOME = b"/home/node"
FOLDER = b"/sync/folder"
YEARS_S = 10 * 365 * 86_400.0
POLL_S = 5.0

MakeNode = Callable[[World, bytes, str], AbstractAsyncContextManager[Any]]
"""Starts the node of device `name` with its home at a path of its disk; the node runs inside the context."""


@dataclass(frozen=True)
class Scenario:
    """How nodes come into a story, and what may happen in it."""

    make_node: MakeNode
    introduce: Callable[[Mapping[str, Any], bytes], Awaitable[None]]
    """Called once with all first nodes by device name: lets them know each other and share the directory at a path."""
    actions: tuple[str, ...] = ALL_ACTIONS
    """What users do; see `people`."""
    faults: frozenset[str] = frozenset({"crash", "kill", "cut", "reset", "error", "intrusion", "clock", "hints"})
    """What goes wrong; see `weather`."""
    settle_s: float = 3600.0
    """Virtual seconds within which everything must be equal once the faults have ended."""
    quiet_s: float = 60.0
    """How long nothing may change before it counts as quiet."""


@dataclass(frozen=True)
class Plan:
    """Everything a seed decides before the story starts."""

    seed: int
    devices: tuple[str, ...]
    duration_s: float
    pause_s: float
    """Mean time between two actions of one user."""
    trouble_s: float
    """Mean time between two faults; infinite in a quiet run."""
    sync_share: float
    """How often users fsync what they write."""
    hint_loss: float
    overflow: float
    skews_s: tuple[float, ...]

    @staticmethod
    def draw(seed: int) -> "Plan":
        """The plan of a seed."""
        rng = random.Random(f"{seed} plan")
        devices = tuple("abcdef"[: rng.choice((2, 2, 3, 3, 3, 4))])
        return Plan(
            seed=seed,
            devices=devices,
            duration_s=rng.uniform(20, 240),
            pause_s=rng.choice((0.3, 1.0, 5.0, 20.0)),
            trouble_s=rng.choice((2.0, 10.0, 30.0, float("inf"))),
            sync_share=rng.choice((0.0, 0.5, 1.0, 1.0)),
            hint_loss=rng.choice((0.0, 0.0, 0.3, 1.0)),
            overflow=rng.choice((0.0, 0.0, 0.05)),
            skews_s=tuple(rng.choice((0.0, 1.0, -3600.0, YEARS_S, -YEARS_S)) for _ in devices),
        )


@dataclass
class Outcome:
    """What came of a seed."""

    plan: Plan
    digest: str
    violations: list[Violation]
    counters: Counter[str]
    events: int
    virtual_s: float
    trace: list[str] = field(default_factory=list)


class Host:
    """A device whose node is started, crashed and started again."""

    def __init__(self, story: "Story", device: SimDevice) -> None:
        self.story = story
        self.device = device
        self.node: Any = None
        self.up = trio.Event()
        self.resting_s = 0.0
        self.power_cut = True
        self._scope = trio.CancelScope()
        device.disk.make_directories(HOME)
        device.disk.make_directories(FOLDER)
        device.disk.faults.observe = self._observe

    def _observe(self, kind: str, path: bytes) -> None:
        self.story.sim.trace.add(self.device.name, kind, path=path)

    @property
    def top(self) -> Directory:
        """The folder's directory."""
        node = self.device.disk.find(FOLDER)
        assert isinstance(node, Directory)
        return node

    @property
    def dead(self) -> bool:
        return self.device.disk.faults.dead

    async def run(self) -> None:
        """Start the node again whenever it has died."""
        while True:
            self.power_cut = True
            await self._live()
            self.story.note(self.device.name, "power cut" if self.power_cut else "killed")
            before = tree(self.top)
            self.device.restart(power_cut=self.power_cut)
            self.story.oracle.crashed(self.device.name, before, tree(self.top))
            await trio.sleep(self.resting_s)

    async def _live(self) -> None:
        self._scope = trio.CancelScope()
        try:
            with self._scope:
                async with self.story.scenario.make_node(self.device.world(), HOME, self.device.name) as node:
                    self.node = node
                    self.up.set()
                    await trio.sleep_forever()
        except (SimulatedCrash, Exception, BaseExceptionGroup):
            if not self.dead:
                raise
        finally:
            self.up = trio.Event()

    def die(self, *, power: bool, resting_s: float) -> None:
        """Kill the process, or cut the power under it; it comes back after `resting_s`."""
        self.resting_s = resting_s
        self.power_cut = power
        self.device.halt()
        self._scope.cancel()


class Story:
    """One run in progress."""

    def __init__(self, scenario: Scenario, plan: Plan, *, keep_trace: bool) -> None:
        self.scenario = scenario
        self.plan = plan
        self.sim = SimWorld(plan.seed, keep_trace=keep_trace)
        self.oracle = Oracle()
        self.counters: Counter[str] = Counter()
        self.log = LogBook(self.note)
        self.hosts: dict[str, Host] = {}
        for name, skew_s in zip(plan.devices, plan.skews_s, strict=True):
            device = self.sim.device(name, DiskProfile())
            device.clock.jump(skew_s)
            device.watcher.loss, device.watcher.overflow = plan.hint_loss, plan.overflow
            self.hosts[name] = Host(self, device)

    def note(self, source: str, event: str, **fields: object) -> None:
        """Count and trace something that happened."""
        self.counters[event] += 1
        self.sim.trace.add(source, event, **fields)

    async def tell(self) -> Outcome:
        """The whole story, to the verdict."""
        async with trio.open_nursery() as nursery:
            for host in self.hosts.values():
                nursery.start_soon(host.run)
            for host in self.hosts.values():
                await host.up.wait()
            await self.scenario.introduce({name: host.node for name, host in self.hosts.items()}, FOLDER)
            with trio.move_on_after(self.plan.duration_s):
                async with trio.open_nursery() as troubles:
                    for host in self.hosts.values():
                        person = Person(host.device, FOLDER, self.oracle, self.scenario.actions, self.plan)
                        troubles.start_soon(person.live, host, self.note)
                    if self.plan.trouble_s != float("inf"):
                        troubles.start_soon(disturb, self)
            self._calm()
            violations = await self._settle()
            nursery.cancel_scope.cancel()
        for name, host in self.hosts.items():
            self.counters.update({f"fault: {kind}": n for kind, n in host.device.disk.faults.happened.items()})
            self.sim.trace.add(
                name, "end", tree=" ".join(f"{path!r}={shown}" for path, shown in tree(host.top).items())
            )
        trace = self.sim.trace
        return Outcome(
            self.plan, trace.digest(), violations, self.counters, trace.count, trio.current_time(), trace.lines
        )

    def _calm(self) -> None:
        self.sim.trace.add("world", "calm")
        self.sim.network.heal_all()
        for host in self.hosts.values():
            host.device.disk.faults.clear()
            host.device.watcher.loss = host.device.watcher.overflow = 0.0
            host.resting_s = min(host.resting_s, 1.0)

    async def _settle(self) -> list[Violation]:
        """Wait for equal trees that stay equal; then, or when time is up, judge."""
        deadline = trio.current_time() + self.scenario.settle_s
        last: Mapping[str, Mapping[bytes, Shown]] = {}
        since = trio.current_time()
        while trio.current_time() < deadline:
            await trio.sleep(POLL_S)
            trees = self._trees()
            if trees != last or any(shown != next(iter(trees.values())) for shown in trees.values()):
                last, since = trees, trio.current_time()
            elif trio.current_time() - since >= self.scenario.quiet_s:
                break
        history = {name: kept(host.top) for name, host in self.hosts.items()}
        left = {name: temporaries(host.top) for name, host in self.hosts.items()}
        return [*self.oracle.check(self._trees(), history), *self.oracle.leftovers(left), *self.log.violations]

    def _trees(self) -> dict[str, dict[bytes, Shown]]:
        return {name: tree(host.top) for name, host in self.hosts.items()}


def run_seed(scenario: Scenario, seed: int, *, keep_trace: bool = False) -> Outcome:
    """Run one seed to its verdict; the same seed gives the same `digest` in every process."""

    async def main() -> Outcome:
        story = Story(scenario, Plan.draw(seed), keep_trace=keep_trace)
        with captured(story.log):
            return await story.tell()

    return run_deterministic(seed, main)
