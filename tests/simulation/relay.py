"""The relay of a story: whom it serves, what befalls it, and what the devices must have noticed of that."""

import dataclasses
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import msgspec
import trio

import p2psync.sync.mailbox.snapshots
import p2psync.sync.mailbox.writer
import relay.mailbox.service
import relay.mailbox.snapshots
from p2psync.node.node import NodeOperations
from p2psync.node.views import MailboxPolicy
from p2psync.ports import HttpClient, HttpResponse, HttpStream, World
from p2psync.testing import SimulatedCrash
from p2psync.testing.faults import FaultPlan
from p2psync.testing.relay import LineFaults, Seen
from relay.config import Allowance, Config, Log, Size, Storage
from tests.relay.simulated import ADDRESS, VirtualRelay
from tests.simulation.cast import Cast

if TYPE_CHECKING:
    from tests.simulation.harness import Host, Story

EMAIL, KEY = "ann@example.org", b"k" * 32
SHARE = 0.2
"""Of stories with a relay."""
MOST_ACTIONS = 50
"""Of all people in such a story: what goes through a relay costs several times as much."""
ENOUGH = 10**9
EMPTY_PAGE = 128
"""Bytes of an answer that brings no entries, at the most."""
LOGIN = "p2psync account login"
ROLLBACK = "relay-rollback"
CHUNKS_WITHIN_S = 60.0
"""How long a relay that is to lose chunks waits for some, in virtual time."""

FAULTS = ("relay-line", "relay-down", "relay-restart", "relay-cut", "relay-logout", "relay-chunks", ROLLBACK)
ASPECTS = frozenset({"relay", "relay-quota", *FAULTS})
BRANCHES = frozenset(
    {
        "relay took entries",
        "relay gave entries",
        "relay took a chunk",
        "relay gave a chunk",
        "relay took a snapshot",
        "relay gave a snapshot",
        "relay refused for want of room",
        "relay put back",
        "relay lost chunks",
        "keeper logs in",
        "epoch turned",
        "problem relay-rollback",
        "problem relay-quota",
        "ends by the relay alone",
    }
)
"""What some story must have met; see `Scenario.branches`."""


@dataclasses.dataclass(frozen=True)
class RelayPlan:
    """Every option of a story's relay."""

    policy: MailboxPolicy
    meeting: Literal["free", "one", "none", "turns"]
    """Whether devices meet each other too; or one never does, or none; or they reach even the relay by turns."""
    ending: Literal["together", "relay"]
    """Whether all meet in the end, or what they have in common goes through the relay for ever."""
    lonely: str
    """Who meets nobody, where that is one."""
    troubles: float
    """How many faults strike it."""
    quota: int
    """Bytes that the account may store, 0 for enough. More in the end, where all depends on it."""
    snapshot_after: int
    forgetful: bool
    """Whether it soon forgets what a snapshot covers."""

    @staticmethod
    def draw(seed: int, devices: tuple[str, ...]) -> "RelayPlan | None":
        """What a seed decides; None for a story without a relay."""
        rng = random.Random(f"{seed} relay")
        if rng.random() >= SHARE:
            return None
        return RelayPlan(
            policy=rng.choice(("always", "offline")),
            meeting=rng.choice(("free", "one", "none", "turns")),
            ending=rng.choice(("together", "relay")),
            lonely=rng.choice(devices),
            troubles=0.0 if rng.random() < 0.15 else 2 * 8 ** rng.random(),
            quota=int(20_000 * 10 ** rng.random()) if rng.random() < 0.25 else 0,
            snapshot_after=rng.choice((3, 8, 1000)),
            forgetful=rng.random() < 0.7,
        )

    @property
    def faults(self) -> list[str]:
        """What may befall it. Devices that depend on it must not lose what it has acknowledged."""
        spared = {"relay-chunks", ROLLBACK} if self.ending == "relay" else set()
        if self.meeting == "turns":
            spared.add("relay-cut")
        return [fault for fault in FAULTS if fault not in spared]

    def recast(self, cast: Cast) -> Cast:
        """Who takes part. Through a relay alone, nobody can be given the folder, nor what only a viewer has."""
        if self.ending == "together":
            return cast
        return dataclasses.replace(cast, topology="full", late={}, disks={}, viewers=())


class Station:
    """The relay of one story: its process and what people do there."""

    def __init__(self, story: "Story", plan: RelayPlan) -> None:
        self.plan = plan
        self._story = story
        self._rng = story.sim.rng("relay troubles")
        self.virtual = VirtualRelay(story.plan.seed, _config(plan.quota or ENOUGH))
        self.virtual.line.observe = self._observe
        self._ended = trio.Event()
        self._resting_s = 0.0
        self._wanted = trio.Event()
        self._meanwhile: list[Callable[[], None]] = []
        self._robbed: dict[str, None] = {}
        """Devices whose own acknowledged entries are gone: they must notice."""
        self._told: set[tuple[str, str]] = set()
        self._recovery = ""
        self._copy = self.virtual.backup()

    # ── its process ─────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self) -> None:
        """Be up, but for what befalls it, until cancelled."""
        with ExitStack() as stack:
            stack.callback(self.virtual.close)
            stack.enter_context(_hurried(self.plan))
            while True:
                async with self.virtual.running():
                    await self._ended.wait()
                events, self._meanwhile = self._meanwhile, []
                for event in events:
                    event()
                with trio.move_on_after(self._resting_s):
                    await self._wanted.wait()
                self._ended = trio.Event()
                self._story.note("relay", "started again")

    def _stop(self, resting_s: float) -> None:
        self._resting_s = 0.0 if self._story.calm else resting_s
        self.virtual.line.stop()
        self._ended.set()

    def world(self, host: "Host", world: World) -> World:
        """The ports of a node that can reach it."""
        near = self.virtual.reachable(world, host.device.name).http
        assert near is not None
        return dataclasses.replace(world, http=lambda address: _Mortal(near(address), host.device.disk.faults))

    # ── what people do ──────────────────────────────────────────────────────────────────────────────────────────────
    async def introduce(self) -> None:
        """The founder signs up; all others come in by the recovery key."""
        founder, *others = (self._story.hosts[name] for name in self._story.cast.devices if name in self._story.members)
        made = await founder.node.account_sign_up([str(ADDRESS)], EMAIL, KEY)
        self._recovery = made.recovery_key
        await founder.node.account_verify(await self.virtual.code(EMAIL))
        for host in others:
            await host.node.account_log_in(EMAIL, KEY, [str(ADDRESS)], self._recovery)
        self._copy = self.virtual.backup()

    async def tend(self, host: "Host") -> None:
        """See to it that a device is in the account, and that its folder uses the mailbox."""
        node: NodeOperations = host.node
        name = host.device.name
        if node.account.stored is None:
            if name not in self._story.members or (self._story.members[name] == "viewer" and not node.state.folders):
                return  # it is to be let in by hand first: by the account it would be as an owner
            self._story.note(name, "keeper logs in")
            await node.account_log_in(EMAIL, KEY, [str(ADDRESS)], self._recovery)
        elif any(LOGIN in problem.text for view in (await node.status()).folders for problem in view.problems):
            # It had logged out, and the answer was lost.
            self._story.note(name, "keeper logs in again")
            await node.account_log_in(EMAIL, KEY, [str(ADDRESS)])
        for entry in node.state.folders:
            if entry.mailbox != self.plan.policy:
                await node.folder_mailbox(entry.id, self.plan.policy)

    def apart(self) -> list[tuple[str, str]]:
        """Pairs of devices that do not meet now."""
        plan, devices = self.plan, self._story.cast.devices
        free = plan.ending == "together" if self._story.calm else plan.meeting == "free"
        pairs = [] if free else combinations(devices, 2)
        return [pair for pair in pairs if plan.meeting != "one" or plan.lonely in pair]

    async def take_turns(self) -> None:
        """Where they reach it by turns, let one after the other."""
        line, devices = self.virtual.line, self._story.cast.devices
        while self.plan.meeting == "turns":
            for present in devices:
                for name in devices:
                    if name != present:
                        line.part(name)
                line.unite(present)
                await trio.sleep(self._rng.uniform(1.0, 30.0))

    def calm(self) -> None:
        """Everybody reaches it from now on, and it has room for what all depends on."""
        line = self.virtual.line
        line.faults = LineFaults()
        for name in self._story.cast.devices:
            line.unite(name)
        self._wanted.set()
        if self.plan.quota and self.plan.ending == "relay":
            self.virtual.config = _config(ENOUGH)
            self._stop(0.0)
        if self.plan.ending == "relay":
            self._story.note("relay", "ends by the relay alone")

    # ── what befalls it ─────────────────────────────────────────────────────────────────────────────────────────────
    async def disturb(self) -> None:
        """Cause one fault after the other, for ever."""
        story, plan = self._story, self.plan
        story.note("world", "fault relay")
        if plan.quota:
            story.note("world", "fault relay-quota")
        while plan.troubles:
            await trio.sleep(self._rng.expovariate(plan.troubles / story.plan.duration_s))
            kind = self._rng.choice(plan.faults)
            story.note("relay", f"fault {kind}")
            match kind:
                case "relay-line":
                    self._spoil_line()
                case "relay-down":
                    self._stop(self._rng.choice((1.0, 10.0, 60.0)))
                case "relay-restart":
                    self._stop(0.0)
                case "relay-cut":
                    name = self._rng.choice(story.cast.devices)
                    self._rng.choice((self.virtual.line.part, self.virtual.line.unite))(name)
                case "relay-logout":
                    story.hosts[self._rng.choice(story.cast.devices)].order("log out")
                case "relay-chunks":
                    await self._lose_chunks()
                case _:
                    self._back_up_or_restore()

    def _spoil_line(self) -> None:
        choice = self._rng.choice
        self.virtual.line.faults = LineFaults(
            latency_s=choice((0.02, 0.5, 3.0)),
            lost_requests=choice((0.0, 0.05, 0.3)),
            lost_answers=choice((0.0, 0.05, 0.3)),
            broken_streams=choice((0.0, 0.2)),
        )

    async def _lose_chunks(self) -> None:
        store, share = self.virtual.store, self._rng.choice((0.1, 0.5, 1.0))
        keys: list[str] = []
        with trio.move_on_after(CHUNKS_WITHIN_S):
            while not (keys := [key for key in sorted(store.objects) if key.startswith("chunks/")]):
                await trio.sleep(1.0)
        lost = [key for key in keys if self._rng.random() < share] or keys[:1]
        store.delete(lost)
        if lost:
            self._story.note("relay", "relay lost chunks", count=len(lost))

    def _back_up_or_restore(self) -> None:
        if self._rng.random() < 0.3:
            self._copy = self.virtual.backup()
            self._story.note("relay", "relay backed up")
            return
        copy, chunks = self._copy, self._rng.random() < 0.5

        def restore() -> None:
            self.virtual.restore(copy, chunks=chunks)
            self._story.note("relay", "relay put back")
            self._see_who_is_robbed()

        self._meanwhile.append(restore)
        self._stop(self._rng.choice((0.0, 5.0)))

    def _see_who_is_robbed(self) -> None:
        left = self.virtual.chains()
        for name, host in self._story.hosts.items():
            if host.dead or not host.up.is_set():
                continue
            for folder in host.node.synchronizer.folders.values():
                for mailbox in folder.mailroom.mailboxes:
                    chains = mailbox.journal.chains
                    tip = chains.tips.get(chains.own)
                    if tip is not None and left.get(chains.own, 0) < tip.seq:
                        self._robbed[name] = None

    def excuse(self, name: str) -> None:
        """The device has forgotten what it left there."""
        self._robbed.pop(name, None)

    # ── what is seen of it ──────────────────────────────────────────────────────────────────────────────────────────
    def unrest(self, told: Mapping[str, Collection[str]]) -> list[str]:
        """Who has lost entries there and does not say so; `told` has the problems that each device shows."""
        for name, codes in told.items():
            for code in codes:
                self.hear(name, code)
        return [
            f"{name} has not noticed that the relay went back"
            for name in self._robbed
            if ROLLBACK not in told.get(name, (ROLLBACK,))
        ]

    def hear(self, name: str, code: str) -> None:
        """Count the kinds of trouble that devices tell of."""
        if code.startswith("relay-") and (name, code) not in self._told:
            self._told.add((name, code))
            self._story.note(name, f"problem {code}")

    def count_epochs(self) -> None:
        """How often keys were changed, because somebody lost the right to read or the key."""
        numbers = [
            folder.context.membership.epoch
            for host in self._story.hosts.values()
            if host.up.is_set()
            for folder in host.node.synchronizer.folders.values()
        ]
        self._story.counters["epoch turned"] += max(max(numbers, default=0) - 1, 0)

    def _observe(self, seen: Seen) -> None:
        path = seen.target.partition("?")[0].removeprefix("/api/v1/")
        self._story.sim.trace.add(seen.device, "asked the relay", what=f"{seen.method} {path}", status=seen.status)
        what = _MET.get((seen.method, path.partition("/")[0], path.rpartition("/")[2] if "/" in path else ""))
        if seen.status == 507:
            self._story.counters["relay refused for want of room"] += 1
        elif path.startswith("chunks/") and seen.status < 300:
            self._story.counters["relay took a chunk" if seen.method == "PUT" else "relay gave a chunk"] += 1
        elif what is not None and seen.status < 300 and (seen.method == "POST" or seen.size > EMPTY_PAGE):
            self._story.counters[what] += 1


_MET = {
    ("POST", "objects", ""): "relay took entries",
    ("GET", "folders", "objects"): "relay gave entries",
    ("POST", "folders", "snapshot"): "relay took a snapshot",
    ("GET", "folders", "snapshot"): "relay gave a snapshot",
}


class _Mortal:
    """A client of a device that may die: what a dead node sends, or is sent, goes nowhere."""

    def __init__(self, client: HttpClient, faults: FaultPlan) -> None:
        self._client = client
        self._faults = faults

    async def request(self, *arguments: Any, **named: Any) -> HttpResponse:
        """See `ports.HttpClient`."""
        self._check()
        try:
            return await self._client.request(*arguments, **named)
        finally:
            self._check()

    def stream(self, *arguments: Any, **named: Any) -> AbstractAsyncContextManager[HttpStream]:
        """See `ports.HttpClient`."""
        self._check()
        return self._client.stream(*arguments, **named)

    async def aclose(self) -> None:
        """See `ports.HttpClient`."""

    def _check(self) -> None:
        if self._faults.dead:
            raise SimulatedCrash


def _config(room: int) -> Config:
    return msgspec.structs.replace(
        Config(),
        free=Allowance(bytes=Size(room)),
        storage=Storage(keep_unreferenced_s=60),
        log=Log(access=False),
    )


@contextmanager
def _hurried(plan: RelayPlan) -> Iterator[None]:
    """What takes a thousand entries, or days, takes little: stories are short."""
    with ExitStack() as stack:
        for module, name, value in (
            (p2psync.sync.mailbox.snapshots, "LEAST_GROWTH", plan.snapshot_after),
            (p2psync.sync.mailbox.writer, "SNAPSHOT_PATIENCE", 5.0),
            (relay.mailbox.snapshots, "RETENTION_S", 5 if plan.forgetful else 86_400),
            (relay.mailbox.service, "SWEEP_EVERY_S", 10.0 if plan.forgetful else 3600.0),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
