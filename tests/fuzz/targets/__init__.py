"""Every target, by name. What stands in one module belongs to one room of the product."""

from __future__ import annotations

from tests.fuzz.rules import Target
from tests.fuzz.targets import crypto, index, mailbox, membership, model, net, node, protocol, sealing, workspace

TARGETS: dict[str, Target] = {
    target.name: target
    for room in (protocol, net, model, membership, sealing, mailbox, index, workspace, node, crypto)
    for target in room.TARGETS
}
"""In the order of a campaign: the slow ones last."""
