"""The rules one by one, told through devices in memory: each test is a story a person could tell."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.model.paths import RelPath, ancestors
from p2psync.ports import FsCapabilities, Kind
from p2psync.reconcile.batch import Move, arrange
from p2psync.reconcile.conflicts import conflict_name
from p2psync.reconcile.observe import Adopt, Forget, Publish, Refresh, Unchanged, observe
from p2psync.reconcile.plan import Create, Displace, MakeDirectory, Nothing, Remove, Replace, SetMetadata
from tests.reconcile.devices import Device, Node, World, exchange, until_quiet

P = RelPath(b"p.txt")
PLAIN = FsCapabilities()
FOLDING = FsCapabilities(case_insensitive=True, normalising=True)
D, DX = RelPath(b"d"), RelPath(b"d/x")


def two(world: World | None = None) -> tuple[World, Device, Device]:
    world = world or World()
    return world, Device(world, 1), Device(world, 2)


def both_have(text: bytes, path: RelPath = P) -> tuple[World, Device, Device]:
    world, a, b = two()
    a.user_write(path, Kind.FILE, text, 0)
    until_quiet([a, b])
    assert b.disk[path].text == text
    return world, a, b


def seen(device: Device, path: RelPath) -> object:
    return observe(
        path,
        device.disk_state(path),
        device.synced.get(path),
        device.records.get(path, []),
        may_write=device.writes,
        look_up=device.look_up,
    )


def test_an_edit_follows_what_was_on_the_disk_not_what_the_index_knows() -> None:
    _, a, b = both_have(b"1")
    b.user_write(P, Kind.FILE, b"2", 0)
    b.scan()
    a.user_write(P, Kind.FILE, b"3", 0)
    exchange(b, a)
    a.scan()
    assert len(a.records[P]) == 2, "concurrent, although the index knew the other edit"


def test_a_touched_file_publishes_metadata_and_moves_no_content() -> None:
    _, a, b = both_have(b"1")
    a.user_touch(P, 99, 0o755)
    published = seen(a, P)
    assert isinstance(published, Publish)
    assert published.draft.content == a.synced[P].content
    a.scan()
    exchange(a, b)
    assert [type(s) for s in b.plan()] == [SetMetadata]
    b.apply_all()
    assert (b.disk[P].mtime, b.disk[P].mode) == (99, 0o755)


@pytest.mark.parametrize("set_first", [(0, 0o755), (99, 0o644)])
def test_metadata_that_a_crash_left_half_set_is_completed(set_first: tuple[int, int]) -> None:
    _, a, b = both_have(b"1")
    old = (b.disk[P].mtime, b.disk[P].mode)
    a.user_touch(P, 99, 0o755)
    a.scan()
    exchange(a, b)
    mtime, mode = set_first
    b.user_touch(P, mtime or old[0], mode)
    assert isinstance(seen(b, P), Refresh)
    b.scan()
    assert [type(s) for s in b.plan()] == [SetMetadata]
    b.apply_all()
    assert (b.disk[P].mtime, b.disk[P].mode) == (99, 0o755)


def test_metadata_that_nobody_asked_for_is_a_persons() -> None:
    _, a, b = both_have(b"1")
    a.user_touch(P, 99, 0o755)
    a.scan()
    exchange(a, b)
    b.user_touch(P, 77, 0o755)
    assert isinstance(seen(b, P), Publish)


def test_metadata_that_is_put_back_after_it_was_applied_is_a_persons() -> None:
    _, a, b = both_have(b"1")
    before = b.disk[P].mtime
    a.user_touch(P, 99, 0o755)
    until_quiet([a, b])
    b.user_touch(P, before, 0o755)
    assert isinstance(seen(b, P), Publish)


def test_a_file_touched_while_its_replacement_waits_says_nothing() -> None:
    _, a, b = both_have(b"1")
    b.user_write(P, Kind.FILE, b"2", 0)
    b.scan()
    exchange(b, a)
    a.user_touch(P, 99, 0o644)
    assert isinstance(seen(a, P), Refresh)


def test_directories_and_symlinks_have_no_metadata_to_publish() -> None:
    _, a, _ = two()
    a.user_write(D, Kind.DIRECTORY, b"", 0)
    a.user_write(P, Kind.SYMLINK, b"x", 0)
    a.scan()
    a.user_touch(D, 5, 0o700)
    a.user_touch(P, 5, 0o777)
    assert a.scan() == 0


def test_the_same_content_on_both_sides_is_no_conflict() -> None:
    _, a, b = two()
    a.user_write(P, Kind.FILE, b"same", 0)
    b.user_write(P, Kind.FILE, b"same", 7)
    a.scan()
    exchange(a, b)
    assert isinstance(seen(b, P), Adopt)
    until_quiet([a, b])
    assert list(a.disk) == list(b.disk) == [P]


def test_a_deletion_stays_and_a_later_file_follows_it() -> None:
    _, a, b = both_have(b"1")
    a.user_delete(P)
    until_quiet([a, b])
    assert P not in b.disk
    b.user_write(P, Kind.FILE, b"2", 0)
    until_quiet([a, b])
    assert [r.deleted for r in a.records[P]] == [False]


def test_an_edit_beats_a_concurrent_deletion() -> None:
    _, a, b = both_have(b"1")
    a.user_delete(P)
    b.user_write(P, Kind.FILE, b"2", 0)
    until_quiet([a, b])
    assert a.disk[P].text == b.disk[P].text == b"2"


def test_what_vanished_after_it_was_superseded_is_forgotten() -> None:
    _, a, b = both_have(b"1")
    b.user_write(P, Kind.FILE, b"2", 0)
    b.scan()
    exchange(b, a)
    a.user_delete(P)
    assert isinstance(seen(a, P), Forget)


def test_deleting_after_a_conflict_does_not_bring_the_loser_back() -> None:
    _, a, b = both_have(b"1")
    a.user_write(P, Kind.FILE, b"2", 1)
    b.user_write(P, Kind.FILE, b"3", 1)
    until_quiet([a, b])
    assert len(a.disk) == 2
    winner_side = a if a.synced[P].sources[0].replica == a.replica else b
    winner_side.user_delete(P)
    until_quiet([a, b])
    assert P not in a.disk
    assert len(a.disk) == 1, "the conflict copy stays"


def test_moving_a_conflict_copy_back_resolves_the_conflict() -> None:
    _, a, b = both_have(b"1")
    a.user_write(P, Kind.FILE, b"2", 1)
    b.user_write(P, Kind.FILE, b"3", 1)
    until_quiet([a, b])
    copy = next(p for p in b.disk if p != P)
    text = b.disk[copy].text
    b.user_rename(copy, P)
    until_quiet([a, b])
    assert {p: n.text for p, n in a.disk.items()} == {P: text}


def test_a_copy_moved_back_by_its_author_is_not_lost_in_the_next_conflict() -> None:
    _, a, b = two()
    a.user_write(P, Kind.SYMLINK, b"mine", 0)
    b.user_write(P, Kind.DIRECTORY, b"", 0)
    until_quiet([a, b])
    b.user_delete(P)
    b.user_write(P, Kind.FILE, b"theirs", 0)
    copy = next(p for p in a.disk if p != P)
    a.user_rename(copy, P)
    until_quiet([a, b])
    assert {n.text for n in a.disk.values()} == {b"mine", b"theirs"}


def test_a_live_entry_keeps_the_directory_its_parent_lost() -> None:
    _, a, b = both_have(b"1", DX)
    a.user_delete(D)
    b.user_write(RelPath(b"d/new"), Kind.FILE, b"2", 0)
    until_quiet([a, b])
    assert sorted(a.disk) == sorted(b.disk) == [D, b"d/new"]


def test_a_file_makes_room_for_what_lives_below_its_name() -> None:
    world, a, b = both_have(b"1", DX)
    third = Device(world, 3)
    until_quiet([a, b, third])
    a.user_delete(D)
    a.user_write(D, Kind.FILE, b"file", 0)
    b.user_write(RelPath(b"d/new"), Kind.FILE, b"2", 0)
    a.scan()
    b.scan()
    exchange(b, a)
    assert [s.path for s in a.plan() if isinstance(s, Displace)] == [D]
    until_quiet([a, b, third])
    assert a.tree() == b.tree() == third.tree()
    assert a.disk[conflict_name(D, a.short, 0)].text == b"file"


def test_who_deletes_a_directory_deletes_the_claim_of_the_file_that_made_room_for_it() -> None:
    _, a, b = both_have(b"1", DX)
    a.user_delete(D)
    a.user_write(D, Kind.FILE, b"file", 0)
    b.user_write(RelPath(b"d/new"), Kind.FILE, b"2", 0)
    a.scan()
    until_quiet([a, b])
    copy = conflict_name(D, a.short, 0)
    a.user_write(copy, Kind.FILE, b"goes on", 0)
    a.user_delete(D)
    until_quiet([a, b])
    assert {p: n.text for p, n in a.disk.items()} == {p: n.text for p, n in b.disk.items()} == {copy: b"goes on"}


def test_a_viewer_keeps_its_edit_until_the_folder_moves_on() -> None:
    world = World()
    writer, viewer = Device(world, 1), Device(world, 2, writes=False)
    writer.user_write(P, Kind.FILE, b"1", 0)
    until_quiet([writer, viewer])
    viewer.user_write(P, Kind.FILE, b"mine", 5)
    until_quiet([writer, viewer])
    assert writer.disk[P].text == b"1"
    assert viewer.synced[P].diverged
    writer.user_write(P, Kind.FILE, b"2", 0)
    until_quiet([writer, viewer])
    assert viewer.disk[P].text == b"2"
    assert viewer.disk[conflict_name(P, viewer.short, 5)].text == b"mine"
    assert list(writer.disk) == [P]


def test_a_viewer_makes_no_copy_of_what_others_wrote() -> None:
    """The author has changed it meanwhile, so that nobody else makes the copy: the viewer would show it for ever."""
    world = World()
    author, other, viewer = Device(world, 1), Device(world, 2), Device(world, 3, writes=False)
    author.user_write(P, Kind.FILE, b"1", 0)
    author.scan()
    exchange(author, viewer)
    viewer.apply_all()
    assert viewer.disk[P].text == b"1"
    author.user_write(P, Kind.FILE, b"2", 0)
    other.user_write(RelPath(b"later"), Kind.FILE, b"", 0)
    other.user_write(P, Kind.FILE, b"3", 0)
    other.scan()
    exchange(other, viewer)
    viewer.apply_all()
    assert viewer.disk[P].text == b"3"
    until_quiet([author, other, viewer])
    assert author.tree() == other.tree() == viewer.tree()


def test_a_viewer_keeps_a_copy_of_what_it_wrote_when_it_was_an_editor() -> None:
    world = World()
    former, other = Device(world, 1), Device(world, 2)
    former.user_write(P, Kind.FILE, b"mine", 5)
    former.scan()
    other.user_write(RelPath(b"later"), Kind.FILE, b"", 0)
    other.user_write(P, Kind.FILE, b"3", 0)
    other.scan()
    former.writes = False
    exchange(other, former)
    former.apply_all()
    assert former.disk[P].text == b"3"
    assert former.disk[conflict_name(P, former.short, 5)].text == b"mine"


def test_a_viewer_that_may_write_again_publishes_what_it_kept() -> None:
    world = World()
    writer, viewer = Device(world, 1), Device(world, 2, writes=False)
    writer.user_write(P, Kind.FILE, b"1", 0)
    until_quiet([writer, viewer])
    viewer.user_write(P, Kind.FILE, b"mine", 5)
    viewer.scan()
    viewer.writes = True
    until_quiet([writer, viewer])
    assert writer.disk[P].text == b"mine"


def test_what_is_never_synchronised_is_never_a_change() -> None:
    _, a, _ = both_have(b"1")
    a.disk[P] = Node(Kind.OTHER)
    assert isinstance(seen(a, P), Unchanged)


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_rename_is_one_move() -> None:
    _, a, b = both_have(b"1")
    a.user_rename(P, RelPath(b"q.txt"))
    a.scan()
    exchange(a, b)
    assert [(s.source, s.path) for s in b.plan() if isinstance(s, Move)] == [(P, b"q.txt")]
    assert len(b.plan()) == 1


def test_a_directory_becomes_a_file_after_what_was_below_is_gone() -> None:
    _, a, b = both_have(b"1", DX)
    a.user_delete(D)
    a.user_write(D, Kind.FILE, b"2", 0)
    a.scan()
    exchange(a, b)
    assert [(type(s), s.path) for s in b.plan()] == [(Remove, DX), (Replace, D)]


@pytest.mark.parametrize("kind", [Kind.FILE, Kind.SYMLINK])
def test_what_made_room_for_entries_below_can_be_put_back(kind: Kind) -> None:
    world, a, b = two()
    c = Device(world, 3)
    a.user_write(D, Kind.DIRECTORY, b"", 0)
    until_quiet([a, b, c])
    a.user_write(D, kind, b"mine", 0)
    b.user_delete(D)
    c.user_write(DX, Kind.FILE, b"below", 0)
    until_quiet([a, b, c])
    (copy,) = (path for path in b.disk if path not in {D, DX})
    b.user_rename(copy, D)
    until_quiet([a, b, c])
    for device in (a, b, c):
        assert {path: node.text for path, node in device.disk.items()} == {D: b"mine"}


def test_missing_parents_are_implied_and_files_in_the_way_hold() -> None:
    _, a, b = both_have(b"1", DX)
    record = a.records[DX][0]
    batch = arrange([Create(DX, record, "")], lambda _: None, PLAIN)
    assert [(type(s), s.path) for s in batch.steps] == [(MakeDirectory, D), (Create, DX)]
    in_the_way = b.synced[DX]
    batch = arrange([Create(DX, record, "")], lambda p: in_the_way if p == D else None, PLAIN)
    assert not batch.steps
    assert [h.action.path for h in batch.held] == [DX]


def test_a_change_of_case_deletes_first_where_names_collide() -> None:
    _, a, b = both_have(b"1")
    a.user_rename(P, RelPath(b"P.TXT"))
    a.scan()
    exchange(a, b)
    removed = Remove(P, b.records.get(P, a.records[P])[0], "")
    created = Create(RelPath(b"P.TXT"), a.records[RelPath(b"P.TXT")][0], "")
    folding = arrange([created, removed], b.synced.get, FOLDING)
    assert [type(s) for s in folding.steps] == [Remove, Create]
    assert [type(s) for s in arrange([created, removed], b.synced.get, PLAIN).steps] == [Move]


names = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=3).map(lambda p: RelPath(b"/".join(p)))


@given(st.dictionaries(names, st.sampled_from(["create", "remove", "make"]), max_size=8), st.booleans())
def test_every_step_finds_what_it_needs(wanted: dict[RelPath, str], folding: bool) -> None:
    _, a, b = both_have(b"1")
    record, entry = a.records[P][0], b.synced[P]
    made = {p for p, w in wanted.items() if w == "create"}
    if any(x in made for p in wanted for x in ancestors(p)):
        return
    disk = FOLDING if folding else PLAIN
    build = {"create": Create, "remove": Remove, "make": MakeDirectory}
    actions = [build[w](p, record, "") for p, w in wanted.items()]
    present = {p for p, w in wanted.items() if w == "remove"}
    kept = [p for p in wanted if any(x in present for x in ancestors(p)) and wanted[p] != "remove"]
    if kept:
        return
    batch = arrange([*actions, Nothing(RelPath(b"z"), "")], lambda p: entry if p in present else None, disk)
    there: set[bytes] = set(present) | {b""}
    for step in batch.steps:
        if isinstance(step, Remove):
            assert not any(p.startswith(step.path + b"/") for p in there)
            there.discard(step.path)
        else:
            if isinstance(step, Move):
                there.discard(step.source)
            assert all(x in there for x in ancestors(step.path))
            there.add(step.path)
    assert batch == arrange(actions[::-1], lambda p: entry if p in present else None, disk)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_conflict_copy_has_one_name_whoever_makes_it(order: tuple[int, ...]) -> None:
    world = World()
    devices = [Device(world, n) for n in (1, 2, 3)]
    for i in order:
        devices[i].user_write(P, Kind.FILE, b"%d" % i, i)
        devices[i].scan()
    for i, j in itertools.permutations(order, 2):
        exchange(devices[i], devices[j])
    until_quiet(devices)
    assert len(devices[0].disk) == 3
    assert devices[0].tree() == devices[1].tree() == devices[2].tree()
