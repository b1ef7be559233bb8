"""20,000 numbered cases: wherever devices start to differ, they end with one tree, as it was to be expected."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tests.reconcile.planner_model import begin, run

CASES = 20_000
PART = 1_000

RARE = (
    "Adopt", "Forget", "KeepLocal", "Publish", "Refresh", "Create", "Displace with copy", "MakeDirectory",
    "Move", "Remove", "Replace", "Replace with copy", "SetMetadata", "name held", "step refused",
)  # fmt: skip
"""What must come up in every part, or the cases do not test it."""


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_planner(first: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(first, first + PART):
        case = begin(Random(number))
        try:
            run(case)
        except AssertionError as error:
            pytest.fail(
                f"case {number}; tell it with: python -m tests.reconcile --case {number}\n{error}", pytrace=False
            )
        seen += case.world.seen
    assert not [what for what in RARE if not seen[what]]
