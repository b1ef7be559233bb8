"""The simulated disk: what a power cut may do and may not, faults, permissions, folding names, mounts."""

import errno
import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import EscapeError
from p2psync.ports import FsCapabilities, Rename
from p2psync.testing import DiskProfile, SimDisk, SimulatedCrash
from p2psync.testing.contracts import fails, get, put
from p2psync.testing.inodes import Directory
from p2psync.testing.root import SimRoot
from p2psync.testing.snapshot import tree

Outcomes = set[tuple[tuple[bytes, bytes], ...]]


def make(profile: DiskProfile | None = None) -> SimDisk:
    disk = SimDisk(profile, wall_ns=lambda: 10**18, now=lambda: 0.0)
    disk.make_directories(b"/f")
    return disk


def files(disk: SimDisk) -> tuple[tuple[bytes, bytes], ...]:
    """Every file below /f with its content, through the public calls."""
    root, found, stack = disk.user_root(b"/f"), [], [b""]
    while stack:
        directory = stack.pop()
        for name, stat in root.scan(directory):
            path = directory + b"/" + name if directory else name
            if stat.kind.name == "DIRECTORY":
                stack.append(path)
                found.append((path + b"/", b""))
            else:
                found.append((path, get(root, path)))
    return tuple(sorted(found))


def after_crash(story: Callable[[SimRoot], None], tries: int = 200) -> Outcomes:
    """Every state that many power cuts after the same story lead to."""
    outcomes: Outcomes = set()
    for seed in range(tries):
        disk = make()
        story(disk.open_root(b"/f"))
        disk.crash(random.Random(seed))
        outcomes.add(files(disk))
    return outcomes


def test_nothing_unsynced_is_sure_and_anything_may_survive() -> None:
    outcomes = after_crash(lambda root: put(root, b"a", b"x" * 1000))
    assert () in outcomes
    assert ((b"a", b""),) in outcomes
    assert ((b"a", b"x" * 512),) in outcomes, "a torn write"
    assert ((b"a", bytes(1000)),) in outcomes, "a length without its bytes"
    assert ((b"a", b"x" * 1000),) in outcomes


def test_fsync_of_a_file_does_not_keep_its_name() -> None:
    def story(root: SimRoot) -> None:
        file = root.create(b"a")
        file.pwrite(b"1", 0)
        file.sync()

    assert after_crash(story) == {(), ((b"a", b"1"),)}


def test_file_and_directory_synced_is_durable() -> None:
    def story(root: SimRoot) -> None:
        file = root.create(b"a")
        file.pwrite(b"1", 0)
        file.sync()
        root.sync_directory(b"")
        root.chmod(b"a", 0o700)

    assert after_crash(story) == {((b"a", b"1"),)}


def test_atomic_replace_without_fsync_may_show_an_empty_file_and_with_it_never() -> None:
    def story(root: SimRoot, *, sync: bool) -> None:
        put(root, b"a", b"old")
        root.sync_all()
        file = root.create(b"t")
        file.pwrite(b"new", 0)
        if sync:
            file.sync()
        root.rename(b"t", b"a", Rename.REPLACE)

    assert ((b"a", b""),) in after_crash(lambda root: story(root, sync=False))
    safe = {((b"a", b"old"),), ((b"a", b"new"),), ((b"a", b"old"), (b"t", b"new"))}
    assert after_crash(lambda root: story(root, sync=True)) == safe


def test_a_rename_between_directories_is_in_both_or_neither() -> None:
    def story(root: SimRoot) -> None:
        root.mkdir(b"d")
        put(root, b"a", b"1")
        root.sync_all()
        root.mkdir(b"d/e")
        root.rename(b"a", b"d/e/a", Rename.NOREPLACE)

    stays = ((b"a", b"1"), (b"d/", b""))
    moved = ((b"d/", b""), (b"d/e/", b""), (b"d/e/a", b"1"))
    assert after_crash(story) == {stays, tuple(sorted((*stays, (b"d/e/", b"")))), moved}


def test_a_synced_file_in_an_unsynced_directory_may_be_gone() -> None:
    def story(root: SimRoot) -> None:
        root.mkdir(b"d")
        file = root.create(b"d/a")
        file.sync()
        root.sync_directory(b"d")

    assert after_crash(story) == {(), ((b"d/", b""), (b"d/a", b""))}


def test_operations_of_one_directory_survive_in_order() -> None:
    def story(root: SimRoot) -> None:
        for name in (b"1", b"2", b"3"):
            root.create(name)

    names = {tuple(name for name, _ in outcome) for outcome in after_crash(story)}
    assert names == {(), (b"1",), (b"1", b"2"), (b"1", b"2", b"3")}


def test_a_deleted_file_may_come_back_whole() -> None:
    def story(root: SimRoot) -> None:
        put(root, b"a", b"1")
        root.sync_all()
        root.unlink(b"a")

    assert after_crash(story) == {(), ((b"a", b"1"),)}


def test_a_second_fsync_after_a_failed_one_lies() -> None:
    disk = make()
    root = disk.open_root(b"/f")
    file = root.create(b"a")
    root.sync_directory(b"")
    file.pwrite(b"x" * 5000, 0)
    disk.faults.fail(1, errno.EIO, {"sync"})
    with fails(errno.EIO):
        file.sync()
    file.sync()
    file.pwrite(b"tail", 5000)
    root.sync_all()
    assert get(root, b"a") == b"x" * 5000 + b"tail"
    disk.crash(random.Random(1))
    assert files(disk) == ((b"a", bytes(5000) + b"tail"),)


def test_what_is_old_was_written_back() -> None:
    time = [0.0]
    for seed in range(20):
        disk = SimDisk(DiskProfile(writeback_s=30), wall_ns=lambda: 10**18, now=lambda: time[0])
        disk.make_directories(b"/f")
        time[0] = 0.0
        put(disk.open_root(b"/f"), b"a", b"1")
        time[0] = 31.0
        put(disk.open_root(b"/f"), b"b", b"2")
        disk.crash(random.Random(seed))
        assert (b"a", b"1") in files(disk)


def test_handles_die_in_a_crash_and_the_disk_lives_on() -> None:
    disk = make()
    root = disk.open_root(b"/f")
    file = root.create(b"a")
    disk.crash(random.Random(1))
    calls: list[Callable[[], object]] = [
        partial(root.stat, b"a"),
        partial(file.pwrite, b"1", 0),
        partial(root.identity),
        partial(root.sync_all),
    ]
    for call in calls:
        with pytest.raises(SimulatedCrash):
            call()
    put(disk.open_root(b"/f"), b"b", b"2")


OPERATION = st.tuples(
    st.sampled_from(["put", "mkdir", "rename", "exchange", "unlink", "rmdir", "sync", "sync_all", "link"]),
    st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/e", b"d/e/a", b"e"]),
    st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/e", b"d/e/a", b"e"]),
)


def perform(root: SimRoot, kind: str, one: bytes, other: bytes) -> None:
    match kind:
        case "put":
            put(root, one, one * 10)
        case "mkdir":
            root.mkdir(one)
        case "rename":
            root.rename(one, other, Rename.REPLACE)
        case "exchange":
            root.rename(one, other, Rename.EXCHANGE)
        case "unlink":
            root.unlink(one)
        case "rmdir":
            root.rmdir(one)
        case "sync":
            root.sync_directory(one)
        case "link":
            root.link(one, other)
        case _:
            root.sync_all()


@settings(max_examples=150, deadline=None)
@given(st.lists(OPERATION, max_size=25), st.integers(0, 1000))
def test_after_any_crash_the_disk_is_a_tree_and_accounts_are_right(
    operations: list[tuple[str, bytes, bytes]], seed: int
) -> None:
    disk = make()
    root = disk.open_root(b"/f")
    for kind, one, other in operations:
        try:
            perform(root, kind, one, other)
        except (OSError, EscapeError):
            continue
    disk.crash(random.Random(seed))
    seen: set[int] = set()
    stack = [disk.top]
    while stack:
        directory = stack.pop()
        assert directory.ino not in seen, "a directory with two names"
        seen.add(directory.ino)
        for _, node in directory.entries.values():
            assert node.links >= 1
            if isinstance(node, Directory):
                assert node.parent is directory
                stack.append(node)
    everything = files(disk)
    disk.crash(random.Random(seed + 1))
    assert files(disk) == everything, "what survived a crash is durable"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS])
def test_the_nth_operation_fails_once(number: int) -> None:
    disk = make()
    root = disk.open_root(b"/f")
    disk.faults.fail(2, number, {"create"}, b"/f/")
    put(root, b"a", b"1")
    root.mkdir(b"d")
    with fails(number):
        put(root, b"b", b"2")
    put(root, b"b", b"2")
    assert sum(disk.faults.happened.values()) == 1


def test_power_is_cut_at_the_nth_operation() -> None:
    disk = make()
    root = disk.open_root(b"/f")
    disk.faults.cut_power(2, {"pwrite", "rename"})
    put(root, b"a", b"1")
    with pytest.raises(SimulatedCrash):
        root.rename(b"a", b"b", Rename.REPLACE)
    with pytest.raises(SimulatedCrash):
        root.stat(b"a")
    disk.crash(random.Random(1))
    disk.open_root(b"/f").stat(b"a")


def test_another_program_acts_between_two_calls() -> None:
    disk = make()
    root = disk.open_root(b"/f")
    disk.faults.at(1, lambda: put(disk.user_root(b"/f"), b"a", b"user"), {"rename"})
    put(root, b"t", b"node")
    with pytest.raises(FileExistsError):
        root.rename(b"t", b"a", Rename.NOREPLACE)
    assert get(root, b"a") == b"user"


def test_a_full_disk_refuses_and_deleting_helps() -> None:
    disk = make(DiskProfile(capacity=10 * 4096))
    root = disk.open_root(b"/f")
    put(root, b"a", bytes(8 * 4096))
    with fails(errno.ENOSPC):
        put(root, b"b", bytes(3 * 4096))
    held = root.open(b"a")
    root.unlink(b"a")
    assert root.free_space()[0] == 2 * 4096, "still open"
    held.close()
    assert root.free_space() == (10 * 4096, 10 * 4096)


def test_permission_bits_stop_a_node_and_not_root_or_the_user() -> None:
    for privileged in (False, True):
        disk = make(DiskProfile(privileged=privileged))
        root, user = disk.open_root(b"/f"), disk.user_root(b"/f")
        user.mkdir(b"d")
        put(user, b"d/a", b"1")
        put(user, b"a", b"1")
        user.chmod(b"d", 0)
        user.chmod(b"a", 0o200)
        calls: list[Callable[[], object]] = [
            partial(root.scan, b"d"),
            partial(root.stat, b"d/a"),
            partial(root.open, b"a"),
            partial(root.mkdir, b"d/e"),
        ]
        for call in calls:
            with nullcontext() if privileged else fails(errno.EACCES):
                call()
        assert get(user, b"a") == b"1"


def test_a_case_insensitive_disk() -> None:
    disk = make(DiskProfile(FsCapabilities(case_insensitive=True)))
    root = disk.open_root(b"/f")
    put(root, b"Name", b"1")
    assert get(root, b"nAME") == b"1"
    with pytest.raises(FileExistsError):
        root.create(b"name")
    root.rename(b"Name", b"NAME", Rename.REPLACE)
    assert [name for name, _ in root.scan(b"")] == [b"NAME"]


def test_a_normalising_disk_shows_another_name() -> None:
    disk = make(DiskProfile(FsCapabilities(normalising=True)))
    root = disk.open_root(b"/f")
    put(root, "\u00e9".encode(), b"1")
    assert [name for name, _ in root.scan(b"")] == ["e\u0301".encode()]
    assert get(root, "\u00e9".encode()) == b"1"


def test_limits_of_poorer_file_systems() -> None:
    disk = make(DiskProfile(FsCapabilities(exchange=False, noreplace=False, symlinks=False, utf8_only=True)))
    root = disk.open_root(b"/f")
    put(root, b"a", b"1")
    put(root, b"b", b"2")
    for how in (Rename.EXCHANGE, Rename.NOREPLACE):
        with fails(errno.EINVAL):
            root.rename(b"a", b"b", how)
    with fails(errno.EPERM):
        root.symlink(b"a", b"s")
    with fails(errno.EILSEQ):
        root.create(b"\xff")


def test_an_unmounted_tree_is_gone_and_comes_back() -> None:
    disk = make()
    disk.make_mount(b"/mnt/stick")
    root = disk.open_root(b"/mnt/stick")
    before = root.identity()
    put(root, b"a", b"1")
    with fails(errno.EXDEV):
        disk.open_root(b"/").rename(b"mnt/stick/a", b"a", Rename.REPLACE)
    disk.unmount(b"/mnt/stick")
    with fails(errno.EIO):
        root.stat(b"a")
    assert root.identity().ino != before.ino
    assert disk.open_root(b"/mnt/stick").scan(b"") == []
    disk.mount(b"/mnt/stick")
    again = disk.open_root(b"/mnt/stick")
    assert again.identity().ino == before.ino
    assert get(again, b"a") == b"1"


def test_timestamps_have_the_granularity_of_the_disk() -> None:
    wall = 5_123_456_789
    profile = DiskProfile(FsCapabilities(granularity_ns=2_000_000_000))
    disk = SimDisk(profile, wall_ns=lambda: wall, now=lambda: 0.0)
    root = disk.open_root(b"/")
    put(root, b"a", b"1")
    stat = root.stat(b"a")
    assert stat is not None
    assert (stat.mtime_ns, stat.ctime_ns) == (4_000_000_000, 4_000_000_000)


def test_the_private_directory_is_no_part_of_the_visible_tree() -> None:
    disk = make()
    user = disk.user_root(b"/f")
    user.mkdir(b".p2psync")
    put(user, b".p2psync/marker", b"1")
    put(user, b"a", b"1", 0o755)
    user.symlink(b"x", b"s")
    top = disk.find(b"/f")
    assert isinstance(top, Directory)
    shown = tree(top)
    assert list(shown) == [b"a", b"s"]
    assert shown[b"a"].executable
    assert shown[b"s"].target == b"x"
