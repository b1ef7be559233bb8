"""Whole nodes, the code that ships, in stories with every fault: nothing is lost, all converge, nothing is left."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest

from tests.simulation.campaign import Tally, campaign
from tests.simulation.cast import Cast
from tests.simulation.harness import Outcome, Plan, Scenario, run_seed
from tests.simulation.nodes import SCENARIO

SEEDS = range(300)
STORY_LIMIT_S = 100.0
REPLAYED = (3, 5)


@pytest.mark.timeout(900)
def test_nodes_survive_every_fault() -> None:
    """As many stories as the time of a test run allows, on all cores; `make sim SEEDS=N` tells more."""
    tally = Tally()
    stories = campaign("tests.simulation.nodes:SCENARIO", SEEDS, jobs=os.cpu_count() or 1, limit_s=STORY_LIMIT_S)
    with closing(stories):
        for report in stories:
            tally.add(report)
    assert tally.seeds == len(SEEDS)
    assert not tally.failed, f"replay with: python -m tests.simulation --seed {min(tally.failed)} --trace"
    assert tally.never(SCENARIO) == []


@pytest.mark.parametrize("seed", REPLAYED)
def test_a_story_of_nodes_replays_in_another_process(seed: int) -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[0]
        for hash_seed in ("1", "2")
    }
    assert len(printed) == 1
    assert run_seed(SCENARIO, seed).digest[:16] in printed.pop()


def test_quiet_devices_without_faults_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fault, no skew and no lost hint: what fails here is no matter of bad luck."""
    outcome = _calm(monkeypatch, SCENARIO, 10)
    assert outcome.violations == []
    assert not any(name.startswith("fault") for name in outcome.counters)


def _calm(monkeypatch: pytest.MonkeyPatch, scenario: Scenario, seed: int) -> Outcome:
    plan = replace(Plan.draw(seed), trouble_s=float("inf"), hint_loss=0.0, overflow=0.0)
    plan = replace(plan, skews_s=tuple(0.0 for _ in plan.devices), cast=Cast(plan.devices))
    monkeypatch.setattr(Plan, "draw", staticmethod(lambda _: plan))
    return run_seed(scenario, seed)
