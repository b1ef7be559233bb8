"""Seeds that once failed, each with what it found. The story of a seed changes with the code; the faults stay hard."""

from dataclasses import replace

import pytest

from tests.simulation.harness import run_seed
from tests.simulation.nodes import SCENARIO
from tests.simulation.plan import Plan

FOUND = [
    (
        1222,
        set(SCENARIO.faults),
        "an exchange began anew without end while its connection said goodbye, and nothing else got its turn",
    ),
    (
        1,
        {"crash", "kill"},
        "two exchanges with one device began at the same moment, and the second ended in a KeyError",
    ),
    (3, {"error"}, "a failing disk ended the whole node, for the sake of an address that could not be remembered"),
    (2, {"error"}, "what a failing disk had left half exchanged stayed in the private directory until the next start"),
]


@pytest.mark.parametrize(("seed", "faults"), [(seed, faults) for seed, faults, _ in FOUND])
def test_a_seed_that_failed_is_clean(seed: int, faults: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(Plan.draw(seed), hint_loss=0.0, relay=None)
    monkeypatch.setattr(Plan, "draw", staticmethod(lambda _: plan))
    assert run_seed(replace(SCENARIO, faults=frozenset(faults)), seed).violations == []
