"""The verdicts of the membership graph by its three rules as they are written, link by link, however long that takes.

A model to compare `p2psync.membership.graph` with: sets of links in the place of masks, and nothing kept between two
verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2psync.membership import Action, Add, Epoch, Genesis, Link, Remove, Role, SetRole
from p2psync.membership.graph import permitted
from p2psync.model.ids import DeviceId

NOBODY = 0


@dataclass(eq=False)
class Judged:
    """A link, the links before it, and the greatest number of an epoch up to it. `valid` None means open."""

    link: Link
    past: set[Judged]
    epoch: int
    starts: bool
    valid: bool | None = None

    @property
    def action(self) -> Action:
        return self.link.action

    @property
    def rank(self) -> tuple[int, bool, bytes]:
        return len(self.past), not self.link.revokes, self.link.hash


class Verdicts:
    """Judges all links of a folder, given predecessors first. No two devices look alike (see `LinkGraph._collides`)."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.circles = 0
        judged: dict[bytes, Judged] = {}
        for link in links:
            prevs = [judged[prev] for prev in link.prevs]
            before = max((prev.epoch for prev in prevs), default=0)
            starts = isinstance(link.action, Epoch) and link.action.number == before + 1
            past = set(prevs).union(*(prev.past for prev in prevs))
            judged[link.hash] = Judged(link, past, before + starts, starts)
        self.links = sorted(judged.values(), key=lambda one: one.rank)
        while waiting := [one for one in self.links if one.valid is None]:
            for one in waiting:
                one.valid = self._verdict(one)
            if all(one.valid is None for one in waiting):
                self._break_circle(waiting)

    def valid(self) -> dict[bytes, bool | None]:
        return {one.link.hash: one.valid for one in self.links}

    def _verdict(self, one: Judged) -> bool | None:
        attackers = [attacker.valid for attacker in self._attackers(one)]
        right = self._has_right(one)
        if True in attackers or right is False:
            return False
        return None if None in attackers else right

    def _attackers(self, one: Judged) -> list[Judged]:
        """Rule 2."""
        victims = {one.link.author} if one.link.revokes else {one.link.author, one.link.target}
        concurrent = [k for k in self.links if k is not one and k not in one.past and one not in k.past]
        return [k for k in concurrent if k.link.revokes and k.link.target in victims]

    def _has_right(self, one: Judged) -> bool | None:
        """Rule 1."""
        if isinstance(one.action, Genesis):
            return True
        author = self.role(one.link.author, one.past)
        target = self.role(one.link.target, one.past) if one.link.target is not None else NOBODY
        if author is None or target is None:
            return None
        if isinstance(one.action, Epoch) and not one.starts:
            return False
        return permitted(one.link.author, author, target, one.action)

    def _break_circle(self, waiting: list[Judged]) -> None:
        """Rule 3."""
        self.circles += 1
        able = [one for one in waiting if self._has_right(one)]
        chosen = min(able, key=lambda k: (not k.link.revokes, self._joined(k), k.link.author, k.rank))
        for attacker in self._attackers(chosen):
            attacker.valid = False
        chosen.valid = True

    def _joined(self, one: Judged) -> int:
        """Fewest links before the author of a link joined."""
        joins = [k for k in self._about(one.link.author, one.past) if isinstance(k.action, Genesis | Add)]
        return min(len(k.past) for k in joins if k.valid is not False)

    def _about(self, device: DeviceId, past: set[Judged]) -> list[Judged]:
        return [one for one in self.links if one in past and one.link.target == device]

    def role(self, device: DeviceId, past: set[Judged]) -> int | None:
        """What a device was at a point with this past; None while that is open."""
        role: int = NOBODY
        for one in self._about(device, past):
            if one.valid is None:
                return None
            if one.valid:
                match one.action:
                    case Genesis():
                        role = Role.OWNER
                    case Add(role=given):
                        role = max(role, given)
                    case SetRole(role=given, cut=None):
                        role = max(role, given) if role else NOBODY
                    case SetRole(role=given):
                        role = min(role, given)
                    case Remove():
                        role = NOBODY
        return role
