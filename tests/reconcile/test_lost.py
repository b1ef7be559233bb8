"""What is published in place of a content that nobody has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2psync.model.entries import Fingerprint, Synced
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord, merge, winner
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Kind
from p2psync.reconcile.lost import giving_up

PATH = RelPath(b"f")
OWN = Replica(b"o" * 12)


def replica(number: int) -> Replica:
    return Replica(bytes([number]) * 12)


def record(number: int, counter: int, content: bytes, *, deleted: bool = False) -> FileRecord:
    dot = Dot(counter, replica(number))
    return FileRecord(
        PATH, Kind.FILE, deleted, 1, 0, 0o644, content * 32, b"", b"", dot, VersionVector().advance(dot), 0
    )


def entry(content: bytes, version: VersionVector) -> Synced:
    return Synced(PATH, Kind.FILE, 1, 0, 0o644, content * 32, b"", b"", Fingerprint(1, 2, 1, 0, 0, 9), version, ())


@st.composite
def antichains(draw: st.DrawFn) -> list[FileRecord]:
    """Concurrent versions by different devices."""
    numbers = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True))
    return [
        record(n, draw(st.integers(1, 9)), draw(st.sampled_from([b"a", b"b", b"c"])), deleted=draw(st.booleans()))
        for n in numbers
    ]


@given(antichains(), st.sampled_from([None, b"x", b"a"]))
def test_the_lost_content_is_superseded_and_no_other(siblings: list[FileRecord], here: bytes | None) -> None:
    lost = winner(siblings)
    synced = None if here is None or here * 32 == lost.content else entry(here, VersionVector())
    change = giving_up(synced, siblings)
    if lost.deleted:
        assert change is None
        return
    assert change is not None
    published, shown = change.finish(Dot(100, OWN))
    after: list[FileRecord] = []
    for each in (*siblings, published):
        after = merge(after, [each])
    others = [r for r in siblings if not r.deleted and r.content != lost.content]
    assert not any(not r.deleted and r.content == lost.content for r in after)
    assert all(other in after for other in others)
    if others:
        assert winner(after) in others
    elif synced is not None:
        assert winner(after) == published
        assert (published.deleted, published.content) == (False, synced.content)
        assert shown is not None
        assert shown.version == published.version
    else:
        assert winner(after).deleted
