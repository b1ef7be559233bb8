"""The state all devices derive from a folder's links: members, roles, and which records each may have written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from p2psync.crypto.identity import DeviceCard, DeviceKeys
from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership.graph import LinkGraph, Node, permitted
from p2psync.membership.links import (
    MAX_PREVS,
    Action,
    Add,
    Epoch,
    Genesis,
    Link,
    Remove,
    Rename,
    Role,
    SetRole,
    decode_link,
    sign_link,
    target_of,
)
from p2psync.model.cutting import seed_of
from p2psync.model.hashing import Algorithm
from p2psync.model.ids import DeviceId, FolderId, replica_device_prefix
from p2psync.model.manifest import Chunker

MAX_MEMBERS = 1_000
"""Members of one folder; devices added beyond, other than owners, have no role until there is room."""


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a folder. `order` counts from 0 in the order of joining; `card` is None when no link brought it."""

    device_id: DeviceId
    role: Role
    name: str
    order: int
    card: DeviceCard | None


@dataclass(frozen=True, slots=True)
class KeyEpoch:
    """A span of the folder's life in which one key seals: what the Epoch links with this `key_id` say together."""

    number: int
    key_id: bytes
    counts: bool
    """Whether something may be sealed under its key. An epoch whose author was removed at the same time does not count,
    but those who had not heard of that may have used it, so its key still opens things."""
    stale: bool
    """Whether somebody has lost rights that it does not know of."""
    ladder: tuple[tuple[bytes, bytes], ...]
    """(key id of an earlier epoch, its key sealed under this one's)."""


@dataclass(slots=True)
class _Window:
    """A span of counters a device may write in: above `floor`, and once closed up to the cuts of `closers`."""

    floor: int
    closers: list[Node]

    def close(self, node: Node) -> None:
        """Revocations that saw an earlier one do not widen it; concurrent ones join, so nothing they saw is lost."""
        if not any(node.follows(earlier) for earlier in self.closers):
            self.closers.append(node)

    def admits(self, replica: bytes, counter: int) -> bool:
        if counter <= self.floor:
            return False
        return not self.closers or any(counter <= dict(_cut(n)).get(replica, 0) for n in self.closers)


@dataclass(frozen=True)
class Membership:
    """An immutable snapshot of a folder's membership. Made by `fold`, `create_folder` and `extend`."""

    folder: FolderId
    label: str
    algorithm: Algorithm
    chunker: Chunker
    seed: int
    """Of the cuts, see `model.cutting`."""
    epochs: Mapping[bytes, KeyEpoch]
    """Key epochs by key id, the greatest (number, key id) first."""
    members: Mapping[DeviceId, Member]
    """In order of joining."""
    former: Mapping[DeviceId, Member]
    """Devices that were members, with the last role they had."""
    heads: tuple[bytes, ...]
    """Sorted hashes of the links that no other link names yet."""
    _windows: Mapping[DeviceId, list[_Window]]
    _graph: LinkGraph

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────
    def role(self, device: bytes) -> Role | None:
        """The device's role, None when it is no member."""
        member = self.members.get(DeviceId(device))
        return member.role if member else None

    def was_member(self, device: bytes) -> bool:
        """Whether the device was a member and is none any more."""
        return DeviceId(device) in self.former

    def was_removed(self, device: bytes) -> bool:
        """Whether somebody has ever removed the device, even if it was let in again since."""
        return any(isinstance(link.action, Remove) for link in self._counting(device))

    def was_revoked(self, device: bytes) -> bool:
        """Whether somebody has ever taken rights from the device."""
        return any(link.revokes for link in self._counting(device))

    def inviters(self, device: bytes) -> list[DeviceId]:
        """Who has let the device in, itself where it has founded the folder."""
        joined = (link.author for link in self._counting(device) if isinstance(link.action, Genesis | Add))
        return list(dict.fromkeys(joined))

    def _counting(self, device: bytes) -> list[Link]:
        return [node.link for node in self._graph.about(device) if node.valid]

    def may_read(self, device: bytes) -> bool:
        """Whether the device may be given records and content in the clear."""
        return (self.role(device) or 0) >= Role.VIEWER

    def may_edit(self, device: bytes) -> bool:
        """Whether the device may write new records now."""
        return (self.role(device) or 0) >= Role.EDITOR

    def has_edited(self, device: bytes) -> bool:
        """Whether the device may write new records, or might at some time."""
        return bool(self._windows.get(DeviceId(device)))

    def may_write(self, device: bytes, replica: bytes, counter: int) -> bool:
        """Whether a record with this dot counts when `device` has signed it, now or before it lost the right."""
        if replica_device_prefix(replica) != replica_device_prefix(device):
            return False
        return any(window.admits(replica, counter) for window in self._windows.get(DeviceId(device), ()))

    def admits(self, replica: bytes, counter: int) -> bool:
        """Whether a record with this dot counts when the device it belongs to has signed it."""
        return any(self.may_write(device, replica, counter) for device in self._windows)

    def floor(self, device: bytes) -> int:
        """The counter above which the device's next record must be; 0 for most."""
        windows = self._windows.get(DeviceId(device), ())
        return windows[-1].floor if windows else 0

    def can(self, author: bytes, action: Action) -> bool:
        """Whether a link by `author` with this action would count if it were made now."""
        target = target_of(action)
        target_role = self.role(target) if target else None
        match action:
            case Add(device=device):
                fits = self._has_room(device)
            case Epoch(number=number):
                fits = number == self.next_epoch
            case _:
                fits = True
        return fits and permitted(author, self.role(author) or 0, target_role or 0, action)

    def _has_room(self, device: bytes) -> bool:
        prefix = replica_device_prefix(device)
        known = [d for d in (*self.members, *self.former) if replica_device_prefix(d) == prefix and d != device]
        return not known and len(self.members) < MAX_MEMBERS

    # ── epochs ──────────────────────────────────────────────────────────────────────────────────────────────────────
    @cached_property
    def current_epoch(self) -> KeyEpoch | None:
        """The epoch whose key seals what is sealed now: of those that count, the greatest by (number, key id)."""
        return next((epoch for epoch in self.epochs.values() if epoch.counts), None)

    @property
    def epoch(self) -> int:
        """Number of the current epoch, 0 before the first."""
        return self.current_epoch.number if self.current_epoch else 0

    @property
    def epoch_stale(self) -> bool:
        """Whether a new epoch is due before anything more is sealed: there is none yet, or somebody lost rights since.

        Any removal or demotion makes it due, whatever the role: it may have voided invitations, and who was invited may
        have been given the key.
        """
        return self.current_epoch is None or self.current_epoch.stale

    @property
    def next_epoch(self) -> int:
        """The number an epoch would need that is started now."""
        return max(self._graph.by_hash[head].epoch for head in self.heads[:MAX_PREVS]) + 1

    @cached_property
    def rungs(self) -> Mapping[bytes, tuple[tuple[bytes, bytes], ...]]:
        """Key id → the epoch's ladder, for `KeyRing.climb`."""
        return {epoch.key_id: epoch.ladder for epoch in self.epochs.values()}

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def link_count(self) -> int:
        """How many links this state is folded from."""
        return len(self._graph.nodes)

    def encoded_links(self) -> list[bytes]:
        """Every link's bytes, predecessors first, in the same order on every device."""
        return [node.link.encoded for node in self._graph.ordered()]

    def has(self, link_hash: bytes) -> bool:
        """Whether the link is known."""
        return link_hash in self._graph.by_hash

    def missing(self, prevs: Iterable[bytes]) -> list[bytes]:
        """Those of the link hashes that are not known here."""
        return [prev for prev in prevs if not self.has(prev)]

    def links_after(self, heads: Iterable[bytes]) -> list[bytes]:
        """Bytes of the links somebody with these heads lacks, predecessors first; heads unknown here are ignored."""
        known = 0
        for head in heads:
            node = self._graph.by_hash.get(head)
            if node is not None:
                known |= node.past | 1 << node.index
        return [node.link.encoded for node in self._graph.ordered() if not known >> node.index & 1]

    def farewell(self, device: bytes) -> list[bytes]:
        """Bytes of the links that removed a device and of those they stand on, predecessors first; nothing later."""
        known = 0
        for node in self._graph.nodes:
            if node.valid and node.link.target == device and isinstance(node.link.action, Remove):
                known |= node.past | 1 << node.index
        return [node.link.encoded for node in self._graph.ordered() if known >> node.index & 1]

    def extend(self, encoded_links: Iterable[bytes]) -> Membership:
        """The membership with these links added, predecessors first; all or nothing.

        InputError when one is malformed, of another folder, too many or has an unknown predecessor; AuthenticationError
        when one is not signed by somebody who was given that right.
        """
        return self.absorb(map(decode_link, encoded_links))

    def absorb(self, links: Iterable[Link], *, skip_refused: bool = False) -> Membership:
        """`extend` for decoded links; with `skip_refused` those that would raise are left out instead."""
        graph = self._graph.copy()
        for link in links:
            try:
                graph.insert(link)
            except (InputError, AuthenticationError):
                if not skip_refused:
                    raise
        return self if len(graph.nodes) == len(self._graph.nodes) else _snapshot(graph)

    @cached_property
    def owners(self) -> list[Member]:
        """Members who manage the folder."""
        return [member for member in self.members.values() if member.role is Role.OWNER]


# ── making ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def create_folder(
    keys: DeviceKeys,
    label: str,
    algorithm: Algorithm,
    random16: bytes,
    *,
    name: str = "",
    chunker: Chunker = Chunker.FIXED,
) -> Membership:
    """Found a folder owned by `keys`. `random16` makes its id unique, `name` is what others see of the owner."""
    genesis = Genesis(keys.device_id, name, label, algorithm, chunker, random16, keys.card.encode())
    return fold([sign_link(keys, b"", (), genesis).encoded])


def make_link(keys: DeviceKeys, membership: Membership, action: Action) -> bytes:
    """A signed link after all heads known here. PermissionDenied when it would not count, InputError when malformed."""
    if not membership.can(keys.device_id, action):
        raise PermissionDenied(_refusal(keys.device_id, membership, action))
    return sign_link(keys, membership.folder, membership.heads[:MAX_PREVS], action).encoded


def _refusal(author: DeviceId, membership: Membership, action: Action) -> str:
    what = type(action).__name__
    role = membership.role(author)
    if role is None:
        return f"this device is no member of {membership.label!r}, so it cannot change its membership ({what})"
    if role is Role.OWNER:
        return (
            f"{what} does not fit the state of {membership.label!r}: owners cannot change their own role, a device is "
            f"added once, epochs are numbered in turn, and a folder has room for {MAX_MEMBERS} members"
        )
    return f"{what} in {membership.label!r} needs an owner; this device is {role.label}: ask an owner to do it"


def fold(encoded_links: Iterable[bytes]) -> Membership:
    """The membership these links make, in whatever order they come. Errors as in `Membership.extend`."""
    links = {link.hash: link for link in map(decode_link, encoded_links)}
    graph = LinkGraph()
    for link in connected(links, lambda _: False):
        graph.insert(link)
    if not graph.nodes:
        raise InputError("a folder's membership begins with its genesis, and there is none")
    if len(graph.nodes) != len(links):
        raise InputError("membership link with an unknown predecessor")
    return _snapshot(graph)


def connected(links: Mapping[bytes, Link], known: Callable[[bytes], bool]) -> list[Link]:
    """Those links that stand on known ones, directly or through each other, predecessors first (Kahn's algorithm)."""
    waiting = {h: sum(not known(prev) for prev in link.prevs) for h, link in links.items()}
    followers: dict[bytes, list[bytes]] = {}
    for link_hash, link in links.items():
        for prev in link.prevs:
            if not known(prev):
                followers.setdefault(prev, []).append(link_hash)
    ready = [link_hash for link_hash, count in waiting.items() if not count]
    for link_hash in ready:
        for follower in followers.get(link_hash, ()):
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    return [links[link_hash] for link_hash in ready]


# ── folding ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(slots=True)
class _Life:
    """One device's way through the valid links."""

    card: DeviceCard | None
    name: str
    joined: tuple[int, bytes]
    role: Role | None
    last_role: Role
    windows: list[_Window]

    def grant(self, role: Role, floor: int) -> None:
        if role >= Role.EDITOR and (self.role or 0) < Role.EDITOR:
            self.windows.append(_Window(floor, []))
        self.role = self.last_role = max(self.role or role, role)

    def revoke(self, role: Role | None, node: Node) -> None:
        if self.windows and (role is None or role < Role.EDITOR):
            self.windows[-1].close(node)
        if self.role is not None:
            self.role = None if role is None else min(self.role, role)
            self.last_role = self.role or self.last_role


def _snapshot(graph: LinkGraph) -> Membership:
    graph.judge()
    lives: dict[DeviceId, _Life] = {}
    genesis = graph.nodes[0].link
    assert isinstance(genesis.action, Genesis)
    label = genesis.action.label
    ordered = graph.ordered()
    for node in ordered:
        if not node.valid:
            continue
        match node.link.action:
            case Genesis(name=name):
                _join(lives, node, name, Role.OWNER, 0)
            case Add(name=name, role=role, floor=floor):
                _join(lives, node, name, role, floor)
            case SetRole(device=device, role=role, cut=None, floor=floor):
                lives[DeviceId(device)].grant(role, floor)
            case SetRole(device=device, role=role):
                lives[DeviceId(device)].revoke(role, node)
            case Remove(device=device):
                lives[DeviceId(device)].revoke(None, node)
            case Rename(label=new_label):
                label = new_label
            case _:
                pass
    members, former = _split(lives)
    return Membership(
        genesis.folder_id,
        label,
        genesis.action.algorithm,
        genesis.action.chunker,
        seed_of(genesis.encoded),
        _epochs(ordered),
        members,
        former,
        graph.heads,
        {device: life.windows for device, life in lives.items()},
        graph,
    )


def _join(lives: dict[DeviceId, _Life], node: Node, name: str, role: Role, floor: int) -> None:
    link = node.link
    assert link.target is not None
    life = lives.get(link.target)
    if life is None:
        life = lives[link.target] = _Life(link.card, name, (node.rank[0], link.target), None, role, [])
    elif life.role is None:
        life.name, life.joined = name, (node.rank[0], link.target)
    life.card = life.card or link.card
    life.grant(role, floor)


def _split(lives: dict[DeviceId, _Life]) -> tuple[dict[DeviceId, Member], dict[DeviceId, Member]]:
    """(members, former members) in order of joining.

    Devices added concurrently can share a replica prefix or exceed the limit; then the earlier ones are members, and
    owners in any case: their links count, so one that nobody sees could remove all others. No two devices write under
    one prefix.
    """
    members: dict[DeviceId, Member] = {}
    former: dict[DeviceId, Member] = {}
    owner_of_prefix: dict[bytes, DeviceId] = {}
    for device, life in sorted(lives.items(), key=lambda item: item[1].joined):
        first = owner_of_prefix.setdefault(replica_device_prefix(device), device) == device
        counts = life.role is Role.OWNER or (life.role is not None and first and len(members) < MAX_MEMBERS)
        place = members if counts else former
        place[device] = Member(device, life.role or life.last_role, life.name, len(members) + len(former), life.card)
        if not first:
            life.windows.clear()
    return members, former


def _epochs(nodes: list[Node]) -> dict[bytes, KeyEpoch]:
    """Every epoch, the newest first. Links that count and name one key are one epoch: it knows what all of them do."""
    revocations = sum(1 << node.index for node in nodes if node.valid and node.link.revokes)
    found: dict[bytes, KeyEpoch] = {}
    for node in sorted(nodes, key=lambda node: not node.valid):
        action = node.link.action
        if not isinstance(action, Epoch) or not node.starts:
            continue
        stale = bool(revocations & ~node.past)
        same = found.get(action.key_id)
        if same is None:
            ladder = tuple(action.ladder)
            found[action.key_id] = KeyEpoch(action.number, action.key_id, bool(node.valid), stale, ladder)
        elif node.valid:
            number, ladder = max(same.number, action.number), same.ladder + tuple(action.ladder)
            found[action.key_id] = replace(same, number=number, stale=same.stale or stale, ladder=ladder)
    return dict(sorted(found.items(), key=lambda item: (item[1].number, item[0]), reverse=True))


def _cut(node: Node) -> list[tuple[bytes, int]]:
    action = node.link.action
    assert isinstance(action, Remove | SetRole)
    return action.cut or []
