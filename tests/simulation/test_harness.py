"""The harness itself, proven with a toy: it replays, it finds a planted loss, and every fault really happens."""

import multiprocessing
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.simulation.campaign import campaign
from tests.simulation.harness import run_seed
from tests.simulation.plan import Plan
from tests.simulation.toy import CARELESS, SCENARIO

QUICK = range(12)


def test_a_careful_node_is_clean_and_every_fault_strikes(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Plan.draw
    plans = {seed: replace(draw(seed), duration_s=40, pause_s=2.0, trouble_s=2.0) for seed in QUICK}
    monkeypatch.setattr(Plan, "draw", staticmethod(plans.__getitem__))
    counters: Counter[str] = Counter()
    for seed in QUICK:
        outcome = run_seed(SCENARIO, seed)
        assert outcome.violations == [], seed
        counters += outcome.counters
    expected = {f"fault {kind}" for kind in SCENARIO.faults} | {f"user {action}" for action in SCENARIO.actions}
    expected |= {"killed", "power cut", "fault: power cut"}
    assert {name for name in expected if not counters[name]} == set()


def test_a_careless_node_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Plan.draw
    monkeypatch.setattr(Plan, "draw", staticmethod(lambda seed: replace(draw(seed), duration_s=40, pause_s=1.0)))
    found = {violation.invariant for seed in range(3) for violation in run_seed(CARELESS, seed).violations}
    assert "I2" in found


def test_nodes_that_never_meet_do_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    async def strangers(nodes: object, folder: bytes) -> None:
        """Nobody learns of anybody."""

    draw = Plan.draw
    monkeypatch.setattr(Plan, "draw", staticmethod(lambda seed: replace(draw(seed), duration_s=20, pause_s=1.0)))
    outcome = run_seed(replace(SCENARIO, introduce=strangers, settle_s=30), 1)
    assert "I1" in {violation.invariant for violation in outcome.violations}


def test_a_seed_replays_in_this_process_and_in_others() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--scenario", "tests.simulation.toy:SCENARIO", "--seed", "27"]
    printed = {
        subprocess.run(
            command, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
        for hash_seed in ("1", "2")
    }
    assert len(printed) == 1
    assert run_seed(SCENARIO, 27).digest[:16] in printed.pop()


def test_a_story_that_hangs_fails_alone() -> None:
    (report,) = campaign("tests.simulation.toy:STUCK", [1], jobs=1, limit_s=1.0)
    assert "StoryHangsError" in report.problems[0]


def test_a_campaign_that_is_ended_leaves_no_worker_behind() -> None:
    before = set(multiprocessing.active_children())
    stories = campaign("tests.simulation.toy:STUCK", range(8), jobs=2, limit_s=1.0)
    next(stories)
    stories.close()
    assert set(multiprocessing.active_children()) <= before
