"""What befalls the things that people look after: disks pulled out, databases lost, folders left and joined again."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import trio

from p2psync.model.paths import PRIVATE_DIRECTORY
from p2psync.ports import Kind, Rename
from p2psync.sync.members_file import MEMBERS
from p2psync.testing.inodes import BLOCK, Directory, File
from p2psync.testing.root import SimRoot
from p2psync.testing.snapshot import content_id

if TYPE_CHECKING:
    from tests.simulation.harness import Host, Story

Fault = Callable[["Story", "Host", random.Random], None]

_FOLDER = b"/sync/folder"
_ELSEWHERE = b"/sync/elsewhere"
_STATE = b"/state"


# ── the cast ────────────────────────────────────────────────────────────────────────────────────────────────────────
async def unfold(story: "Story") -> None:
    """Let the late join and the absent go and come back, when it is their time."""
    cast, began = story.cast, trio.current_time()
    for aspect in cast.aspects():
        story.note("world", f"fault {aspect}")
    for one, other in story.apart():
        story.sim.network.part(one, other)
    for name in cast.viewers:
        story.oracle.mute(name)
    moments: list[tuple[float, str, Callable[[Story, str], None]]] = []
    moments += [(share, name, _admit) for name, share in cast.late.items()]
    for name, (away, back) in cast.away.items():
        moments += [(away, name, _leave_network), (back, name, _come_back)]
    for share, name, act in sorted(moments, key=lambda moment: moment[:2]):
        await trio.sleep_until(began + share * story.plan.duration_s)
        act(story, name)


def relent(story: "Story") -> None:
    """The calm begins: everybody is there, every disk is in its place and has room, discovery works."""
    for name in story.cast.late:
        if name not in story.expelled:
            _admit(story, name)
    for name in story.cast.away:
        _come_back(story, name)
    _meet_again(story)
    if story.expelled:
        # Those who are left may have met through the removed only.
        for one, other in story.cast.apart():
            story.sim.network.unite(one, other)
    for host in story.hosts.values():
        _plug_in(host)
        _make_room(host)
    story.sim.discovery.loss = 0.0
    story.sim.discovery.repeat()


def _admit(story: "Story", name: str) -> None:
    # The devices of an account let each other in as what they are themselves.
    role = "editor" if story.station is None else "owner"
    story.members.setdefault(name, "viewer" if name in story.cast.viewers else role)
    story.note(name, "invited")
    for host in story.hosts.values():
        host.called.set()


def _leave_network(story: "Story", name: str) -> None:
    story.note(name, "gone away")
    for other in story.cast.devices:
        if other != name:
            story.sim.network.part(name, other)


def _come_back(story: "Story", name: str) -> None:
    story.note(name, "back again")
    for other in story.cast.devices:
        if other != name:
            story.sim.network.unite(name, other)
    for pair in story.apart():
        story.sim.network.part(*pair)


def _meet_again(story: "Story") -> None:
    """Those whom only a relay has joined meet as the cast has it, unless that is not to be."""
    if story.station is not None:
        apart = story.apart()
        for pair in combinations(story.cast.devices, 2):
            (story.sim.network.part if pair in apart else story.sim.network.unite)(*pair)


def _later(story: "Story", delay_s: float, act: Callable[[], None]) -> None:
    """Do something after a while, unless the calm comes first, which does it too."""

    async def wait() -> None:
        await trio.sleep(delay_s)
        act()

    assert story.troubles is not None
    story.troubles.start_soon(wait)


# ── databases ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _database(story: "Story", host: "Host", rng: random.Random) -> None:
    """The index of the folder is backed up; or it is lost or put back while the node is down."""
    _store_mishap(story, host, rng, "database", of_home=False)


def _home(story: "Story", host: "Host", rng: random.Random) -> None:
    """The same with the list of devices and folders."""
    _store_mishap(story, host, rng, "home", of_home=True)


def _store_mishap(story: "Story", host: "Host", rng: random.Random, what: str, *, of_home: bool) -> None:
    database, name = host.device.database, host.device.name
    paths = [path for path in database.paths() if path.endswith(_STATE) is of_home]
    if not paths:
        return
    path = rng.choice(paths)
    if path not in host.copies or rng.random() < 0.3:
        host.copies[path] = database.copy(path)
        story.note(name, f"{what} backed up")
        return
    snapshot = host.copies[path] if rng.random() < 0.6 else None
    if of_home:
        if not story.may_orphan(host):
            return
        host.orphaned = True

    def change() -> None:
        if snapshot is None and not of_home and not _has_members(host):
            if not story.may_orphan(host):
                return
            host.orphaned = True
        database.restore(path, snapshot)
        host.lose_track()
        story.note(name, f"{what} lost" if snapshot is None else f"{what} restored")

    host.meanwhile.append(change)
    host.die(power=rng.random() < 0.3, resting_s=rng.choice((0.1, 5.0)))


def _has_members(host: "Host") -> bool:
    """Whether a lost index can be made anew from what stands beside the files; else the device must join again."""
    try:
        host.device.disk.find(host.place + b"/" + MEMBERS)
    except FileNotFoundError:
        return False
    return True


# ── the folder's place ──────────────────────────────────────────────────────────────────────────────────────────────
def _private(story: "Story", host: "Host", rng: random.Random) -> None:
    """A person removes the private directory, or one of the files in it; what was kept there is gone."""
    if host.unplugged:
        return
    root = host.user_root()
    what = rng.choice((b"", b"/marker", b"/members", b"/life", b"/tmp", b"/history"))
    path = PRIVATE_DIRECTORY + what
    if root.stat(path) is None or (what in {b"", b"/marker"} and not story.may_orphan(host)):
        return
    host.orphaned |= what in {b"", b"/marker"}
    story.oracle.discarded(_contents_below(host, path))
    _remove_tree(root, path)
    story.note(host.device.name, f"removed {path.decode()}")


def _contents_below(host: "Host", path: bytes) -> list[bytes]:
    node = host.device.disk.find(host.place + b"/" + path)
    found: list[bytes] = []
    stack = [node]
    while stack:
        match stack.pop():
            case Directory() as directory:
                stack.extend(inode for _, inode in directory.entries.values())
            case File() as file:
                found.append(content_id(file.read(0, file.size)))
    return found


def _remove_tree(root: SimRoot, path: bytes) -> None:
    stat = root.stat(path)
    if stat is not None and stat.kind is Kind.DIRECTORY:
        for name, _ in root.scan(path):
            _remove_tree(root, path + b"/" + name)
        root.rmdir(path)
    elif stat is not None:
        root.unlink(path)


def _mount(story: "Story", host: "Host", rng: random.Random) -> None:
    """The folder's disk is pulled out: an empty directory is left, or nothing; it comes back later."""
    if host.unplugged:
        return
    host.unplugged = True
    disk = host.device.disk
    if rng.random() < 0.5:
        disk.unmount(_FOLDER)
        host.plug = partial(disk.mount, _FOLDER)
        story.note(host.device.name, "unmounted")
    else:
        _move(host, _FOLDER, _ELSEWHERE)
        if rng.random() < 0.5:
            disk.make_directories(_FOLDER)
        host.plug = partial(_move, host, _ELSEWHERE, _FOLDER)
        story.note(host.device.name, "moved away")
    _later(story, rng.choice((1.0, 10.0, 60.0)), partial(_plug_in, host))


def _move(host: "Host", source: bytes, target: bytes) -> None:
    """Rename the folder's directory, durably; an empty one that has taken its place makes way."""
    disk = host.device.disk
    with suppress(FileNotFoundError):
        disk.user_root(b"/sync").rmdir(target.removeprefix(b"/sync/"))
    above = disk.user_root(b"/sync")
    how = Rename.NOREPLACE if above.capabilities.noreplace else Rename.REPLACE
    above.rename(source.removeprefix(b"/sync/"), target.removeprefix(b"/sync/"), how)
    above.sync_directory(b"")
    host.place = target


def _plug_in(host: "Host") -> None:
    """Put the folder back in its place; nobody may have written where it was missing."""
    if not host.unplugged:
        return
    with suppress(FileNotFoundError):
        strangers = host.device.disk.user_root(_FOLDER).scan(b"")
        if strangers:
            raise AssertionError(f"{host.device.name} wrote {strangers} where the folder was not mounted")
    host.plug()
    host.unplugged = False
    host.story.note(host.device.name, "back in place")
    host.called.set()


def _fill(story: "Story", host: "Host", rng: random.Random) -> None:
    """The disk fills up, and is freed after a while."""
    disk = host.device.disk
    disk.profile = replace(disk.profile, capacity=disk.used_blocks * BLOCK + rng.choice((0, 8 * BLOCK, 300 << 20)))
    story.note(host.device.name, "disk filled")
    _later(story, rng.choice((5.0, 60.0)), partial(_make_room, host))


def _make_room(host: "Host") -> None:
    host.device.disk.profile = host.story.cast.profile(host.device.name)


# ── what people decide ──────────────────────────────────────────────────────────────────────────────────────────────
def _order(story: "Story", host: "Host", rng: random.Random) -> None:
    """A folder is paused, resumed, scanned, or left and joined again."""
    what = rng.choice(("pause", "resume", "scan", "leave"))
    if what == "leave":
        if not story.may_orphan(host):
            return
        host.orphaned = True
    host.order(what)


def _expel(story: "Story", host: "Host", rng: random.Random) -> None:
    """A device is taken out of the folder, or let in again."""
    del rng
    founder, *_ = story.cast.devices
    name = host.device.name
    if name == founder or story.relay_alone:
        return
    if name in story.members:
        del story.members[name]
        story.expelled.add(name)
    elif name in story.expelled:
        story.expelled.discard(name)
        _admit(story, name)
    story.hosts[founder].called.set()


MISHAPS: dict[str, Fault] = {
    "database": _database,
    "home": _home,
    "private": _private,
    "mount": _mount,
    "fill": _fill,
    "order": _order,
    "expel": _expel,
}
