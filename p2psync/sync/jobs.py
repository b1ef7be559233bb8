"""Jobs: which of the steps that need content are fetched and carried out together."""

from __future__ import annotations

from collections.abc import Sequence

from p2psync.model.records import FileRecord
from p2psync.ports import Kind
from p2psync.reconcile import batch as order
from p2psync.reconcile import plan

SMALL = 1024 * 1024
"""Files up to this size are fetched and applied together."""
BUNDLE_FILES = 512
BUNDLE_BYTES = 4 * 1024 * 1024
"""What comes together is shown together: over a slow line that must not take minutes."""


def needs_content(step: order.Step) -> bool:
    """Whether content has to be staged first."""
    return isinstance(step, plan.Create | plan.Replace) and step.record.kind is Kind.FILE


def wanted(step: order.Step) -> FileRecord:
    """The version whose content a step needs."""
    assert isinstance(step, plan.Create | plan.Replace)
    return step.record


def is_large(job: Sequence[order.Step]) -> bool:
    """Whether it is one large file."""
    return len(job) == 1 and wanted(job[0]).size > SMALL


def name_of(job: Sequence[order.Step]) -> object:
    """What stands for a job at a limiter."""
    return job[0].path


def divide(steps: Sequence[order.Step]) -> list[list[order.Step]]:
    """Small files together, large ones alone, in order."""
    found: list[list[order.Step]] = []
    bundle: list[order.Step] = []
    size = 0
    for step in steps:
        amount = wanted(step).size
        if amount > SMALL:
            found.append([step])
            continue
        if len(bundle) >= BUNDLE_FILES or size + amount > BUNDLE_BYTES:
            found.append(bundle)
            bundle, size = [], 0
        bundle.append(step)
        size += amount
    return [*found, bundle] if bundle else found
