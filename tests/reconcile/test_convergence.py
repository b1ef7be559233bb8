"""The cases of `planner_model` as hypothesis draws them: fewer, but a failing one is made as short as can be."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reconcile.planner_model import begin, run


@given(st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_converge(random: Random) -> None:
    run(begin(random))
