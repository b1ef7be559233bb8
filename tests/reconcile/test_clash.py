"""Names one disk cannot hold: one stays, the others are held, none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.model.paths import RelPath, ancestors, fold
from p2psync.ports import FsCapabilities
from p2psync.reconcile.clash import clashes, holdable, holdable_symlink

FOLDING = FsCapabilities(case_insensitive=True)
tree = st.lists(
    st.lists(
        st.sampled_from([b"a", b"A", b"b", b"B", "\u00e9".encode(), "e\u0301".encode()]), min_size=1, max_size=3
    ).map(lambda parts: RelPath(b"/".join(parts))),
    unique=True,
)


@given(tree, st.sets(st.integers(0, 20)))
def test_what_is_not_held_can_stand_on_one_disk(live: list[RelPath], present: set[int]) -> None:
    on_disk = {p for i, p in enumerate(live) if i in present}
    held = clashes(live, on_disk.__contains__, FOLDING)
    shown = {q for p in live if p not in held for q in (*ancestors(p), p)}
    assert len({fold(p) for p in shown}) == len(shown)
    assert {fold(p) for p in shown if b"/" not in p} == {fold(p).split(b"/")[0] for p in live}
    wanted = {fold(q) for p in live for q in (*ancestors(p), p) if not any(a in held for a in ancestors(q))}
    assert wanted == {fold(q) for q in shown}
    assert held == clashes(live[::-1], on_disk.__contains__, FOLDING)
    assert clashes(live, on_disk.__contains__, FsCapabilities()) == {}


def test_what_is_here_already_stays() -> None:
    live = [RelPath(b"README"), RelPath(b"readme")]
    assert list(clashes(live, lambda _: False, FOLDING)) == [b"readme"]
    assert list(clashes(live, lambda p: p == b"readme", FOLDING)) == [b"README"]


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
