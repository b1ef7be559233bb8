"""The second half: one node meets the failure of its N-th system call at work, and nothing is lost."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from p2psync.testing.oracle import Violation
from p2psync.testing.processes import CommandFailedError
from tests.oracle.cluster import Cluster, Node
from tests.oracle.folders import real_user
from tests.oracle.judge import FLAT, Judge
from tests.oracle.strace import KINDS, Strace, spread

UNDER_TRACE_S = 6.0
"""How long a node under strace is given to get done; it may well have to try again later."""
BY_ITSELF_S = 100.0
"""How long it is then given to recover without help: longer than its longest pause between attempts."""
_HARMLESS = frozenset({"log", "I25"})
"""Violations after which a campaign can go on: what was said was wrong, not what was done."""


@dataclass(frozen=True, slots=True)
class Point:
    """One failure: which workload, which kind of call, its name, its number in a thread, and the error."""

    workload: str
    kind: str
    call: str
    number: int
    error: str

    def __str__(self) -> str:
        return f"{self.workload}: {self.call} #{self.number} {self.error}"


@dataclass(slots=True)
class Figures:
    """What a campaign of failing calls did and found."""

    points: int = 0
    struck: int = 0
    ended: int = 0
    restarted: int = 0
    contents: int = 0
    copies: int = 0
    violations: list[Violation] = field(default_factory=list)


class _Scene:
    """Two nodes and their users; the second node is the one whose calls fail."""

    def __init__(self, cluster: Cluster, judge: Judge, rng: random.Random) -> None:
        self.cluster = cluster
        self.judge = judge
        self.rng = rng
        self.other, self.victim = cluster.nodes
        self.there, self.here = (real_user(node.name, node.path, judge) for node in cluster.nodes)
        self.number = 0
        self.top = FLAT

    def content(self, size: int = 2000) -> bytes:
        """Bytes nobody wrote before."""
        return self.rng.randbytes(size)

    def set_up(self) -> None:
        """A fresh directory with a few files on both nodes, and the last one gone."""
        for _ in range(10 if self.number else 0):
            # A node may put something into a directory while its user empties it, and the user then begins again.
            with suppress(OSError):
                self.there.delete_tree(self.top)
                break
        self.number += 1
        self.top = FLAT + b"/%d" % self.number
        self.there.mkdir(self.top)
        for n in range(12):
            self.there.write(self.top + b"/old-%d" % n, self.content())


def small(scene: _Scene) -> None:
    """The node receives 30 small files."""
    for n in range(30):
        scene.there.write(scene.top + b"/new-%d" % n, scene.content())


def large(scene: _Scene) -> None:
    """The node receives a file of three chunks."""
    scene.there.write(scene.top + b"/large", scene.content(10 << 20))


def local(scene: _Scene) -> None:
    """The node publishes what its user does."""
    user, top = scene.here, scene.top
    for n in range(10):
        user.write(top + b"/mine-%d" % n, scene.content())
    user.mkdir(top + b"/directory")
    user.atomic_save(top + b"/old-0", scene.content())
    user.append(top + b"/old-1", scene.content())
    user.rename(top + b"/old-2", top + b"/directory/old-2")
    user.symlink(b"old-3", top + b"/link")
    user.chmod(top + b"/old-3", 0o755)
    user.delete(top + b"/old-4")


def mixed(scene: _Scene) -> None:
    """Renames, removals and concurrent edits meet after both nodes were apart."""
    link = scene.cluster.links[0, 1]
    link.blocked = True
    link.cut()
    top, there, here = scene.top, scene.there, scene.here
    for n in range(3):
        there.rename(top + b"/old-%d" % n, top + b"/moved-%d" % n)
        there.delete(top + b"/old-%d" % (n + 3))
        there.write(top + b"/old-%d" % (n + 6), scene.content())
        here.write(top + b"/old-%d" % (n + 6), scene.content())
    here.write(top + b"/old-3", scene.content())
    here.rename(top + b"/old-9", top + b"/old-10")
    here.delete(top + b"/old-11")
    link.blocked = False


WORKLOADS: dict[str, Callable[[_Scene], None]] = {"small": small, "large": large, "local": local, "mixed": mixed}


def run_failing_calls(
    base: Path,
    seed: int,
    points: int,
    workloads: Sequence[str] = tuple(WORKLOADS),
    kinds: Sequence[str] = tuple(KINDS),
    report: Callable[[str], None] = lambda _: None,
) -> Figures:
    """Let `points` calls of each kind fail in each workload; ends when something is wrong with the files."""
    figures, judge = Figures(), Judge()
    with Cluster(base, ("ann", "bob")) as cluster:
        scene = _Scene(cluster, judge, random.Random(seed))
        for workload in workloads:
            most = _count(scene, workload)
            report(f"{workload}: calls of the busiest thread: {dict(most)}")
            for kind in kinds:
                if not any(most[call] for call in KINDS[kind][0]):
                    report(f"{workload}: makes no {kind} call that could fail")
            for point in _points(workload, kinds, most, points):
                violations = _strike(scene, point, figures, report)
                figures.violations += violations
                if any(violation.invariant not in _HARMLESS for violation in violations):
                    return figures
        figures.violations += cluster.end()
    return figures


def _points(workload: str, kinds: Sequence[str], most: Counter[str], points: int) -> Iterator[Point]:
    for kind in kinds:
        calls, errors = KINDS[kind]
        for (call, number), error in zip(spread(most, calls, points), cycle(errors), strict=False):
            yield Point(workload, kind, call, number, error)


def _count(scene: _Scene, workload: str) -> Counter[str]:
    """How many calls of each kind the workload makes."""
    scene.set_up()
    _quiet(scene)
    calls = tuple(call for names, _ in KINDS.values() for call in names)
    with Strace(_pid(scene.victim), calls, scene.cluster.base / "count.strace") as trace:
        WORKLOADS[workload](scene)
        _quiet(scene)
    return trace.most()


def _strike(scene: _Scene, point: Point, figures: Figures, report: Callable[[str], None]) -> list[Violation]:
    began = time.monotonic()
    output = scene.cluster.base / "point.strace"
    output.unlink(missing_ok=True)
    inject = f"{point.call}:error={point.error}:when={point.number}"
    outcome, note = "recovered", "not begun"
    violations: list[Violation] = []
    scene.cluster.note("point", str(point))
    try:
        scene.set_up()
        _quiet(scene)
        with Strace(_pid(scene.victim), (point.call,), output, inject) as trace:
            WORKLOADS[point.workload](scene)
            _agree(scene.other, scene.victim, UNDER_TRACE_S)
        figures.points += 1
        figures.struck += trace.struck > 0
        note = f"{trace.struck} calls failed"
        if _ended(scene.victim):
            outcome = "ended"
            violations += _last_words(scene.victim)
            figures.ended += 1
            scene.victim.stop()
        elif not _agree(scene.victim, scene.other, BY_ITSELF_S):
            outcome = "restarted"
            figures.restarted += 1
            scene.victim.stop()
        violations += scene.cluster.settle() or scene.cluster.examine(scene.judge, began)
    except CommandFailedError as error:
        violations.append(Violation("start", str(error)))
    figures.contents, figures.copies = scene.judge.contents, scene.judge.copies
    report(f"{point}: {note}, {outcome}, {time.monotonic() - began:.1f} s")
    return [Violation(v.invariant, f"[{point}] {v.text}") for v in violations]


def _quiet(scene: _Scene) -> None:
    """Wait until both nodes agree. CommandFailedError when they do not."""
    if not _agree(scene.other, scene.victim, BY_ITSELF_S):
        raise CommandFailedError(f"{scene.other.name} does not come to rest\n{scene.other.status()}")


def _agree(node: Node, other: Node, timeout_s: float) -> bool:
    """Whether a node says in time that it and the other one are identical; False when either is gone."""
    deadline = time.monotonic() + timeout_s
    try:
        while (left := deadline - time.monotonic()) > 0:
            node.connected(other, left)
            (folder,) = node.ask("wait", timeout_s=max(deadline - time.monotonic(), 0.0))["folders"]
            if folder["identical"] and other.id in folder["equal_with"]:
                return True
    except CommandFailedError:
        pass
    return False


def _pid(node: Node) -> int:
    assert node.process is not None
    return node.process.pid


def _ended(node: Node) -> bool:
    return node.process is None or node.process.poll() is not None


def _last_words(node: Node) -> list[Violation]:
    """A node may end because its disk fails, by its own decision and with an error that a person can read."""
    assert node.process is not None
    code = node.process.returncode
    words = node.log.read_text(errors="replace").splitlines()[-1:]
    if code > 0 and words and "error" in words[0]:
        return []
    return [Violation("exit", f"{node.name} ended with {code} and said {words}")]
