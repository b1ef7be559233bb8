"""One seed, one story: devices, users, weather and faults; then quiet, and the oracle's verdict.

Safety is judged always, convergence only in the second phase, after every fault has ended.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import trio

from p2psync.ports import World
from p2psync.testing import Oracle, SimDevice, SimulatedCrash, SimWorld, Violation, run_deterministic
from p2psync.testing.inodes import Directory
from p2psync.testing.kv import Snapshot
from p2psync.testing.oracle import Allowance
from p2psync.testing.root import SimRoot
from p2psync.testing.snapshot import Shown, kept, temporaries, tree
from tests.simulation.logs import LogBook, captured
from tests.simulation.mishaps import relent, unfold
from tests.simulation.people import ALL_ACTIONS, Person
from tests.simulation.plan import Plan
from tests.simulation.relay import MOST_ACTIONS, Station
from tests.simulation.weather import disturb

HOME = b"/home/node"
FOLDER = b"/sync/folder"
POLL_S = 5.0

MakeNode = Callable[[World, bytes, str], AbstractAsyncContextManager[Any]]
"""Starts the node of device `name` with its home at a path of its disk; the node runs inside the context."""


class Keeper(Protocol):
    """Looks after nodes as their owners do; see `keeper`."""

    async def introduce(self, story: "Story", /) -> None:
        """Make those who are there from the start share the folder."""

    async def keep(self, host: "Host", /) -> None:
        """Look after one device for as long as its node lives."""

    async def unrest(self, story: "Story", /) -> list[str]:
        """Why the story cannot be at its end; empty when all is at rest."""
        ...


@dataclass(frozen=True)
class Scenario:
    """How nodes come into a story, and what may happen in it."""

    make_node: MakeNode
    introduce: Callable[[Mapping[str, Any], bytes], Awaitable[None]]
    """Called once with all first nodes by device name: lets them know each other and share the directory at a path."""
    actions: tuple[str, ...] = ALL_ACTIONS
    """What users do; see `people`."""
    faults: frozenset[str] = frozenset({"crash", "kill", "cut", "reset", "error", "intrusion", "clock", "hints"})
    """What goes wrong; see `weather`, `mishaps` and `cast`."""
    keeper: Keeper | None = None
    """Does more than `introduce`, when there is one."""
    branches: frozenset[str] = frozenset()
    """Counters of what nodes rarely do; a campaign in which one stays at zero has not tested it."""
    settle_s: float = 3600.0
    """Virtual seconds within which everything must be equal once the faults have ended."""
    quiet_s: float = 60.0
    """How long nothing may change before it counts as quiet."""


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
        self.place = FOLDER
        """Where the folder's tree is now."""
        self.unplugged = False
        """Whether the folder's disk is not to be had, so that nobody works on it."""
        self.plug: Callable[[], None] = lambda: None
        """Puts it back."""
        self.meanwhile: list[Callable[[], None]] = []
        """What happens to the device before its node starts again."""
        self.copies: dict[bytes, Snapshot] = {}
        """Backups of its databases."""
        self.orphaned = device.name != story.cast.devices[0]
        """Whether it lacks what it needs to take part: it has not joined yet, or must do so again after a mishap."""
        self.touched: set[bytes] = set()
        """Paths that its user has acted on, or may have for all that the node can tell."""
        self.orders: list[str] = []
        self.called = trio.Event()
        self._scope = trio.CancelScope()
        device.disk.make_directories(HOME)
        device.disk.make_directories(FOLDER)
        if "mount" in story.scenario.faults:
            device.disk.make_mount(FOLDER)
        device.disk.faults.observe = self._observe

    def _observe(self, kind: str, path: bytes) -> None:
        self.story.sim.trace.add(self.device.name, kind, path=path)

    @property
    def top(self) -> Directory:
        """The folder's directory."""
        node = self.device.disk.find(self.place)
        assert isinstance(node, Directory)
        return node

    @property
    def dead(self) -> bool:
        return self.device.disk.faults.dead

    @property
    def idle(self) -> bool:
        """Whether nobody can work at this device now."""
        return self.dead or self.unplugged

    def user_root(self) -> SimRoot:
        """The folder as a person reaches it."""
        return self.device.disk.user_root(FOLDER)

    def lose_track(self) -> None:
        """Without its index, or with an old one, a node cannot tell what somebody changed from older versions."""
        shown = tree(self.top)
        self.touched.update(shown)
        self.story.oracle.lost_track(self.device.name, (entry.content for entry in shown.values()))
        if self.story.station is not None:
            self.story.station.excuse(self.device.name)

    def order(self, what: str) -> None:
        """Have the keeper do something soon."""
        self.orders.append(what)
        self.called.set()

    async def run(self) -> None:
        """Start the node again whenever it has died."""
        while True:
            self.power_cut = True
            await self._live()
            self.story.note(self.device.name, "power cut" if self.power_cut else "killed")
            before = tree(self.top)
            self.device.restart(power_cut=self.power_cut)
            self.story.oracle.crashed(self.device.name, before, tree(self.top))
            events, self.meanwhile = self.meanwhile, []
            for event in events:
                event()
            await trio.sleep(self.resting_s)

    async def _live(self) -> None:
        self._scope = trio.CancelScope()
        try:
            with self._scope:
                world = self.device.world()
                if self.story.station is not None:
                    world = self.story.station.world(self, world)
                async with self.story.scenario.make_node(world, HOME, self.device.name) as node:
                    self.node = node
                    self.up.set()
                    await self.story.introduced.wait()
                    if self.story.scenario.keeper is not None:
                        await self.story.scenario.keeper.keep(self)
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
        self.calm = False
        self.introduced = trio.Event()
        self.cast = plan.cast.within(scenario.faults)
        relay = plan.relay if "relay" in scenario.faults else None
        if relay is not None:
            self.cast = relay.recast(self.cast)
            self.plan = replace(plan, pause_s=max(plan.pause_s, plan.duration_s * len(plan.devices) / MOST_ACTIONS))
        self.station = None if relay is None else Station(self, relay)
        self.members = {name: "editor" for name in self.cast.devices if name not in self.cast.late}
        """Who is to take part now, and in which role."""
        self.members |= {name: "viewer" for name in self.cast.viewers if name in self.members}
        self.members[self.cast.devices[0]] = "owner"
        self.expelled: set[str] = set()
        self.troubles: trio.Nursery | None = None
        self.hosts: dict[str, Host] = {}
        for name, skew_s in zip(plan.devices, plan.skews_s, strict=True):
            device = self.sim.device(name, self.cast.profile(name))
            device.clock.jump(skew_s)
            device.slow_share, device.slow_s = plan.slow_share, plan.slow_s
            device.longest_chunk = plan.longest_chunk
            device.watcher.loss, device.watcher.overflow = plan.hint_loss, plan.overflow
            self.hosts[name] = Host(self, device)

    def note(self, source: str, event: str, **fields: object) -> None:
        """Count and trace something that happened."""
        self.counters[event] += 1
        self.sim.trace.add(source, event, **fields)

    async def tell(self) -> Outcome:
        """The whole story, to the verdict."""
        async with trio.open_nursery() as nursery:
            if self.station is not None:
                nursery.start_soon(self.station.run)
            for host in self.hosts.values():
                nursery.start_soon(host.run)
            for host in self.hosts.values():
                await host.up.wait()
            if self.scenario.keeper is not None:
                await self.scenario.keeper.introduce(self)
            else:
                await self.scenario.introduce({name: host.node for name, host in self.hosts.items()}, FOLDER)
            self.introduced.set()
            with trio.move_on_after(self.plan.duration_s):
                async with trio.open_nursery() as troubles:
                    self.troubles = troubles
                    troubles.start_soon(unfold, self)
                    for host in self.hosts.values():
                        troubles.start_soon(self.person(host).live, host, self.note)
                    if self.plan.trouble_s != float("inf"):
                        troubles.start_soon(disturb, self)
                    if self.station is not None:
                        troubles.start_soon(self.station.disturb)
                        troubles.start_soon(self.station.take_turns)
            self._calm()
            violations = await self._settle()
            if self.station is not None:
                self.station.count_epochs()
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

    @property
    def relay_alone(self) -> bool:
        """Whether devices that do not meet each other must come to an end through the relay."""
        return self.station is not None and self.station.plan.ending == "relay"

    def apart(self) -> list[tuple[str, str]]:
        """Pairs of devices that do not meet now, whatever else cuts links."""
        return [*self.cast.apart(), *(self.station.apart() if self.station is not None else ())]

    def may_orphan(self, host: Host) -> bool:
        """Whether somebody is left who can offer the folder if this device must join again."""
        if self.relay_alone:
            return False
        return any(not self.hosts[name].orphaned for name in self.members if name != host.device.name)

    def elsewhere(self, name: str) -> set[bytes]:
        """The contents that other devices show or keep."""
        tops = [host.top for other, host in self.hosts.items() if other != name]
        return {shown.content for top in tops for shown in tree(top).values()}.union(*map(kept, tops))

    def person(self, host: Host) -> Person:
        """Somebody who works at a device."""
        return Person(host.device, FOLDER, self.oracle, self.scenario.actions, self.plan, host.touched)

    def _calm(self) -> None:
        self.sim.trace.add("world", "calm")
        self.calm = True
        self.sim.network.heal_all()
        for host in self.hosts.values():
            host.device.disk.faults.clear()
            host.device.watcher.loss = host.device.watcher.overflow = 0.0
            host.resting_s = min(host.resting_s, 1.0)
            host.called.set()
        if self.station is not None:
            self.station.calm()
        relent(self)

    async def _settle(self) -> list[Violation]:
        """Wait for equal trees that stay equal; then, or when time is up, judge."""
        deadline = trio.current_time() + self.scenario.settle_s
        last: Mapping[str, Mapping[bytes, Shown]] = {}
        since = trio.current_time()
        equal = False
        while trio.current_time() < deadline:
            await trio.sleep(POLL_S)
            trees = self._trees()
            if trees != last or not equal:
                equal = not self._differences(trees)
                last, since = trees, trio.current_time()
            elif trio.current_time() - since >= self.scenario.quiet_s and not await self._unrest():
                break
        trees = self._trees()
        history = {name: kept(host.top) for name, host in self.hosts.items()}
        left = {name: temporaries(self.hosts[name].top) for name in self.members}
        oracle = self.oracle
        calm = self.plan.trouble_s == float("inf") or not self.scenario.faults
        return [
            *self._differences(trees),
            *(Violation("I1", text) for text in await self._unrest()),
            *oracle.losses(trees, history, calm=calm),
            *oracle.strangers(trees),
            *oracle.spread(trees, removed=[name for name in trees if name not in self.members]),
            *oracle.leftovers(left),
            *self.log.violations,
        ]

    async def _unrest(self) -> list[str]:
        return [] if self.scenario.keeper is None else await self.scenario.keeper.unrest(self)

    def _differences(self, trees: Mapping[str, Mapping[bytes, Shown]]) -> list[Violation]:
        """In what those who take part differ though nothing excuses it."""
        return self.oracle.convergence({name: trees[name] for name in self.members}, self._allowances())

    def silence(self, listed: Mapping[str, Collection[str]]) -> list[Violation]:
        """What devices cannot show and do not list; see `Oracle.silence`."""
        trees = self._trees()
        return self.oracle.silence({name: trees[name] for name in listed}, self._allowances(), listed)

    def _allowances(self) -> dict[str, Allowance]:
        return {
            name: Allowance(
                self.cast.profile(name).capabilities,
                frozenset(self.hosts[name].touched if role == "viewer" else ()),
            )
            for name, role in self.members.items()
        }

    def _trees(self) -> dict[str, dict[bytes, Shown]]:
        return {name: tree(host.top) for name, host in self.hosts.items()}


def run_seed(scenario: Scenario, seed: int, *, keep_trace: bool = False) -> Outcome:
    """Run one seed to its verdict; the same seed gives the same `digest` in every process."""

    async def main() -> Outcome:
        story = Story(scenario, Plan.draw(seed), keep_trace=keep_trace)
        with captured(story.log):
            return await story.tell()

    return run_deterministic(seed, main)
