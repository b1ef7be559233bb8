"""Which links count: the one rule that makes every device reach the same verdict, whatever order links arrive in.

Each link is judged by what its author could see, its causal past, and by what others did at the same time:

1. *Right*: in the link's past its author had the role the action needs, and the target was in a fitting state.
2. *Removal wins*: a link is void when a valid removal or demotion of its author, or of the device it gives rights to,
   is concurrent with it. (What came before the removal stands; what came after it fails rule 1.)
3. *Seniority*: where revocations void each other in a circle, the one whose author joined earliest stands (fewest links
   before joining, then the smaller device id) and those that would void it fall.

Nobody can change their own role. So an owner always remains: were every owner removed, each removal must precede its
author's own, and that chain has no end.

Two concurrent grants to one device leave it the greater role, two concurrent revocations the lesser, and a grant
concurrent with a revocation is void; hence a role does not depend on how the past is linearised.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2psync.errors import AuthenticationError, InputError
from p2psync.membership.links import Action, Add, Epoch, Genesis, Link, Remove, Role, SetRole, target_of
from p2psync.model.ids import DeviceId, replica_device_prefix

MAX_LINKS = 10_000
"""Links of one folder, void ones included."""

_NOBODY = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """A device's role at some point of the DAG, and when it got there. `role` is 0 for somebody who is no member."""

    role: int
    joined: int
    """Number of links before the one that added the device."""


class Node:
    """A link with its place in the DAG. `past` has bit i set when node i is an ancestor; `valid` None means open.

    `starts` says that this is an Epoch link with the number that is next in its past, `epoch` is the greatest such
    number up to here. Void links count for that too, so no later link changes either.
    """

    __slots__ = ("epoch", "index", "link", "past", "rank", "starts", "valid")

    def __init__(self, index: int, link: Link, past: int, epoch_before: int) -> None:
        self.index = index
        self.link = link
        self.past = past
        self.starts = isinstance(link.action, Epoch) and link.action.number == epoch_before + 1
        self.epoch = epoch_before + self.starts
        self.valid: bool | None = None
        self.rank = (past.bit_count(), not link.revokes, link.hash)

    def follows(self, other: Node) -> bool:
        """Whether `other` is in this link's past."""
        return bool(self.past >> other.index & 1)

    def concurrent(self, other: Node) -> bool:
        """Whether neither saw the other."""
        return self is not other and not self.follows(other) and not other.follows(self)


class LinkGraph:
    """All links of one folder. `insert` in any order that has predecessors first, then `judge`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        """In order of insertion; `ordered` is the order that all devices share."""
        self.by_hash: dict[bytes, Node] = {}
        self.heads: tuple[bytes, ...] = ()
        self._about: dict[DeviceId, list[Node]] = {}
        """Links that change a device's membership, in rank order."""
        self._prefixes: dict[bytes, list[DeviceId]] = {}
        self._fresh: list[Node] = []

    def copy(self) -> LinkGraph:
        """An independent graph over the same links; judged nodes are shared until they have to be judged anew."""
        twin = LinkGraph()
        twin.nodes = list(self.nodes)
        twin.by_hash = dict(self.by_hash)
        twin.heads = self.heads
        twin._about = {device: list(nodes) for device, nodes in self._about.items()}
        twin._prefixes = {prefix: list(devices) for prefix, devices in self._prefixes.items()}
        return twin

    def insert(self, link: Link) -> None:
        """Add a link whose predecessors are all here; one that is here already changes nothing.

        InputError when it cannot belong to this folder; AuthenticationError when its signature is not its author's, or
        its author never had a right to sign links in its past.
        """
        if link.hash in self.by_hash:
            return
        if len(self.nodes) >= MAX_LINKS:
            raise InputError(f"a folder may have {MAX_LINKS} membership links; found a new folder to go on")
        past = self._past_of(link)
        self._check_author(link, past)
        link.verify()
        epoch_before = max((self.by_hash[prev].epoch for prev in link.prevs), default=0)
        node = Node(len(self.nodes), link, past, epoch_before)
        self.nodes.append(node)
        self.by_hash[link.hash] = node
        self.heads = tuple(sorted({*self.heads, link.hash} - set(link.prevs)))
        if link.target is not None:
            about = self._about.setdefault(link.target, [])
            about.append(node)
            about.sort(key=lambda n: n.rank)
            twins = self._prefixes.setdefault(replica_device_prefix(link.target), [])
            if link.target not in twins and isinstance(link.action, Genesis | Add):
                twins.append(link.target)
        self._fresh.append(node)

    def _past_of(self, link: Link) -> int:
        if isinstance(link.action, Genesis):
            if self.nodes:
                raise InputError("a folder has one genesis")
            return 0
        if not self.nodes or link.folder != self.nodes[0].link.folder_id:
            raise InputError("membership link of another folder")
        past = 0
        for prev in link.prevs:
            node = self.by_hash.get(prev)
            if node is None:
                raise InputError("membership link with an unknown predecessor")
            past |= node.past | 1 << node.index
        return past

    def _check_author(self, link: Link, past: int) -> None:
        """AuthenticationError unless the author was, at some time in the link's past, given the right to sign links."""
        if isinstance(link.action, Genesis):
            return
        for node in self._about.get(link.author, []):
            action = node.link.action
            able = isinstance(action, Genesis) or (isinstance(action, Add | SetRole) and action.role >= Role.EDITOR)
            if able and past >> node.index & 1:
                return
        raise AuthenticationError("a membership link is signed by a device that may not sign one")

    def about(self, device: bytes) -> list[Node]:
        """Links that change a device's membership, in the order that all devices share."""
        return list(self._about.get(DeviceId(device), ()))

    # ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────────
    def ordered(self) -> list[Node]:
        """Every link, ancestors first, in the same order on every device."""
        return sorted(self.nodes, key=lambda node: node.rank)

    def judge(self) -> None:
        """Decide `valid` for every node.

        A link that follows all others can change no earlier verdict, so appending costs one verdict; anything else
        starts over.
        """
        fresh, self._fresh = self._fresh, []
        if any(node.past != (1 << node.index) - 1 for node in fresh):
            self._judge_all()
            return
        for node in fresh:
            node.valid = self._verdict(node)

    def _judge_all(self) -> None:
        for index, old in enumerate(self.nodes):
            node = Node(index, old.link, old.past, old.epoch - old.starts)
            self.nodes[index] = self.by_hash[old.link.hash] = node
        for device, about in self._about.items():
            self._about[device] = [self.nodes[node.index] for node in about]
        open_nodes = self.ordered()
        while open_nodes:
            before = len(open_nodes)
            for node in open_nodes:
                node.valid = self._verdict(node)
            open_nodes = [node for node in open_nodes if node.valid is None]
            if len(open_nodes) == before:
                self._break_circle(open_nodes)
                open_nodes = [node for node in open_nodes if node.valid is None]

    def _verdict(self, node: Node) -> bool | None:
        attackers = self._attackers(node)
        if any(attacker.valid for attacker in attackers):
            return False
        right = self._has_right(node)
        if right is False:
            return False
        return None if right is None or any(attacker.valid is None for attacker in attackers) else True

    def _attackers(self, node: Node) -> list[Node]:
        """Concurrent revocations of this link's author, and of the device it gives rights to (rule 2)."""
        link = node.link
        devices = [link.author]
        if link.target is not None and not link.revokes and link.target != link.author:
            devices.append(link.target)
        return [
            other
            for device in devices
            for other in self._about.get(device, [])
            if other.link.revokes and other.concurrent(node)
        ]

    def _break_circle(self, open_nodes: list[Node]) -> None:
        """Rule 3, for verdicts that wait for each other: one link stands, what would void it falls.

        Only a link whose right is beyond doubt can be chosen; the first open one in rank order always is such a link.
        """
        candidates = [node for node in open_nodes if self._has_right(node)]
        chosen = min(
            candidates,
            key=lambda n: (not n.link.revokes, self._joined(n.link.author, n.past), n.link.author, n.rank),
        )
        for attacker in self._attackers(chosen):
            attacker.valid = False
        chosen.valid = True

    def _joined(self, device: DeviceId, past: int) -> int:
        return min(
            n.rank[0]
            for n in self._about[device]
            if past >> n.index & 1 and isinstance(n.link.action, Genesis | Add) and n.valid is not False
        )

    def standing(self, device: DeviceId, past: int) -> Standing | None:
        """What `device` was at a point with this past; None while that is still open."""
        role, joined = _NOBODY, 0
        for node in self._about.get(device, []):
            if not past >> node.index & 1 or node.valid is False:
                continue
            if node.valid is None:
                return None
            match node.link.action:
                case Genesis():
                    role = Role.OWNER
                case Add(role=given):
                    joined = node.rank[0] if role == _NOBODY else joined
                    role = max(role, given)
                case SetRole(role=given, cut=None):
                    role = max(role, given) if role else _NOBODY
                case SetRole(role=given):
                    role = min(role, given)
                case Remove():
                    role = _NOBODY
                case _:
                    pass
        return Standing(role, joined)

    def _has_right(self, node: Node) -> bool | None:
        link = node.link
        if isinstance(link.action, Genesis):
            return True
        author = self.standing(link.author, node.past)
        target = self.standing(link.target, node.past) if link.target is not None else Standing(_NOBODY, 0)
        if author is None or target is None:
            return None
        if isinstance(link.action, Epoch) and not node.starts:
            return False
        return permitted(link.author, author.role, target.role, link.action) and not self._collides(node)

    def _collides(self, node: Node) -> bool:
        """Whether an Add would bring a second device whose replicas look like those of a known one."""
        target = node.link.target
        if target is None or not isinstance(node.link.action, Add):
            return False
        twins = [d for d in self._prefixes[replica_device_prefix(target)] if d != target]
        return any(node.past >> other.index & 1 for d in twins for other in self._about[d])


def permitted(author: bytes, author_role: int, target_role: int, action: Action) -> bool:
    """Whether a device with one role may do this to a device with the other (0: no member)."""
    if isinstance(action, Epoch):
        return author_role >= Role.EDITOR
    if author_role == Role.EDITOR:
        return isinstance(action, Add) and target_role == _NOBODY and action.role in {Role.EDITOR, Role.VIEWER}
    if author_role != Role.OWNER or target_of(action) == author:
        return False
    match action:
        case Add():
            return target_role == _NOBODY
        case Remove():
            return target_role != _NOBODY
        case SetRole(role=role, cut=cut):
            return _NOBODY < target_role < role if cut is None else target_role > role
        case _:
            return True
