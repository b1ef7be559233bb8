"""The first half: users at work on three nodes while nodes are killed and links break, and the check at each quiet."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from p2psync.testing.oracle import Violation
from p2psync.testing.processes import CommandFailedError
from tests.oracle.cluster import Cluster, pause
from tests.oracle.judge import Judge
from tests.oracle.people import RealPerson, areas_of

NAMES = ("ann", "bob", "cyd")
ACTION_PAUSE_S = 0.02
KILL_PAUSE_S = 0.2


@dataclass(slots=True)
class Figures:
    """What a campaign did and found."""

    kills: int = 0
    startup_kills: int = 0
    actions: int = 0
    troubles: int = 0
    quiets: int = 0
    contents: int = 0
    copies: int = 0
    violations: list[Violation] = field(default_factory=list)


def run_kills(
    base: Path, seed: int, kills: int, quiet_every: int, report: Callable[[str], None] = lambda _: None
) -> Figures:
    """Kill that often, with a quiet after each `quiet_every` kills; ends early at a quiet that found something wrong.

    Which user does what, and who is killed after how many actions, is decided by the seed; how far a node was at that
    moment is not.
    """
    rng = random.Random(seed)
    judge, figures = Judge(), Figures()
    with Cluster(base, NAMES) as cluster:
        people = [
            RealPerson(node.name, node.path, judge, random.Random(rng.random()), cluster.note) for node in cluster.nodes
        ]
        figures.violations = cluster.settle()
        while not figures.violations and figures.kills < kills:
            began = time.monotonic()
            try:
                for _ in range(min(quiet_every, kills - figures.kills)):
                    _live(cluster, people, rng, figures)
                    _kill(cluster, rng, figures)
                # Work goes on; the last one killed is away all the time, or comes back into the middle of it.
                _live(cluster, people, rng, figures)
                figures.violations = cluster.settle() or cluster.examine(judge, began)
            except CommandFailedError as error:
                figures.violations = [Violation("start", str(error))]
            figures.quiets += 1
            figures.actions = sum(person.done for person in people)
            figures.contents, figures.copies = judge.contents, judge.copies
            report(
                f"quiet {figures.quiets}: {figures.kills} kills, {figures.actions} user actions, "
                f"{figures.contents} contents, {figures.copies} conflict copies, {time.monotonic() - began:.1f} s"
            )
        if not figures.violations:
            figures.violations = cluster.end()
    return figures


def _live(cluster: Cluster, people: list[RealPerson], rng: random.Random, figures: Figures) -> None:
    """A burst of work on all machines, with or without a running node, while nodes return and links change."""
    returning = {node.name: rng.randrange(1, 15) for node in cluster.nodes if not node.up}
    for moment in range(rng.randrange(10, 70)):
        for node in cluster.nodes:
            if returning.get(node.name) == moment:
                cluster.note(node.name, "start")
                node.start_soon()
        who = rng.randrange(len(people))
        people[who].act_in(areas_of(who, figures.quiets))
        if rng.random() < 0.03:
            cluster.trouble(rng)
            figures.troubles += 1
        pause(rng, ACTION_PAUSE_S)


def _kill(cluster: Cluster, rng: random.Random, figures: Figures) -> None:
    pause(rng, KILL_PAUSE_S)
    running = [node for node in cluster.nodes if node.up]
    if not running:
        cluster.nodes[0].start_soon()
        running = cluster.nodes[:1]
    node = rng.choice(running)
    if node.getting_up and rng.random() < 0.5:
        figures.startup_kills += 1
    else:
        node.started()
    cluster.note(node.name, "kill -9")
    node.crash()
    figures.kills += 1
