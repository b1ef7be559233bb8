"""One workload from beginning to verdict, with or without something that strikes at one of its operations."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from p2psync.errors import EscapeError
from p2psync.model.paths import display
from p2psync.sync import jobs
from p2psync.testing import SimulatedCrash, Violation
from p2psync.testing.faults import oserror
from p2psync.testing.snapshot import Shown, kept, temporaries, tree
from tests.crash.expected import Expected
from tests.crash.ledger import index_of
from tests.crash.pair import OTHER, QUIET_S, STRUCK, Host, Mode, Pair
from tests.crash.workloads import ACTIONS, CHUNK, HERE, Step, Workload, make_durable

CHANGING: Final = frozenset({
    "create", "pwrite", "truncate", "sync", "rename", "link", "symlink", "mkdir", "rmdir", "unlink", "chmod", "utime",
    "sync_directory", "sync_all", "commit", "committed",
})  # fmt: skip
"""Operations before which a power cut finds another disk than before the one in front of it. A cut before any other
operation leaves the device as the cut before the next of these does."""
_VISIBLE = CHANGING - {"sync", "sync_directory", "sync_all", "commit", "committed"}
_AT_ONCE_S = (0.0, 0.03, 0.06, 0.3)
"""Pauses between steps that come at once: within and past the time after which a node looks at a changed file."""
_SECOND = 60
"""A second cut comes within so many operations that change something, counted from the restart."""


@dataclass(frozen=True, slots=True)
class Strike:
    """What happens right before the operation with this number, counted from the first step of the workload."""

    point: int
    mode: Mode


@dataclass(slots=True)
class Verdict:
    """What came of one run: violations, and the operations of the struck device in order (kind, path)."""

    violations: list[str]
    struck_at: str = ""
    operations: list[tuple[str, bytes]] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


class Run:
    """A workload on two devices that agree on the base tree."""

    def __init__(self, pair: Pair, workload: Workload, *, at_point: Callable[[Run, int, str], None]) -> None:
        """`at_point` is called before each operation of the struck device with its number and kind: to strike there."""
        self.pair = pair
        self.workload = workload
        self.rng = random.Random(str(workload))
        self.expected = Expected(pair.other.tree(), workload)
        self.strike: Strike | None = None
        self.struck_at = ""
        self.operations: list[tuple[str, bytes]] = []
        self.violations: list[Violation] = []
        self._at_point = at_point
        self.ended: Callable[[Verdict], None] = lambda verdict: None
        """Told the verdict when everything is over."""
        self._changes = 0
        self._second = 0
        self._over = False
        self._before: dict[bytes, Shown] = {}
        context = pair.struck.folder.context
        self._ids = (context.folder, context.device)
        pair.struck.device.disk.faults.observe = self._observe
        pair.struck.died = self._died

    # ── striking ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _observe(self, kind: str, path: bytes) -> None:
        self.pair.note(STRUCK, kind, path=path)
        self._changes += kind in _VISIBLE
        if self.strike is None and not self._over:
            self.operations.append((kind, path))
            self._at_point(self, len(self.operations), kind)
        elif self._second and not self._over and kind in CHANGING:
            self._second -= 1
            if not self._second:
                self._cut()

    def strike_now(self, strike: Strike) -> None:
        """Let something happen to the operation that is being asked for; raises what it does to the caller."""
        self.strike = strike
        kind, path = self.operations[-1]
        self.struck_at = f"{kind} {display(path)}"
        self.rng = random.Random(f"{self.workload} {strike.point} {strike.mode}")
        self.pair.note("world", f"strike {strike.mode}", point=strike.point)
        match strike.mode:
            case "EIO":
                raise oserror(errno.EIO, path)
            case "ENOSPC":
                raise oserror(errno.ENOSPC, path)
            case "again":
                self._second = self.rng.randrange(1, _SECOND)
        self._cut()

    def _cut(self) -> None:
        self._before = tree(self.pair.struck.top)
        self.pair.struck.resting_s = self.rng.choice((0.0, 3.0))
        self.pair.struck.die()
        raise SimulatedCrash

    def _died(self) -> None:
        """Between death and restart: what is visible must be whole, and what was said must be known."""
        pair, strike = self.pair, self.strike
        assert strike is not None
        pair.lose_power(self.rng, strike.mode)
        pair.note("world", "restart")
        after = tree(pair.struck.top)
        if strike.mode != "kill":
            pair.oracle.crashed(STRUCK, self._before, after)
        self.violations += pair.oracle.strangers({STRUCK: after})
        with self._unobserved(), index_of(pair.struck.device, *self._ids) as reader:
            self.violations += pair.ledger.forgotten(reader, self._ids[1])

    @contextmanager
    def _unobserved(self) -> Iterator[None]:
        faults = self.pair.struck.device.disk.faults
        observe, faults.observe = faults.observe, None
        try:
            yield
        finally:
            faults.observe = observe

    # ── the story ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def tell(self) -> Verdict:
        """All steps, quiet, and the verdict."""
        for number, step in enumerate(self.workload.steps):
            if step.settled and not await self.pair.settle():
                break
            if number and not step.settled:
                await trio.sleep(random.Random(f"{self.workload} {number}").choice(_AT_ONCE_S))
            host = self.pair.struck if step.side == HERE else self.pair.other
            while host.dead:
                await trio.sleep(0.01)
            self._act(host, step, number)
        self.pair.note("world", "steps done")
        settled = await self.pair.settle()
        self._over = True
        if settled:
            await self._stay_quiet()
        else:
            self.violations.append(Violation("I1", "the devices do not come to agree"))
        await self._judge()
        found = [str(violation) for violation in dict.fromkeys(self.violations)]
        verdict = Verdict(found, self.struck_at, self.operations, self.pair.sim.trace.lines)
        self.ended(verdict)
        return verdict

    def _act(self, host: Host, step: Step, number: int) -> None:
        before = host.tree()
        lazy = self.workload.lazy and step.side == HERE
        self.pair.note(host.device.name, f"user {step.action}")
        try:
            ACTIONS[step.action](host.lazy_user if lazy else host.user, f"{step} {number}".encode())
        except (OSError, EscapeError) as error:
            self.pair.note(host.device.name, "user error", error=str(error))
        if not lazy:
            make_durable(host.user)
        self.expected.changed(step, before, host.tree())

    async def _stay_quiet(self) -> None:
        before, changes = [host.tree() for host in self.pair.hosts.values()], self._changes
        await trio.sleep(QUIET_S)
        if before != [host.tree() for host in self.pair.hosts.values()]:
            self.violations.append(Violation("I1", "a tree changed after both devices agreed"))
        if changes != self._changes:
            self.violations.append(Violation("I1", f"{self._changes - changes} operations after both devices agreed"))

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _judge(self) -> None:
        pair = self.pair
        trees = {name: host.tree() for name, host in pair.hosts.items()}
        history = {name: kept(host.top) for name, host in pair.hosts.items()}
        left = {name: temporaries(host.top) for name, host in pair.hosts.items()}
        whole = {name: tree(host.top) for name, host in pair.hosts.items()}
        self.violations += [*pair.oracle.convergence(trees), *pair.oracle.losses(whole, history)]
        self.violations += [*pair.oracle.strangers(whole), *pair.oracle.leftovers(left), *pair.log.violations]
        self.violations += self.expected.differences(trees[OTHER])
        self.violations += self.expected.unkept(trees[STRUCK], history[STRUCK])
        roots = []
        for host in pair.hosts.values():
            assert host.node is not None
            with host.folder.context.index.read() as reader:
                roots.append(reader.root())
                pair.ledger.compare(reader)
                if reader.intents():
                    self.violations.append(Violation("I9", "the journal still holds something"))
            report = await host.node.check()
            self.violations += [Violation("check", f"{f.text} {f.path}") for f in report.findings]
        if len(set(roots)) > 1:
            self.violations.append(Violation("I1", "the Merkle roots differ"))
        self.violations += pair.ledger.violations


def nothing(run: Run, point: int, kind: str) -> None:
    """Strikes nowhere."""


@contextmanager
def large_files() -> Iterator[None]:
    """Fetch what has several chunks as large files are fetched, each on its own."""
    small, jobs.SMALL = jobs.SMALL, 4 * CHUNK
    try:
        yield
    finally:
        jobs.SMALL = small
