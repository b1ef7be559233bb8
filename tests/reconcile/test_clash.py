"""Names one disk cannot hold: one stays, the others are held, none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.model.paths import RelPath, ancestors
from p2psync.ports import FsCapabilities
from p2psync.reconcile.clash import clashes, folded, holdable, holdable_symlink

FOLDING = FsCapabilities(case_insensitive=True)
NORMALISING = FsCapabilities(normalising=True)
BOTH = FsCapabilities(case_insensitive=True, normalising=True)
disks = st.sampled_from([FOLDING, NORMALISING, BOTH])
tree = st.lists(
    st.lists(
        st.sampled_from([b"a", b"A", b"b", b"B", "\u00e9".encode(), "e\u0301".encode()]), min_size=1, max_size=3
    ).map(lambda parts: RelPath(b"/".join(parts))),
    unique=True,
)


@given(tree, st.sets(st.integers(0, 20)), disks)
def test_what_is_not_held_can_stand_on_one_disk(live: list[RelPath], present: set[int], disk: FsCapabilities) -> None:
    on_disk = {q for i, p in enumerate(live) if i in present for q in (*ancestors(p), p)}
    held = clashes(live, on_disk.__contains__, disk)
    assert not on_disk & held.keys()
    shown = {q for p in live if p not in held for q in (*ancestors(p), p)}
    here, coming = ({folded(p, disk) for p in part} for part in (shown & on_disk, shown - on_disk))
    assert len(coming) == len(shown - on_disk)
    assert not here & coming
    wanted = {folded(q, disk) for p in live for q in (*ancestors(p), p) if not any(a in held for a in ancestors(q))}
    assert wanted == here | coming
    assert held == clashes(live[::-1], on_disk.__contains__, disk)
    assert clashes(live, on_disk.__contains__, FsCapabilities()) == {}


def test_what_is_here_already_stays() -> None:
    live = [RelPath(b"README"), RelPath(b"readme")]
    assert list(clashes(live, lambda _: False, FOLDING)) == [b"readme"]
    assert list(clashes(live, lambda p: p == b"readme", FOLDING)) == [b"README"]
    assert not clashes(live, lambda _: True, FOLDING), "the disk holds both, whatever we think of their names"


def test_a_disk_joins_only_what_it_does_not_tell_apart() -> None:
    composed, decomposed, capital = (RelPath(p.encode()) for p in ("\u00e9", "e\u0301", "\u00c9"))
    live = [composed, decomposed, capital]
    assert clashes(live, lambda _: False, FOLDING).keys() == {composed}
    assert clashes(live, lambda _: False, NORMALISING).keys() == {composed}
    assert clashes(live, lambda _: False, BOTH).keys() == {composed, capital}
    beside_bytes = [RelPath(b"\xff/" + p) for p in (composed, capital)]
    assert clashes(beside_bytes, lambda _: False, FOLDING).keys() == {beside_bytes[0]}


def test_names_this_disk_cannot_hold() -> None:
    assert holdable(RelPath(b"\xff/a"), FsCapabilities(utf8_only=True)) is not None
    assert holdable(RelPath(b"a" * 200), FsCapabilities(name_max=143)) is not None
    assert holdable(RelPath(b"\xff/a"), FsCapabilities()) is None


@pytest.mark.parametrize(
    ("path", "target", "safe"),
    [
        (b"l", b"a", True), (b"l", b"..", False), (b"d/l", b"../a", True), (b"d/l", b"../../a", False),
        (b"l", b"/etc/passwd", False), (b"l", b"a/../../b", False), (b"d/l", b"./../d//x", True), (b"l", b".", True),
    ],
)  # fmt: skip
def test_symlinks_that_lead_out(path: bytes, target: bytes, safe: bool) -> None:
    assert (holdable_symlink(RelPath(path), target, FsCapabilities()) is None) == safe
    assert holdable_symlink(RelPath(path), target, FsCapabilities(), allow_unsafe=True) is None
    assert holdable_symlink(RelPath(path), target, FsCapabilities(symlinks=False), allow_unsafe=True) is not None
