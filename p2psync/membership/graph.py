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

Members who have turned bad, or were removed, can send links up to `MAX_LINKS`, also void ones. So no verdict looks at
links one by one: sets of links are bit masks, with bit i for node i, and a role is looked up by what the past has seen.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from p2psync.errors import AuthenticationError, InputError
from p2psync.membership.links import Action, Add, Epoch, Genesis, Link, Remove, Role, SetRole, target_of
from p2psync.model.ids import DeviceId, replica_device_prefix

MAX_LINKS = 10_000
"""Links of one folder, void ones included."""

_NOBODY = 0


class Node:
    """A link with its place in the DAG. `past` has bit i set when node i is an ancestor; `valid` None means open.

    `attackers` are the concurrent revocations of its author, and of the device it gives rights to (rule 2).

    `starts` says that this is an Epoch link with the number that is next in its past, `epoch` is the greatest such
    number up to here. Void links count for that too, so no later link changes either.
    """

    __slots__ = ("attackers", "epoch", "index", "link", "past", "rank", "starts", "valid")

    def __init__(self, index: int, link: Link, past: int, epoch_before: int) -> None:
        self.index = index
        self.link = link
        self.past = past
        self.attackers = 0
        self.starts = isinstance(link.action, Epoch) and link.action.number == epoch_before + 1
        self.epoch = epoch_before + self.starts
        self.valid: bool | None = None
        self.rank = (past.bit_count(), not link.revokes, link.hash)

    def follows(self, other: Node) -> bool:
        """Whether `other` is in this link's past."""
        return bool(self.past >> other.index & 1)


@dataclass(frozen=True, slots=True)
class _Phase:
    """Valid links about a device that all give it rights, or all take some: none of the other kind is between them.

    A valid grant and a valid revocation are never concurrent, so phases follow each other, and whoever has seen a link
    of one has seen all of those before it. Each link raises, or lowers, the role that its author saw; so what came
    before a phase does not matter.
    """

    revokes: bool
    roles: Mapping[int, int]
    """Role → links that set it."""

    def begun(self, past: int) -> bool:
        return any(links & past for links in self.roles.values())

    def role(self, past: int) -> int:
        seen = [role for role, links in self.roles.items() if links & past]
        return min(seen) if self.revokes else max(seen)


@dataclass(slots=True)
class _About:
    """What the links about one device come to."""

    nodes: list[Node] = field(default_factory=list)
    """In rank order."""
    links: int = 0
    adding: int = 0
    """Those that bring the device."""
    enabling: int = 0
    """Those that give the right to sign links."""
    revoking: int = 0
    phases: list[_Phase] = field(default_factory=list)

    def insert(self, node: Node) -> None:
        insort(self.nodes, node, key=lambda n: n.rank)
        action, bit = node.link.action, 1 << node.index
        self.links |= bit
        if isinstance(action, Genesis | Add):
            self.adding |= bit
        if isinstance(action, Genesis) or (isinstance(action, Add | SetRole) and action.role >= Role.EDITOR):
            self.enabling |= bit
        if node.link.revokes:
            self.revoking |= bit

    def role(self, past: int) -> int:
        """The role by the valid links in this past; all links about the device in there must have been judged."""
        begun = bisect_left(self.phases, True, key=lambda phase: not phase.begun(past))
        return self.phases[begun - 1].role(past) if begun else _NOBODY

    def count(self, node: Node) -> None:
        """A link is valid. It comes after every link of the other kind that is."""
        action, revokes = node.link.action, node.link.revokes
        role = action.role if isinstance(action, Add | SetRole) else _NOBODY if revokes else Role.OWNER
        goes_on = bool(self.phases) and self.phases[-1].revokes == revokes
        roles = dict(self.phases.pop().roles) if goes_on else {}
        roles[role] = roles.get(role, 0) | 1 << node.index
        self.phases.append(_Phase(revokes, roles))


class LinkGraph:
    """All links of one folder. `insert` in any order that has predecessors first, then `judge`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        """In order of insertion; `ordered` is the order that all devices share."""
        self.by_hash: dict[bytes, Node] = {}
        self._heads: set[bytes] = set()
        self._about: dict[DeviceId, _About] = {}
        """By the device whose membership links change."""
        self._valid = self._open = 0
        """Links that count, and links not judged yet."""
        self._prefixes: dict[bytes, list[DeviceId]] = {}
        self._fresh: list[Node] = []

    def copy(self) -> LinkGraph:
        """An independent graph over the same links; judged nodes are shared until they have to be judged anew."""
        twin = LinkGraph()
        twin.nodes = list(self.nodes)
        twin.by_hash = dict(self.by_hash)
        twin._heads = set(self._heads)
        twin._about = {d: replace(a, nodes=list(a.nodes), phases=list(a.phases)) for d, a in self._about.items()}
        twin._valid, twin._open = self._valid, self._open
        twin._prefixes = {prefix: list(devices) for prefix, devices in self._prefixes.items()}
        return twin

    @property
    def heads(self) -> tuple[bytes, ...]:
        """Sorted hashes of the links that no other link names."""
        return tuple(sorted(self._heads))

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
        self._open |= 1 << node.index
        self._heads.difference_update(link.prevs)
        self._heads.add(link.hash)
        if link.target is not None:
            self._about.setdefault(link.target, _About()).insert(node)
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
        about = self._about.get(link.author)
        if not isinstance(link.action, Genesis) and not (about is not None and about.enabling & past):
            raise AuthenticationError("a membership link is signed by a device that may not sign one")

    def about(self, device: bytes) -> list[Node]:
        """Links that change a device's membership, in the order that all devices share."""
        about = self._about.get(DeviceId(device))
        return list(about.nodes) if about is not None else []

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
            self._decide(node, self._verdict(node))

    def _judge_all(self) -> None:
        for index, old in enumerate(self.nodes):
            node = Node(index, old.link, old.past, old.epoch - old.starts)
            self.nodes[index] = self.by_hash[old.link.hash] = node
        for about in self._about.values():
            about.nodes, about.phases = [self.nodes[node.index] for node in about.nodes], []
        self._valid, self._open = 0, (1 << len(self.nodes)) - 1
        self._find_attackers()
        open_nodes = self.ordered()
        while open_nodes:
            before = len(open_nodes)
            for node in open_nodes:
                self._decide(node, self._verdict(node))
            open_nodes = [node for node in open_nodes if node.valid is None]
            if len(open_nodes) == before:
                self._break_circle(open_nodes)
                open_nodes = [node for node in open_nodes if node.valid is None]

    def _find_attackers(self) -> None:
        futures = [0] * len(self.nodes)
        for node in reversed(self.nodes):  # whatever follows a node was inserted after it
            link, since = node.link, futures[node.index] | 1 << node.index
            for prev in link.prevs:
                futures[self.by_hash[prev].index] |= since
            node.attackers = self._about[link.author].revoking
            if link.target is not None and not link.revokes:
                node.attackers |= self._about[link.target].revoking
            node.attackers &= ~(node.past | since)

    def _verdict(self, node: Node) -> bool | None:
        if node.attackers & self._valid:
            return False
        right = self._has_right(node)
        if right is False:
            return False
        return None if right is None or node.attackers & self._open else True

    def _decide(self, node: Node, verdict: bool | None) -> None:
        if verdict is None:
            return
        node.valid = verdict
        self._open ^= 1 << node.index
        if verdict:
            self._valid |= 1 << node.index
            if node.link.target is not None:
                self._about[node.link.target].count(node)

    def _break_circle(self, open_nodes: list[Node]) -> None:
        """Rule 3, for verdicts that wait for each other: one link stands, what would void it falls.

        Only a link whose right is beyond doubt can be chosen; the first open one in rank order always is such a link.
        """
        candidates = [node for node in open_nodes if self._has_right(node)]
        chosen = min(
            candidates,
            key=lambda n: (not n.link.revokes, self._joined(n.link.author, n.past), n.link.author, n.rank),
        )
        for node in open_nodes:
            if chosen.attackers >> node.index & 1:
                self._decide(node, False)
        self._decide(chosen, True)

    def _joined(self, device: DeviceId, past: int) -> int:
        return next(  # in rank order the first has the fewest links before it
            n.rank[0]
            for n in self._about[device].nodes
            if past >> n.index & 1 and isinstance(n.link.action, Genesis | Add) and n.valid is not False
        )

    def _role(self, device: DeviceId, past: int) -> int | None:
        """The role `device` had at a point with this past, 0 for no member; None while that is still open."""
        about = self._about.get(device)
        if about is None:
            return _NOBODY
        return None if about.links & past & self._open else about.role(past)

    def _has_right(self, node: Node) -> bool | None:
        link = node.link
        if isinstance(link.action, Genesis):
            return True
        author = self._role(link.author, node.past)
        target = self._role(link.target, node.past) if link.target is not None else _NOBODY
        if author is None or target is None:
            return None
        if isinstance(link.action, Epoch) and not node.starts:
            return False
        return permitted(link.author, author, target, link.action) and not self._collides(node)

    def _collides(self, node: Node) -> bool:
        """Whether an Add would bring a second device whose replicas look like those of one that its author knew."""
        target = node.link.target
        if target is None or not isinstance(node.link.action, Add):
            return False
        twins = [d for d in self._prefixes[replica_device_prefix(target)] if d != target]
        return any(node.past & self._about[d].adding for d in twins)


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
