"""Whole nodes, the code that ships, in stories with every fault: nothing is lost, all converge, nothing is left."""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from tests.simulation.harness import Outcome, Plan, Scenario, run_seed
from tests.simulation.nodes import SCENARIO

SEEDS = range(40)
REPLAYED = (3, 5)


@pytest.mark.timeout(600)
def test_nodes_survive_every_fault() -> None:
    """As many stories as the time of a test run allows, on all cores; `make sim SEEDS=N` tells more."""
    counters: Counter[str] = Counter()
    failed: dict[int, list[str]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for seed, (found, counted) in zip(SEEDS, pool.map(_judge, SEEDS), strict=True):
            counters += counted
            if found:
                failed[seed] = found
    assert not failed, f"replay with: python -m tests.simulation --seed {min(failed)} --trace"
    expected = {f"fault {kind}" for kind in SCENARIO.faults} | {f"user {action}" for action in SCENARIO.actions}
    expected |= {"killed", "power cut", "fault: power cut"}
    assert {name for name in expected if not counters[name]} == set()


def _judge(seed: int) -> tuple[list[str], Counter[str]]:
    outcome = run_seed(SCENARIO, seed)
    return [str(violation) for violation in outcome.violations], outcome.counters


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
    plan = replace(plan, skews_s=tuple(0.0 for _ in plan.devices))
    monkeypatch.setattr(Plan, "draw", staticmethod(lambda _: plan))
    return run_seed(scenario, seed)
