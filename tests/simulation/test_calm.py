"""Stories in which nothing breaks: what two people wrote at the same time is to be seen, not only kept in history."""

import pytest

from tests.simulation.harness import run_seed
from tests.simulation.nodes import GENTLE

SEEDS = (0, 1, 4, 5, 6, 7)
"""The first that cost little."""


@pytest.mark.parametrize("seed", SEEDS)
def test_every_version_that_nobody_replaced_is_shown(seed: int) -> None:
    assert run_seed(GENTLE, seed).violations == []
