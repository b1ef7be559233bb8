"""However changes, exchanges and interruptions interleave, all devices end with one tree and nothing is lost."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2psync.model.paths import RelPath, ancestors
from p2psync.ports import Kind
from p2psync.reconcile.conflicts import parse_conflict_name
from tests.reconcile.devices import Device, World, exchange, until_quiet

PATHS = [RelPath(p) for p in (b"a", b"b.txt", b"d", b"d/x", b"d/y.c", b"d/e", b"d/e/z")]
ACTIONS = (
    "write",
    "write",
    "write",
    "delete",
    "rename",
    "mkdir",
    "symlink",
    "touch",
    "scan",
    "sync",
    "sync",
    "apply",
    "part",
)

op = st.tuples(
    st.sampled_from(ACTIONS), st.integers(0, 2), st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**16 - 1)
)


def perform(devices: list[Device], number: int, step: tuple[str, int, int, int, int]) -> None:
    action, who, first, second, extra = step
    device, path = devices[who % len(devices)], PATHS[first]
    mtime = (number // 4) * 1_000_000_000
    match action:
        case "write":
            # Now and then two people write the same.
            text = b"same%d" % (extra % 3) if extra % 5 == 0 else b"text%d" % number
            device.user_write(path, Kind.FILE, text, mtime)
        case "symlink":
            device.user_write(path, Kind.SYMLINK, b"to%d" % (number if extra % 3 else 0), mtime)
        case "mkdir":
            device.user_write(path, Kind.DIRECTORY, b"", mtime)
        case "delete":
            device.user_delete(path)
        case "rename":
            sources = sorted(device.disk)
            if sources:
                device.user_rename(sources[extra % len(sources)], PATHS[second])
        case "touch":
            device.user_touch(path, mtime, 0o755 if extra % 2 else 0o644)
        case "scan":
            device.scan()
        case "sync":
            other = devices[(who + 1 + second % (len(devices) - 1)) % len(devices)] if len(devices) > 1 else device
            device.scan()
            exchange(device, other, -1 if extra % 3 else extra)
        case "apply":
            device.scan()
            device.apply_all()
        case "part":
            device.apply_all(extra % 4)


def check_converged(devices: list[Device], world: World) -> None:
    until_quiet(devices)
    trees = [d.tree() for d in devices]
    assert all(tree == trees[0] for tree in trees[1:])
    for device in devices:
        assert device.scan() == 0, "a scan of a quiet tree finds nothing"
        assert device.plan() == [], "nothing is left to do"
    shown = {node.content for node in devices[0].disk.values()}
    lost = world.written - world.superseded - shown
    assert not lost, [world.texts[c] for c in lost]
    for path in devices[0].disk:
        named = parse_conflict_name(path)
        assert named is None or parse_conflict_name(named.original) is None, "names of conflict copies do not nest"


@given(st.lists(op, max_size=30))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_converge(steps: list[tuple[str, int, int, int, int]]) -> None:
    world = World()
    devices = [Device(world, n) for n in (1, 2, 3)]
    for number, step in enumerate(steps):
        perform(devices, number, step)
    check_converged(devices, world)


@given(st.lists(op, max_size=30))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_viewer_follows_and_keeps_its_own_changes_to_itself(steps: list[tuple[str, int, int, int, int]]) -> None:
    world, aside = World(), World()
    writers, viewer = [Device(world, 1), Device(world, 2)], Device(aside, 3, writes=False)
    aside.texts = world.texts
    devices = [*writers, viewer]
    for number, step in enumerate(steps):
        perform(devices, number, step)
    check_viewer(writers, viewer, world, aside)


def check_viewer(writers: list[Device], viewer: Device, world: World, aside: World) -> None:
    until_quiet([*writers, viewer])
    check_converged(writers, world)
    tree = writers[0].tree()
    authors = {r.dot.replica for siblings in viewer.records.values() for r in siblings}
    assert viewer.replica not in authors
    assert viewer.scan() == 0
    local = {p for p, e in viewer.synced.items() if e.diverged}
    below_local = {p for p in {*viewer.disk, *tree} if any(a in local for a in ancestors(p))}
    above_local = {a for p in local for a in ancestors(p)}
    for path in sorted({*tree, *viewer.disk} - local - below_local - above_local):
        assert viewer.tree().get(path) == tree.get(path), path
    shown = {n.content for n in viewer.disk.values()}
    # What the viewer wrote and a writer wrote too is the folder's: it may be replaced like any synced file.
    assert not aside.written - aside.superseded - world.written - shown
    # What is left to plan stands below something of the viewer's own.
    assert all(any(a in local for a in ancestors(s.path)) for s in viewer.plan())
