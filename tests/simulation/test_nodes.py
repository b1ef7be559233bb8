"""Whole nodes, the code that ships, in stories with every fault: nothing is lost, all converge, nothing is left."""

import errno
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest
import trio

from p2psync.testing import SimDevice, SimWorld, run_deterministic
from p2psync.workspace.layout import MARKER
from tests.simulation import keeper
from tests.simulation.campaign import Tally, campaign
from tests.simulation.cast import Cast
from tests.simulation.harness import Outcome, Plan, Scenario, run_seed
from tests.simulation.nodes import MISSED_S, SCENARIO, make_node

SEEDS = range(500)
STORY_LIMIT_S = 100.0
REPLAYED = (3, 5, 6)
"""The last with a relay."""


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


def test_a_disk_that_fails_as_the_home_is_opened_delays_the_start() -> None:
    async def main() -> None:
        device = SimWorld(0).device("a")
        device.disk.faults.fail(1, errno.EIO, kinds={"open_store"})
        await _start(device)
        assert device.disk.faults.happened

    run_deterministic(0, main)


def test_a_removal_that_an_old_list_of_folders_has_forgotten_is_done_again() -> None:
    """Neither index nor marker is left; but for a while the directory may be one whose disk is away."""

    async def main() -> None:
        device = SimWorld(0).device("a")
        device.disk.make_directories(keeper.FOLDER)
        async with make_node(device.world(), b"/home", "a") as node:
            await node.folder_add(keeper.FOLDER, keeper.LABEL)
            before = device.database.copy(b"/home/state")
            await node.folder_remove(keeper.LABEL)
        assert device.disk.user_root(keeper.FOLDER).stat(MARKER) is None
        device.database.restore(b"/home/state", before)
        await _start(device)
        assert trio.current_time() > MISSED_S

    run_deterministic(0, main)


async def _start(device: SimDevice) -> None:
    """Start the node, which has no folder then."""
    with trio.fail_after(MISSED_S * 2):
        async with make_node(device.world(), b"/home", "a") as node:
            assert not node.state.folders


def _calm(monkeypatch: pytest.MonkeyPatch, scenario: Scenario, seed: int) -> Outcome:
    plan = replace(Plan.draw(seed), trouble_s=float("inf"), hint_loss=0.0, overflow=0.0)
    plan = replace(plan, skews_s=tuple(0.0 for _ in plan.devices), cast=Cast(plan.devices), relay=None)
    monkeypatch.setattr(Plan, "draw", staticmethod(lambda _: plan))
    return run_seed(scenario, seed)
