"""Cases for the planner in the manner of Dropbox's CanopyCheck: one tree, perturbed on every device, brought together.

A case is made and run from one `Random`, so that a number names it and hypothesis can shrink it. Everything that
decides is the code that ships; disk, network and people are stand-ins (`devices`). Independent random trees would meet
nowhere, so all devices start from one tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from p2psync.model.merkle import Summary, leaf_hash
from p2psync.model.paths import RelPath, ancestors, path_key
from p2psync.model.records import record_id, winner
from p2psync.model.versions import Dot
from p2psync.ports import Kind
from p2psync.reconcile.conflicts import parse_conflict_name, short_id
from p2psync.reconcile.plan import Displace
from tests.model.tries import MemoryTrie
from tests.reconcile.devices import Device, Node, World, fold, shuffled

NAMES = tuple(RelPath(p) for p in (b"a", b"a/x", b"b.txt", b"d", b"d/x", b"d/y.c", b"d/e", b"d/e/z"))
TWINS = tuple(RelPath(p) for p in (b"A", b"D", b"D/x", b"D/X", b"d/X", b"D/E/z", b"caf\xc3\xa9", b"cafe\xcc\x81"))
OPERATIONS = ("write",) * 4 + ("delete",) * 3 + ("rename",) * 2 + ("mkdir", "symlink", "touch", "chmod")
ROUNDS = 12
"""Complete rounds (everybody scans, applies and sends) within which every case must come to rest."""

Shown = tuple[Kind, bytes, bool]
Copies = dict[tuple[RelPath, Kind, bytes], set[str]]
"""Conflict copies: which path they are of, what they hold, and whom their names give as the author."""


@dataclass(frozen=True)
class Version:
    """What one person left at one path: `node` None when it is gone."""

    node: Node | None
    dot: Dot
    unseeing: bool = False
    """Whether it was written where the base has something that its author's disk could not show."""

    def rank(self) -> tuple[bool, bool, Dot]:
        """An edit beats a deletion, a directory beats a file, the higher Lamport counter the lower."""
        return self.node is not None, _is_directory(self.node), self.dot


@dataclass
class Expected:
    """What must come out of a meeting."""

    tree: dict[RelPath, Shown] = field(default_factory=dict)
    copies: Copies = field(default_factory=dict)
    """Those that must be there."""
    perhaps: Copies = field(default_factory=dict)
    """Those that may be there."""
    either: set[RelPath] = field(default_factory=set)
    """Where the name is a version's or nobody's, as it comes, and the others are copies."""


@dataclass
class Case:
    """Devices of one folder, and what people did to them."""

    random: Random
    world: World = field(default_factory=World)
    aside: World = field(default_factory=World)
    """What viewers write: never anybody else's."""
    devices: list[Device] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    texts: int = 0
    names: tuple[RelPath, ...] = NAMES
    """What people call things here."""

    @property
    def writers(self) -> list[Device]:
        return [d for d in self.devices if d.writes]

    @property
    def viewers(self) -> list[Device]:
        return [d for d in self.devices if not d.writes]

    def name(self, device: Device) -> str:
        return f"device {self.devices.index(device)}"


# ── making a case ───────────────────────────────────────────────────────────────────────────────────────────────────
def begin(random: Random) -> Case:
    """Two to four devices that have one tree."""
    case = Case(random)
    case.aside.texts, case.aside.devices, case.aside.seen = case.world.texts, case.world.devices, case.world.seen
    count = random.choice((2, 2, 2, 3, 3, 4))
    viewer = random.randrange(1, count) if random.random() < 0.2 else 0
    folding = random.randrange(count) if random.random() < 0.2 else -1
    for number in range(count):
        world = case.aside if viewer and number == viewer else case.world
        device = Device(world, number + 1, writes=world is case.world, folding=number == folding)
        case.devices.append(device)
        case.story.append(f"device {number}{'' if device.writes else ', viewer'}{', folding' * device.folding}")
    case.names = NAMES + TWINS if folding >= 0 else NAMES
    if random.random() < 0.4:
        # Few names, many meetings.
        case.names = tuple(random.sample(case.names, 3))
    for _ in range(random.randint(1, 6)):
        act(case, case.devices[0], random.choice(("write", "write", "write", "mkdir", "symlink")))
    case.devices[0].scan()
    for other in case.devices[1:]:
        other.receive([r for records in case.devices[0].records.values() for r in records])
        other.apply_all()
    return case


def act(case: Case, device: Device, operation: str) -> None:
    """A person at `device` does something to the tree."""
    random = case.random
    known = sorted(device.disk)
    path = random.choice(known) if known and random.random() < 0.6 else random.choice(case.names)
    mtime = random.randrange(4) * 10**9
    case.texts += 1
    text = b"text%d" % case.texts if random.random() < 0.9 else b"same"
    case.story.append(f"{case.name(device)}: {operation} {path!r} {text!r} {mtime // 10**9}")
    match operation:
        case "write":
            device.user_write(path, Kind.FILE, text, mtime)
        case "symlink":
            device.user_write(path, Kind.SYMLINK, text, mtime)
        case "mkdir":
            device.user_write(path, Kind.DIRECTORY, b"", mtime)
        case "delete":
            device.user_delete(path)
        case "rename":
            target = random.choice(case.names)
            case.story[-1] += f" to {target!r}"
            device.user_rename(path, target)
        case "touch":
            node = device.node(path)
            device.user_touch(path, mtime, 0o644 if node is None else node.mode)
        case "chmod":
            node = device.node(path)
            if node is not None:
                device.user_touch(path, node.mtime, node.mode ^ 0o111)


def perturb(case: Case, device: Device, most: int = 3) -> None:
    for _ in range(case.random.randint(1, most)):
        act(case, device, case.random.choice(OPERATIONS))


# ── running it ──────────────────────────────────────────────────────────────────────────────────────────────────────
def deliver(source: Device, target: Device, random: Random, loss: float = 0.0) -> int:
    """Send what the other has not, and some of what it has, in any order; how many paths that changed."""
    sent = []
    for path, records in source.records.items():
        if target.records.get(path) != records or random.random() < 0.05:
            sent += records
    if loss:
        sent = [r for r in sent if random.random() >= loss]
    random.shuffle(sent)
    if sent and random.random() < 0.1:
        sent.append(random.choice(sent))
    before = {r.path: target.records.get(r.path) for r in sent}
    target.receive(sent)
    return sum(target.records[path] != records for path, records in before.items())


def work(case: Case, device: Device, *, careless: bool = False) -> int:
    """Plan and apply, in any order that keeps the rules; `careless`: in any order at all, and not to the end.

    Returns how many steps were done. In an order that keeps the rules every step must find what it needs.
    """
    steps = device.plan()
    if careless:
        case.random.shuffle(steps)
        del steps[case.random.randint(0, len(steps)) :]
    else:
        steps = shuffled(steps, case.random, folding=device.folding)
    done = 0
    for step in steps:
        record = None if isinstance(step, Displace) else step.record
        able = not careless and (record is None or device.obtainable(record))
        success = device.apply(step)
        case.story.append(f"{case.name(device)}: {'' if success else 'cannot '}{type(step).__name__} {step.path!r}")
        assert success or not able, f"{step} did not find what it needs"
        done += success
    return done


def mingle(case: Case) -> None:
    """Some scans, lost and late messages, and interrupted batches."""
    random = case.random
    for _ in range(random.randrange(3 * len(case.devices))):
        device = random.choice(case.devices)
        match random.randrange(4):
            case 0:
                device.scan()
            case 1:
                work(case, device, careless=True)
            case _:
                other = random.choice(case.devices)
                if other is not device:
                    deliver(device, other, random, loss=0.3)


def settle(case: Case) -> int:
    """Go on until nothing changes any more; the number of rounds that took."""
    random = case.random
    for number in range(ROUNDS):
        changes = 0
        order = list(case.devices)
        random.shuffle(order)
        for device in order:
            changes += device.scan()
            changes += work(case, device, careless=number == 0 and random.random() < 0.5)
            others = [d for d in order if d is not device]
            random.shuffle(others)
            changes += sum(deliver(device, other, random) for other in others)
        if not changes and number:
            return number
    raise AssertionError("does not come to rest")


def run(case: Case) -> None:
    """AssertionError, with the story, when a property does not hold."""
    try:
        _run(case)
    except Exception as error:
        raise AssertionError("\n".join([str(error), *case.story])) from error


def _run(case: Case) -> None:
    random = case.random
    if random.random() < 0.6:
        _check_meeting(case)
    else:
        for _ in range(random.randint(1, 3)):
            if case.viewers and random.random() < 0.15:
                promote(case)
            for device in random.sample(case.devices, random.randint(1, len(case.devices))):
                perturb(case, device)
                if random.random() < 0.5:
                    mingle(case)
            mingle(case)
        settle(case)
    check(case)
    plain = [d for d in case.writers if not d.folding]
    if plain and random.random() < 0.4:
        _check_last_word(case, random.choice(plain))


def _check_last_word(case: Case, device: Device) -> None:
    """At rest, whatever lies behind: where only one person changes something, everybody gets exactly that.

    Not where a directory stands only for what lives in it: with the last of it goes the directory, and a file that had
    made room may be back. An open conflict may still be settled at the device that had the loser.
    """
    implied = any(n.kind is Kind.DIRECTORY and _is_implied(device, p) for p, n in device.disk.items())
    contested = any(len(records) > 1 for records in device.records.values())
    perturb(case, device)
    device.scan()
    tree, device.steps = device.tree(), 0
    settle(case)
    assert implied or device.tree() == tree, "something is not as the only change left it"
    assert implied or contested or not device.steps, "where the only change was made, nothing is left to do"
    check(case)


def _is_implied(device: Device, path: RelPath) -> bool:
    wanted = winner(device.records[path])
    return device.synced[path].implied or wanted.deleted or wanted.kind is not Kind.DIRECTORY


def promote(case: Case) -> None:
    """The viewer may write from now on: what it kept to itself is everybody's."""
    for device in case.viewers:
        device.writes, device.world = True, case.world
    case.world.written |= case.aside.written
    case.world.superseded |= case.aside.superseded
    case.story.append("the viewer becomes a writer")


def _check_meeting(case: Case) -> None:
    """Everybody changes the same tree once and says so; then they meet, and the outcome is known beforehand."""
    random = case.random
    base = [dict(device.disk) for device in case.devices]
    changed = random.sample(case.devices, random.randint(1, len(case.devices)))
    nodes = [{p: replace(n) for p, n in disk.items()} for disk in base]
    authors = {p: records[0].dot for p, records in case.devices[0].records.items()}
    for device in changed:
        perturb(case, device, 4)
    for device in case.devices:
        device.scan()
        device.steps = 0
    above = {a for paths in (*nodes, *(d.disk for d in case.devices)) for p in paths for a in ancestors(p)}
    outcome = expected(case, {p: Version(n, authors[p]) for p, n in nodes[0].items()}, nodes)
    settle(case)
    for device in case.writers:
        if not device.folding:
            tree, copies = canonical(device.tree())
            clear = {path: shown for path, shown in tree.items() if path not in outcome.either}
            assert clear == outcome.tree, f"{case.name(device)} has something else than was to be expected"
            for key in sorted(copies.keys() | outcome.copies.keys()):
                assert key in copies, f"{case.name(device)} lacks the copy {key}"
                # A file may have made room for entries that turn out to be deleted: it is back, its copy stays. So does
                # that of a content which lost to another one before a further version of it came and won.
                explained = outcome.copies.get(key) or outcome.perhaps.get(key)
                assert explained or key[0] in above, f"{case.name(device)}: {key} is no copy"
                # Of several authors of one content, any may give the name.
                assert copies[key] <= (explained or copies[key]), "a copy is named after someone else"
    if len(changed) == 1 and changed[0].writes and not changed[0].folding:
        assert not changed[0].steps, "where the only change was made, nothing is left to do"


# ── what must come out ──────────────────────────────────────────────────────────────────────────────────────────────
def expected(case: Case, base: dict[RelPath, Version], before: list[dict[RelPath, Node]]) -> Expected:
    """The tree that the writers' changes make together, said without version vectors: the specification.

    A deletion loses to any change; of several versions the best ranked has the name, the others are copies beside it,
    and a copy may stay when its content wins in the end; what lives keeps its directories, and a file makes room for
    them. So it does for a directory that its author could not see, and where somebody else has deleted that, it depends
    on who hears of what first whether the file is back or stays a copy. `before` is what each device showed.
    """
    best: dict[RelPath, Version] = dict(base)
    live: dict[RelPath, list[Version]] = {}
    for path, versions in _changes(case, base, before).items():
        best[path] = max(versions, key=Version.rank)
        live[path] = versions
    outcome = Expected()
    needed = {a for p, v in best.items() if v.node is not None for a in ancestors(p)}
    for path in {*best, *needed}:
        shown = Node(Kind.DIRECTORY) if path in needed else best[path].node
        if shown is None:
            continue
        versions = live.get(path, [])
        gave_way = path in base and _is_directory(base[path].node) and any(version.unseeing for version in versions)
        if gave_way and not _is_directory(shown):
            outcome.either.add(path)
        else:
            outcome.tree[path] = shown.kind, shown.text, shown.kind is Kind.FILE and bool(shown.mode & 0o100)
        for version in versions:
            other = version.node
            if other is None or other.kind is Kind.DIRECTORY:
                continue
            alike = (other.kind, other.text) == (shown.kind, shown.text)
            if alike and version is best[path] and path not in outcome.either:
                continue
            which = outcome.perhaps if alike or path in outcome.either else outcome.copies
            which.setdefault((path, other.kind, other.text), set()).add(short_id(version.dot.replica))
    return outcome


def _is_directory(node: Node | None) -> bool:
    return node is not None and node.kind is Kind.DIRECTORY


def _changes(
    case: Case, base: dict[RelPath, Version], before: list[dict[RelPath, Node]]
) -> dict[RelPath, list[Version]]:
    """What each writer changed, by path; each change was recorded, and nothing else.

    Who could not see a version of the base, because the disk cannot hold it, did not replace it.
    """
    changes: dict[RelPath, list[Version]] = {}
    replaced: set[RelPath] = set()
    for device, old in zip(case.devices, before, strict=True):
        said = {p: r.dot for p, records in device.records.items() for r in records if r.dot.replica == device.replica}
        if device is case.devices[0]:
            said = {p: dot for p, dot in said.items() if p not in base or dot != base[p].dot}
        for path in sorted({*old, *device.disk}) if device.writes else ():
            was, now = old.get(path), device.disk.get(path)
            unseen = base[path] if was is None and path in base else None
            if _same(was, now) or (unseen is not None and _same(unseen.node, now)):
                continue
            assert path in said, "a change was not recorded"
            versions = changes.setdefault(path, [])
            versions.append(Version(now, said.pop(path), unseeing=unseen is not None))
            if unseen is None and path in base:
                replaced.add(path)
        assert not said, "recorded what nobody did"
    for path, versions in changes.items():
        if path in base and path not in replaced:
            versions.append(base[path])
    return changes


def _same(was: Node | None, now: Node | None) -> bool:
    if was is None or now is None:
        return was is now
    touched = was.kind is Kind.FILE and (was.mtime, was.mode & 0o100) != (now.mtime, now.mode & 0o100)
    return (was.kind, was.text) == (now.kind, now.text) and not touched


def canonical(tree: dict[RelPath, Shown]) -> tuple[dict[RelPath, Shown], Copies]:
    """A tree with its conflict copies apart."""
    named = {path: parse_conflict_name(path) for path in tree}
    rest = {path: shown for path, shown in tree.items() if named[path] is None}
    copies: Copies = {}
    for path, found in named.items():
        if found is not None:
            copies.setdefault((found.original, *tree[path][:2]), set()).add(found.device)
    return rest, copies


def check(case: Case) -> None:
    """What holds for every case at rest."""
    for device in case.devices:
        assert device.scan() == 0, f"{case.name(device)}: a second scan finds something"
    roots = {root(device) for device in case.devices}
    assert len(roots) == 1, "the records differ"
    plain = [d for d in case.writers if not d.folding]
    for device in plain:
        assert device.plan() == [], f"{case.name(device)}: something is left to do"
        assert device.tree() == plain[0].tree(), f"{case.name(device)} shows another tree"
    everything = {n.content for d in case.writers for n in d.disk.values()}
    shown = {n.content for n in plain[0].disk.values()} if plain else everything
    lost = case.world.written - case.world.superseded - shown
    assert not lost, f"lost: {[case.world.texts[c] for c in lost]}"
    for path in plain[0].disk if plain else ():
        copy = parse_conflict_name(path)
        assert copy is None or parse_conflict_name(copy.original) is None, "names of conflict copies nest"
    private = case.aside.written - case.world.written
    assert not private & everything, "what a viewer wrote has spread"
    for device in case.devices:
        if device.folding and device.writes and plain:
            _check_folding(device, plain[0])
        if not device.writes and plain and not device.folding:
            _check_viewer(case, device, plain[0])


def _check_folding(device: Device, plain: Device) -> None:
    """A disk that folds names shows all but what collides with something it shows."""
    tree, whole = device.tree(), plain.tree()
    assert all(whole.get(p) == shown for p, shown in tree.items()), "shows what nobody else has"
    keys = {fold(p) for p in tree}
    for path in whole.keys() - tree.keys():
        assert any(fold(p) in keys and p not in tree for p in (*ancestors(path), path)), f"{path!r} is missing"


def _check_viewer(case: Case, viewer: Device, plain: Device) -> None:
    """A viewer shows the folder, but for its own changes and what these are in the way of; it loses none of them."""
    local = {p for p, e in viewer.synced.items() if e.diverged}
    mine, tree = viewer.tree(), plain.tree()
    above = {a for p in local for a in ancestors(p)}
    for path in {*tree, *mine} - local - above:
        if not any(a in local for a in ancestors(path)):
            assert mine.get(path) == tree.get(path), f"the viewer shows another {path!r}"
    kept = {n.content for n in viewer.disk.values()}
    assert not case.aside.written - case.aside.superseded - case.world.written - kept, "a viewer's change is lost"
    assert all(any(a in local for a in ancestors(s.path)) for s in viewer.plan()), "something is left to do"


def root(device: Device) -> Summary:
    """The Merkle root over what a device has on record."""
    trie = MemoryTrie()
    leaves: dict[bytes, bytes | None] = {}
    for path, records in device.records.items():
        key = path_key(path)
        leaves[key] = leaf_hash(key, (record_id(r.encode()) for r in records))
    return trie.change(leaves)  # type: ignore[arg-type]
